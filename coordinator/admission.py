"""Takes batches in: what is stored can be run, or fails for a reason of its own."""

import asyncio
from collections.abc import Iterable

from coordinator.openai_requests import first_model_of
from coordinator.plan_options import check_plan_options
from coordinator.store import JobStore
from coordinator.tokenizing import ModelTokenizer
from llmpq.batch import Batch, BatchOptions
from llmpq.errors import InvalidInputError
from llmpq.model import pinned, read_shape


class Admission:
    """The door of the queue.

    Args:
        store: The job store.
        max_queued_requests: Requests that may wait or run at any time.
    """

    def __init__(self, store: JobStore, max_queued_requests: int) -> None:
        self._store = store
        self._max_queued_requests = max_queued_requests

    async def submit(self, options: BatchOptions, lines: Iterable[str]) -> tuple[Batch, bool]:
        """Stores a batch; on disk when it returns.

        Returns:
            The batch, and whether it was there already.

        Raises:
            InvalidInputError: No lines, no model, options out of range, a family that is not known, a tokenizer that
                cannot be read, or a batch too large for the queue.
            NotFoundError: No such model, or it has no tokenizer.
            UnavailableError: It may be on the Hub, which does not answer.
            OverloadedError: The queue is full.
        """
        numbered = {number: text for number, text in enumerate(lines, start=1) if text.strip()}
        if not numbered:
            raise InvalidInputError("The batch has no lines.", subject="lines")
        check_plan_options(options.plan_options)
        model = options.model or first_model_of(numbered.values())
        if not model:
            raise InvalidInputError("Neither the options nor a line name a model.", subject="options.model")
        model = await asyncio.to_thread(_checked, model)
        return await self._store.add_batch(options, model, numbered, self._max_queued_requests)


def _checked(model: str) -> str:
    """Reads all of a model that this process needs, so that a batch that could never run is refused.

    Returns:
        The name under which it is run: if it is on the Hub, with the commit of this moment, so that stages that load it
        at other times, and the batch after a restart, have the same one.
    """
    model = pinned(model)
    read_shape(model)
    ModelTokenizer.load(model)
    return model

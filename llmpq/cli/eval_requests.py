"""What evaluations ask of the mesh, by the endpoint that everybody has: scores of tokens, and greedy completions."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from llmpq.batch import Batch, Result
from llmpq.cli.collect import collect
from llmpq.cli.connection import MeshChoice
from llmpq.errors import InternalError, InvalidInputError
from llmpq.plan import PlanOptions
from llmpq.report import precision_counts

#: Codes of lines that lack an answer because of the batch, which says so once, and better.
_OF_THE_BATCH = frozenset({"batch_failed", "batch_cancelled"})
#: A choice of a completion, by the custom_id of its request.
Choices = dict[str, dict[str, Any]]


def scoring_request(custom_id: str, tokens: Sequence[int]) -> dict[str, Any]:
    """Asks for the log-probability of each token after the first, given those before it; generates nothing."""
    return _completion(custom_id, {"prompt": list(tokens), "echo": True, "logprobs": 0, "max_tokens": 0})


def greedy_request(custom_id: str, tokens: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """Asks for the most likely continuation."""
    return _completion(custom_id, {"prompt": list(tokens), "max_tokens": max_tokens, "temperature": 0})


def logprobs_of(choice: dict[str, Any]) -> list[float]:
    """The answer to a `scoring_request` of n tokens: n - 1 natural logarithms."""
    logprobs: list[float] = choice["logprobs"]["token_logprobs"][1:]  # nothing stands before the first token
    return logprobs


async def ask(
    mesh: MeshChoice, model: str, requests: Iterable[dict[str, Any]], plan_options: PlanOptions
) -> tuple[Batch, Choices]:
    """Runs the requests as one batch.

    Raises:
        InvalidInputError: A request cannot be run, such as one beyond the model's context; names it.
        InternalError: The batch did not complete.
    """
    choices: Choices = {}

    def keep(result: Result) -> None:
        record = json.loads(result.json)
        if not result.is_error:
            choices[result.custom_id] = record["response"]["body"]["choices"][0]
        elif record["error"].get("code") not in _OF_THE_BATCH:
            message = f"{result.custom_id} was not run: {record['error']['message']}"
            raise InvalidInputError(message, subject=result.custom_id)

    async with mesh.connect() as client:
        batch = await client.submit(requests, model=model, plan_options=plan_options)
        batch = await collect(client, batch.batch_id, keep)
    if len(choices) != batch.requests_total:
        raise InternalError(f"Batch {batch.batch_id} {batch.state.label}: {batch.status_message}")
    return batch, choices


def served_precisions(batch: Batch) -> dict[str, int]:
    """How many layers had each scheme when the batch was run."""
    counts: Counter[str] = Counter()
    for stage in batch.plan.stages if batch.plan else ():
        counts.update(precision_counts(stage.layers))
    return dict(counts)


def _completion(custom_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}

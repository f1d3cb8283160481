"""One slice of a model on a stage, and micro-batches sent through it one at a time."""

import asyncio
import random
import uuid
from array import array
from collections.abc import Sequence

from coordinator.fidelity_workloads import SliceWorkload
from coordinator.results import ResultRouter
from llmpq.device import Phase
from llmpq.errors import UnavailableError
from llmpq.frames import DataType, Frame, FrameOutput
from llmpq.model import ModelShape
from llmpq.plan import LayerPrecision
from llmpq.rpc.data_plane import ForwardStream
from llmpq.stage_load import StageLoad

#: Frames of a kind that are measured; one more comes before them and is not.
_NUM_PREFILLS = 3
_NUM_DECODES = 7
#: Tokens of each sequence behind its prompt: one from prefill, and those of all decode frames.
NUM_NEW_TOKENS = _NUM_DECODES + 2
_FRAME_TIMEOUT_S = 120.0


class SliceRun:
    """One slice on a stage, and its micro-batches one at a time."""

    def __init__(self, workload: SliceWorkload, shape: ModelShape, router: ResultRouter) -> None:
        self._workload = workload
        self._shape = shape
        self._router = router
        self._deployment_id = uuid.uuid4().hex
        self._has_embedding = workload.first_layer == 0
        self._has_head = workload.end_layer == shape.num_layers

    def stage_load(self, model: str, layers: tuple[LayerPrecision, ...]) -> StageLoad:
        """What the stage has to hold."""
        workload = self._workload
        return StageLoad(
            deployment_id=self._deployment_id,
            plan_hash="",
            model=model,
            stage=0 if self._has_embedding else 1,
            num_stages=(not self._has_embedding) + 1 + (not self._has_head),
            first_layer=workload.first_layer,
            layers=layers,
            num_slots=workload.decode_sequences,
            max_sequence_tokens=workload.prompt_tokens + NUM_NEW_TOKENS,
            max_frame_tokens=max(workload.prefill_tokens, workload.decode_sequences),
            next_address=self._router.address,
        )

    async def times_ms(self, address: str) -> tuple[float, float]:
        """Milliseconds of a full prefill micro-batch and of a decode micro-batch.

        The lower quartile of several: other work on the host only adds to some.
        """
        workload = self._workload
        with self._router.expecting(self._deployment_id) as results:
            async with ForwardStream(address) as frames:

                async def compute_ms(phase: Phase, slots: Sequence[int], start: int, count: int) -> float:
                    await frames.send(self._frame(phase, slots, start, count))
                    async with asyncio.timeout(_FRAME_TIMEOUT_S):
                        result = await results.get()
                    return result.timings[-1].compute_ns / 1e6

                try:
                    prefills_ms, eta = [], workload.prefill_sequences
                    for first in range(0, workload.decode_sequences, eta):
                        slots = range(first, min(first + eta, workload.decode_sequences))
                        took_ms = await compute_ms(Phase.PREFILL, slots, 0, workload.prompt_tokens)
                        prefills_ms += [took_ms] if len(slots) == eta else []
                    while len(prefills_ms) < _NUM_PREFILLS + 1:
                        prefills_ms.append(await compute_ms(Phase.PREFILL, range(eta), 0, workload.prompt_tokens))
                    decodes_ms = [
                        await compute_ms(
                            Phase.DECODE, range(workload.decode_sequences), workload.prompt_tokens + step, 1
                        )
                        for step in range(_NUM_DECODES + 1)
                    ]
                except TimeoutError as error:
                    message = f"{address} did not return a frame for {_FRAME_TIMEOUT_S:g} s."
                    raise UnavailableError(message, subject=address) from error
        return _lower_quartile(prefills_ms[1:]), _lower_quartile(decodes_ms[1:])

    def _frame(self, phase: Phase, slots: Sequence[int], start: int, count: int) -> Frame:
        num_rows = len(slots) * count
        if self._has_embedding:
            data_type, dimensions = DataType.INT32, [num_rows]
            payload = array("i", (row % self._shape.vocab_size for row in range(num_rows))).tobytes()
        else:
            data_type, dimensions = DataType.FLOAT32, [num_rows, self._shape.hidden_size]
            noise = random.Random(0)  # noqa: S311 not for secrets
            period = array("f", (noise.gauss(0, 1) for _ in range(self._shape.hidden_size)))
            payload = (period * num_rows).tobytes()
        emits = [True] * len(slots) if self._has_head else []
        return Frame(
            deployment_id=self._deployment_id,
            frame_id=1,
            phase=phase,
            slots=list(slots),
            starts=[start] * len(slots),
            counts=[count] * len(slots),
            output=FrameOutput.TOKENS if self._has_head else FrameOutput.NONE,
            emits=emits,
            data_type=data_type,
            dimensions=tuple(dimensions),
            payload=payload,
        )


def _lower_quartile(values: Sequence[float]) -> float:
    return sorted(values)[(len(values) - 1) // 4]

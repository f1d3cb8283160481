"""The part of a model that one stage runs, and what it makes of a frame."""

from dataclasses import dataclass

import torch

from llmpq.frames import Frame, FrameOutput, Sampling
from stage_server.decoder_layer import DecoderLayer
from stage_server.ends import Embedding, Head
from stage_server.layer_run import LayerRun
from stage_server.layout import BatchLayout
from stage_server.positions import PositionEncoding
from stage_server.sampling import next_tokens


@dataclass(frozen=True)
class ModelSlice:
    """Consecutive layers, with the embedding on the first stage and the head on the last.

    Attributes:
        layers: At least one.
        embedding: On the first stage.
        head: On the last stage.
        encoding: What the layers know of positions.
    """

    layers: tuple[DecoderLayer, ...]
    embedding: Embedding | None
    head: Head | None
    encoding: PositionEncoding

    @property
    def layer_bytes(self) -> int:
        """Bytes of the decoder layers."""
        return sum(layer.memory_bytes for layer in self.layers)

    @property
    def embedding_head_bytes(self) -> int:
        """Bytes of embedding and head."""
        return sum(end.memory_bytes for end in (self.embedding, self.head) if end is not None)

    def hidden_states(self, inputs: torch.Tensor, layout: BatchLayout, run: LayerRun) -> torch.Tensor:
        """Runs the layers.

        Args:
            inputs: (rows,) int32 token ids on the first stage, (rows, hidden) elsewhere.
            layout: Which rows belong to which sequence.
            run: Of these layers; the new tokens are added to its caches.

        Returns:
            (rows, hidden).
        """
        hidden = inputs if self.embedding is None else self.embedding.forward(inputs, layout)
        return run.forward(hidden, self.encoding.at(layout))

    def results(self, hidden: torch.Tensor, layout: BatchLayout, frame: Frame) -> torch.Tensor:
        """What the frame asks of the last stage: (tokens,) int32, (scores,) float32, or an empty int32 tensor.

        Args:
            hidden: (rows, hidden) after the last layer.
            layout: Which rows belong to which sequence.
            frame: Says what is wanted.
        """
        head = self.head
        assert head is not None  # noqa: S101 only the last stage is asked
        if frame.output is FrameOutput.SCORES:
            targets = torch.tensor(frame.targets, device=hidden.device)
            wanted = targets >= 0
            return head.scores(hidden[wanted], targets[wanted])
        emitting = [index for index, emits in enumerate(frame.emits) if emits]
        if frame.output is FrameOutput.NONE or not emitting:
            return torch.empty(0, dtype=torch.int32)
        last_rows = torch.tensor(layout.counts, device=hidden.device).cumsum(0)[emitting] - 1
        sampling = [frame.sampling[index] for index in emitting] if frame.sampling else [Sampling()] * len(emitting)
        return next_tokens(head, hidden[last_rows], sampling, [layout.ends[index] for index in emitting])

"""Puts the slice of a model that a stage is to hold onto its device."""

from collections.abc import Iterator

from llmpq.plan import StageMemory
from llmpq.stage_load import LoadProgress, StageLoad
from stage_server.decoder_layer import DecoderLayer
from stage_server.device import ComputeDevice
from stage_server.layer_rounding import LayerRounder
from stage_server.loader import ModelLoader
from stage_server.model_slice import ModelSlice
from stage_server.positions import PositionEncoding


class SliceLoad:
    """Loads one slice, in steps.

    Args:
        loader: Of the model.
        device: Where the slice is to live.
        load: Which slice, at which precisions.

    Attributes:
        weights: The slice, once all steps are done.
    """

    weights: ModelSlice

    def __init__(self, loader: ModelLoader, device: ComputeDevice, load: StageLoad) -> None:
        self._loader = loader
        self._device = device
        self._load = load

    def steps(self) -> Iterator[LoadProgress]:
        """Loads the ends that belong to the slice, then layer after layer; raises as LayerRounder.layers."""
        load, loader = self._load, self._loader
        precisions = dict(enumerate(load.layers, load.first_layer))
        loader.source.expect(precisions, embedding=load.is_first, head=load.is_last)
        embedding = loader.load_embedding() if load.is_first else None
        is_screened = self._device.description.screens_head
        head = loader.load_head(embedding, is_screened=is_screened) if load.is_last else None
        ends_bytes = sum(end.memory_bytes for end in (embedding, head) if end is not None)
        samples = tuple(sample.token_ids for sample in load.samples)
        layers: dict[int, DecoderLayer] = {}
        yield self._progress(layers, ends_bytes)
        for layer in LayerRounder(loader, self._device, load.rounding, samples).layers(precisions):
            layers[layer.index] = loader.build_layer(layer, precisions[layer.index])
            del layer  # the next one takes its place
            yield self._progress(layers, ends_bytes)
        encoding = PositionEncoding(loader.spec, self._device.torch_device, self._device.compute_dtype)
        self.weights = ModelSlice(tuple(layers[index] for index in precisions), embedding, head, encoding)

    def _progress(self, layers: dict[int, DecoderLayer], ends_bytes: int) -> LoadProgress:
        memory = StageMemory(
            layer_bytes=sum(layer.memory_bytes for layer in layers.values()),
            embedding_head_bytes=ends_bytes,
            budget_bytes=self._device.description.memory_budget_bytes,
        )
        return LoadProgress(len(layers), len(self._load.layers), memory)

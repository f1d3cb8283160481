"""From a virtual cluster to the profiles that the planner works with, as if its devices had been measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmpq.device import DeviceDescription, DeviceProfile, LatencyPoint, ModelPart, Phase
from llmpq.model import ModelShape
from planner_svc.catalog.clusters import ClusterSheet
from planner_svc.catalog.devices import DeviceSheet
from planner_svc.catalog.kernels import KernelSet
from planner_svc.catalog.law import AttentionRates, Kernel, LayerLaw, LayerSize
from planner_svc.workload import Load

#: (sequences, tokens) of the prefill points and (sequences, cached tokens) of the decode points; more of them than a
#: stage server measures, since they cost nothing.
PREFILL_GRID = tuple((b, s) for b in (1, 2, 4, 8, 16) for s in (64, 128, 256, 512, 1024))
DECODE_GRID = tuple((b, past) for b in (1, 2, 4, 8, 16, 32, 64, 128) for past in (128, 512, 1024))
#: Rows at which the embedding is measured; sequences at which the head is.
EMBEDDING_GRID = (1, 64, 1024)
HEAD_GRID = (1, 4, 16, 64)

#: Embedding and head are stored in 16 bits.
_STORED_BYTES = 2


@dataclass(frozen=True)
class VirtualDevice:
    """A device sheet with the rates of a kernel set.

    Attributes:
        name: As in the catalog.
        sheet: Its data sheet.
        kernels: Ways to multiply by scheme; w16 is among them.
        attention: Cost of attention.
    """

    name: str
    sheet: DeviceSheet
    kernels: dict[str, tuple[Kernel, ...]]
    attention: AttentionRates

    @classmethod
    def of(cls, name: str, sheet: DeviceSheet, kernel_set: KernelSet) -> "VirtualDevice":
        """The device with a set's rates."""
        return cls(name, sheet, kernel_set.kernels(name, sheet), kernel_set.attention_rates(name, sheet))

    @property
    def description(self) -> DeviceDescription:
        """What a stage server on it would say; its name says that it is simulated."""
        return DeviceDescription(
            kind=self.sheet.kind,
            name=f"{self.name} (simulated)",
            cpu_class=self.sheet.cpu_class,
            num_threads=self.sheet.num_threads,
            memory_total_bytes=self.sheet.memory_bytes,
            memory_budget_bytes=self.sheet.budget_bytes,
            schemes=tuple(self.kernels),
            activation_bytes=self.sheet.activation_bytes,
            screens_head=self.sheet.kind == "cpu",
        )

    def layer_law(self, size: LayerSize, scheme: str, group_size: int) -> LayerLaw:
        """The law of a layer at a scheme."""
        stored_bytes = size.stored_bytes(scheme, group_size)
        return LayerLaw(size, stored_bytes, self.kernels[scheme], self.attention, self.sheet.activation_bytes)

    def points(self, shape: ModelShape, group_size: int) -> Iterator[LatencyPoint]:
        """The latencies of a model's parts, by the law."""
        size = LayerSize.of(shape)
        for scheme in self.kernels:
            law = self.layer_law(size, scheme, group_size)
            for phase, loads in _GRIDS.items():
                for load in loads:
                    yield _point(ModelPart.LAYER, scheme, phase, load, law.seconds(phase, Load.of(*load)))
        for rows in EMBEDDING_GRID:
            yield _point(ModelPart.EMBEDDING, "", Phase.PREFILL, (rows, 1, 0), self._embedding_s(shape, rows))
        for sequences in HEAD_GRID:
            yield _point(ModelPart.HEAD, "", Phase.DECODE, (sequences, 1, 0), self._head_s(shape, sequences))

    def _embedding_s(self, shape: ModelShape, rows: int) -> float:
        """Rows are read and written once."""
        moved = rows * shape.hidden_size * (_STORED_BYTES + self.sheet.activation_bytes)
        return self.kernels["w16"][0].launch_s + moved / self.attention.memory_bytes_per_s

    def _head_s(self, shape: ModelShape, sequences: int) -> float:
        """A matrix product at the rates of w16."""
        num_weights = shape.vocab_size * shape.embedding_size
        stored_bytes = num_weights * _STORED_BYTES
        return min(kernel.linears_s(num_weights, stored_bytes, sequences) for kernel in self.kernels["w16"])


def virtual_profiles(
    cluster: ClusterSheet, devices: Sequence[VirtualDevice], shape: ModelShape, group_size: int
) -> tuple[DeviceProfile, ...]:
    """The profiles of a cluster's devices for a model; `devices` has each kind once."""
    by_name = {device.name: device for device in devices}
    points = {device.name: tuple(device.points(shape, group_size)) for device in devices}
    return tuple(
        DeviceProfile(
            device_id=place.device_id,
            description=by_name[place.name].description,
            points=points[place.name],
            link_latency_ns=round(place.link.latency_us * 1e3),
            link_bytes_per_s=round(place.link.gb_per_s * 1e9),
            host_memory_bytes=place.host_memory_bytes,
            host_link_bytes_per_s=round(by_name[place.name].sheet.pcie_gb_per_s * 1e9),
            usd_per_h=by_name[place.name].sheet.usd_per_h if place.usd_per_h is None else place.usd_per_h,
        )
        for place in cluster.devices
    )


_GRIDS = {
    Phase.PREFILL: tuple((sequences, tokens, 0) for sequences, tokens in PREFILL_GRID),
    Phase.DECODE: tuple((sequences, 1, past) for sequences, past in DECODE_GRID),
}


def _point(part: ModelPart, scheme: str, phase: Phase, load: tuple[int, int, int], seconds: float) -> LatencyPoint:
    return LatencyPoint(part, scheme, phase, *load, duration_ns=max(round(seconds * 1e9), 1))

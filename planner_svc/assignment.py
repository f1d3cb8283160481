"""The inner problem: which layers go where at which precision, once device order and micro-batch sizes are fixed."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner_svc import placement
from planner_svc.schedule import Schedule
from planner_svc.timeline import Weights

Floats = NDArray[np.float64]
#: Prefill and decode seconds, bytes and layers; (many, stages) each.
StageSums = tuple[Floats, Floats, Floats, Floats]

#: Seconds of a layer that a stage cannot run; sums of infinities would have no differences.
NEVER_S = 1e30


@dataclass(frozen=True)
class AssignmentProblem:
    """Costs of every choice. All layers have the same shape, so only omega depends on the layer, and what it may have.

    A row of omega may also stand for a group of g layers, if times and bytes are those of g layers. Where cost is the
    objective, what is called seconds is what these seconds of the pipeline's devices cost in dollars.

    Attributes:
        layer_prefill_s: (stages, schemes) seconds of a layer per prefill frame; infinite where the device cannot.
        layer_decode_s: (stages, schemes) the same per decode micro-batch.
        outside_prefill_s: (stages) seconds of embedding and head per prefill frame.
        outside_decode_s: (stages) the same per decode micro-batch.
        link_prefill_s: (stages) seconds of the link to the stage per prefill frame.
        link_decode_s: (stages) the same per decode micro-batch.
        layer_bytes: (stages, schemes) bytes of a layer with its KV cache.
        capacity_bytes: (stages) bytes that are left for layers.
        omega: (layers, schemes) what quantizing costs in quality; infinite where the layer may not have the scheme.
        theta_s: Seconds that a unit of omega is worth.
        quality_budget: Limit on the sum of omega, or None.
        schedule: Numbers of frames, lanes and rounds.
        deadline_s: Longest time, or None.
    """

    layer_prefill_s: Floats
    layer_decode_s: Floats
    outside_prefill_s: Floats
    outside_decode_s: Floats
    link_prefill_s: Floats
    link_decode_s: Floats
    layer_bytes: Floats
    capacity_bytes: Floats
    omega: Floats
    theta_s: float
    quality_budget: float | None
    schedule: Schedule
    deadline_s: float | None = None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.omega)

    @property
    def num_stages(self) -> int:
        """Stages."""
        return len(self.capacity_bytes)

    @property
    def num_schemes(self) -> int:
        """Schemes."""
        return int(self.omega.shape[1])

    @property
    def is_usable(self) -> NDArray[np.bool_]:
        """(stages, schemes): whether the stage's device can run the scheme."""
        return np.isfinite(self.layer_decode_s)

    @cached_property
    def is_allowed(self) -> NDArray[np.bool_]:
        """(layers, schemes): whether the layer may have the scheme."""
        return np.isfinite(self.omega)

    @property
    def has_like_layers(self) -> bool:
        """Whether all layers cost the same in quality at every scheme, so that their order does not matter."""
        return bool((self.omega == self.omega[0]).all())

    @property
    def signature(self) -> bytes:
        """What all but the order of layers depends on: equal for orders of devices that only differ inside."""
        stages = np.column_stack(
            (
                self.layer_prefill_s,
                self.layer_decode_s,
                self.layer_bytes,
                self.outside_prefill_s,
                self.outside_decode_s,
                self.capacity_bytes,
            )
        )
        links = [
            total for link_s in (self.link_prefill_s, self.link_decode_s) for total in (link_s.sum(), link_s.max())
        ]
        schedule = self.schedule
        whole = np.array([schedule.num_frames, schedule.num_lanes, schedule.num_rounds, *links])
        return bytes(stages[np.lexsort(stages.T)].tobytes() + whole.tobytes())

    def objectives_s(self, counts: Floats, losses: Floats) -> Floats:
        """(many) time + theta * loss of many assignments at once; infinite where memory, devices or budget forbid one.

        Args:
            counts: (many, stages, schemes) layers of each stage at each scheme.
            losses: (many) sums of omega.
        """
        prefill_s, decode_s, used_bytes, layers = self.stage_sums(counts)
        sums = prefill_s + self.outside_prefill_s, decode_s + self.outside_decode_s, used_bytes, layers
        objectives_s = self.objectives_of_sums_s(sums, losses)
        return np.asarray(np.where((counts < 0).any(axis=(1, 2)), np.inf, objectives_s))

    def stage_sums(self, counts: Floats) -> StageSums:
        """What layers come to on their stages.

        Linear in `counts` (many, stages, schemes), so that a search may add up what its moves come to. Layers that a
        stage cannot run take `NEVER_S`.
        """
        sums = (self.layer_prefill_s, self.layer_decode_s, self.layer_bytes, np.ones_like(self.layer_bytes))
        prefill, decode, used, layers = (
            np.einsum("mjk,jk->mj", counts, np.where(np.isfinite(each), each, NEVER_S)) for each in sums
        )
        return prefill, decode, used, layers

    def objectives_of_sums_s(self, sums: StageSums, losses: Floats) -> Floats:
        """(many) as `objectives_s`, from sums whose seconds include what is outside the layers."""
        prefill_s, decode_s, used_bytes, layers = sums
        schedule = self.schedule
        end_s = _weighted(schedule.prefill_weights, *_totals(prefill_s, self.link_prefill_s))
        server, latency = schedule.decode_weights
        decode = _totals(decode_s, self.link_decode_s)
        time_s = end_s + np.maximum(_weighted(server, *decode), _weighted(latency, *decode))
        is_wrong = (used_bytes > self.capacity_bytes).any(axis=1) | (layers < 1).any(axis=1)
        is_wrong |= np.maximum(prefill_s, decode_s).max(axis=1) >= NEVER_S / 2
        if self.quality_budget is not None:
            is_wrong |= losses > self.quality_budget
        if self.deadline_s is not None:
            is_wrong |= time_s > self.deadline_s
        return np.asarray(np.where(is_wrong, np.inf, time_s + self.theta_s * losses))

    def grouped(self, size: int) -> "AssignmentProblem":
        """The problem of layers that go to a stage, and take a scheme, `size` at a time; that has to divide them."""
        return replace(
            self,
            layer_prefill_s=size * self.layer_prefill_s,
            layer_decode_s=size * self.layer_decode_s,
            layer_bytes=size * self.layer_bytes,
            omega=self.omega.reshape(-1, size, self.num_schemes).sum(axis=1),
        )

    def without_limits(self) -> "AssignmentProblem":
        """The same costs with memory for everything, no quality budget and no deadline."""
        unlimited = np.full_like(self.capacity_bytes, np.inf)
        return replace(self, capacity_bytes=unlimited, quality_budget=None, deadline_s=None)

    def quality_only(self) -> "AssignmentProblem":
        """The same layers and memory, with the sum of omega as the only objective."""
        free = {
            name: np.zeros_like(getattr(self, name))
            for name in ("outside_prefill_s", "outside_decode_s", "link_prefill_s", "link_decode_s")
        }
        layer_s = np.where(self.is_usable, 0.0, np.inf)
        return replace(
            self,
            layer_prefill_s=layer_s,
            layer_decode_s=layer_s,
            theta_s=1.0,
            quality_budget=None,
            deadline_s=None,
            **free,
        )

    def time_bound_s(self) -> float:
        """A lower bound on the time, from each stage's fastest scheme, whatever memory and quality say.

        Sum:     every stage has a layer, and the others go to the fastest stage.
        Slowest: at least the balanced share (layers + sum(outside / fastest)) / sum(1 / fastest), and at least any
                 stage with one layer, and any link.
        """
        prefill = _phase_bound(self.layer_prefill_s, self.outside_prefill_s, self.link_prefill_s, self.num_layers)
        decode = _phase_bound(self.layer_decode_s, self.outside_decode_s, self.link_decode_s, self.num_layers)
        return self.schedule.prefill_s(*prefill) + self.schedule.decode_s(*decode)

    def short_bytes(self) -> Floats:
        """(stages) bytes that are missing if every layer is as compressed as may be; see `placement.short_bytes`."""
        return placement.short_bytes(self._smallest_bytes(), self.capacity_bytes)

    def fits(self) -> bool:
        """Whether any assignment fits the memory."""
        if self.is_allowed.all():  # then layers need not be told apart
            room = np.floor(self.capacity_bytes / np.where(self.is_usable, self.layer_bytes, np.inf).min(axis=1))
            return bool(room.min() >= 1 and room.sum() >= self.num_layers >= self.num_stages)
        return placement.fits(self._smallest_bytes(), self.capacity_bytes)

    def _smallest_bytes(self) -> Floats:
        """(stages, layers) bytes of each layer at the most compressed scheme that stage and layer admit."""
        can_have = self.is_usable[:, None, :] & self.is_allowed[None, :, :]
        return np.asarray(np.where(can_have, self.layer_bytes[:, None, :], np.inf).min(axis=2))


def _totals(stage_s: Floats, link_s: Floats) -> tuple[Floats, Floats]:
    """(many) seconds of all servers, and of the slowest."""
    return stage_s.sum(axis=1) + link_s.sum(), np.maximum(stage_s.max(axis=1), link_s.max())


def _weighted(weights: Weights, total_s: Floats, slowest_s: Floats) -> Floats:
    return np.asarray(weights[0] * total_s + weights[1] * slowest_s)


def _phase_bound(layer_s: Floats, outside_s: Floats, link_s: Floats, num_layers: int) -> tuple[float, float]:
    """Lower bounds on (sum, slowest) of a phase; see `AssignmentProblem.time_bound_s`."""
    fastest = layer_s.min(axis=1)
    with_one_layer = outside_s + fastest
    total = with_one_layer.sum() + (num_layers - len(fastest)) * fastest.min() + link_s.sum()
    slowest = max(with_one_layer.max(), link_s.max())
    if fastest.min() > 0:
        slowest = max(slowest, (num_layers + (outside_s / fastest).sum()) / (1 / fastest).sum())
    return float(total), float(slowest)

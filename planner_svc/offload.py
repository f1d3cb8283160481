"""A pipeline stage that moves weights, KV cache and hidden states between host and device while it computes: FlexGen.

FlexGen (arXiv 2303.06865) computes a layer for all batches of a block before it goes to the next one (zig-zag), so that
weights are loaded once a block, and overlaps loading, storing and computing: the time of a layer is the largest of the
three (section 4.3). What stays on the device is chosen by a linear program (equation 1), here one for each stage:

    min   FRAMES * T_prefill + ROUNDS * T_decode
          over the shares w, c, h of weights, cache and hidden states that stay on the device
    T >= compute                                      batches of a block, one after another
    T >= ((1 - w) WEIGHTS + (1 - c) CACHE_READ + (1 - h) STATES) / LINK         host to device; cache in decode only
    T >= ((1 - c) CACHE_WRITTEN + (1 - h) STATES) / LINK                        device to host
    L * (w WEIGHTS + c CACHE) + h STATES + two buffers of what is moved + the rest <= device
    L * ((1 - w) WEIGHTS + (1 - c) CACHE) + (1 - h) STATES <= host

There is no disk, and attention is not computed on the host.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from llmpq.comparison import OffloadStage
from llmpq.device import DeviceProfile, Phase
from llmpq.memory import embedding_head_bytes, kv_bytes, layer_bytes, workspace_bytes
from llmpq.plan import LayerPrecision
from planner_svc.assignment import Floats
from planner_svc.cost import CostModel
from planner_svc.schedule import Schedule, Setting
from planner_svc.workload import Load


@dataclass(frozen=True)
class Policy:
    """Sizes of FlexGen's schedule.

    Attributes:
        device_batch: Sequences that are computed at once.
        batches_per_block: Such batches that share one pass over the weights.
        num_blocks: Blocks in flight; several keep the stages of a pipeline busy.
    """

    device_batch: int
    batches_per_block: int
    num_blocks: int

    @property
    def block_size(self) -> int:
        """Sequences of a block."""
        return self.device_batch * self.batches_per_block

    def setting(self, longest_prompt: int) -> Setting:
        """The same in the words of the scheduler: a block is a micro-batch of both phases, and no prompt is cut."""
        return Setting(self.block_size, self.block_size, self.num_blocks, self.block_size * longest_prompt)


@dataclass(frozen=True)
class Shares:
    """What stays on the device, of 1."""

    weights: float
    cache: float
    states: float


@dataclass(frozen=True)
class OffloadingStage:
    """A stage before and after the shares are chosen.

    Attributes:
        cost: Of the problem.
        device_id: The device; its host memory and link are known.
        precision: Of all its layers.
        first_layer: First layer.
        num_layers: Layers.
        is_first: Whether it embeds.
        is_last: Whether it has the head.
        policy: Sizes.
    """

    cost: CostModel
    device_id: str
    precision: LayerPrecision
    first_layer: int
    num_layers: int
    is_first: bool
    is_last: bool
    policy: Policy

    def choose(self, schedule: Schedule) -> Shares | None:
        """The shares with which the whole batch is fastest; None if not even the host has the memory."""
        frames, rounds = schedule.num_frames, schedule.num_lanes * schedule.num_rounds
        rows, limits = [], []
        for time, phase, load in (
            (3, Phase.PREFILL, schedule.prefill_load),
            (4, Phase.DECODE, schedule.decode_load),
        ):
            for moved in self._moved_bytes(phase, load):  # moved @ (1 - shares) / link - T <= 0
                row = np.zeros(5)
                row[:3] = -moved / self._link
                row[time] = -1
                rows.append(row)
                limits.append(-moved.sum() / self._link)
        kept = self._kept_bytes()
        buffers = self._buffer_bytes()
        rows += [np.append(kept - buffers, [0, 0]), np.append(-kept, [0, 0])]
        limits += [self._profile.description.memory_budget_bytes - self._other_bytes() - buffers.sum()]
        limits += [self._profile.host_memory_bytes - kept.sum()]
        computing = [self._compute_s(Phase.PREFILL, schedule.prefill_load)]
        computing += [self._compute_s(Phase.DECODE, schedule.decode_load)]
        bounds = [(0, 1)] * 3 + [(seconds, None) for seconds in computing]
        scale = kept.max()  # bytes beside seconds
        scales = np.array([1.0] * 4 + [scale] * 2)
        costs = [0, 0, 0, frames, rounds]
        found = linprog(costs, np.array(rows) / scales[:, None], np.array(limits) / scales, bounds=bounds)
        return Shares(*map(float, found.x[:3])) if found.success else None

    def layer_s(self, shares: Shares, phase: Phase, load: Load) -> float:
        """Seconds of one layer for a block."""
        left = 1 - np.array([shares.weights, shares.cache, shares.states])
        moving = [float(moved @ left) / self._link for moved in self._moved_bytes(phase, load)]
        return max(self._compute_s(phase, load), *moving)

    def stage_s(self, shares: Shares, phase: Phase, load: Load) -> float:
        """Seconds of the stage for a block."""
        batches, part = self._batches(load)
        outside_s = self.cost.outside_s(self.device_id, part, is_first=self.is_first, is_last=self.is_last)
        return self.num_layers * self.layer_s(shares, phase, load) + batches * outside_s

    def described(self, shares: Shares, schedule: Schedule) -> OffloadStage:
        """The stage as it is reported."""
        on_device = np.array([shares.weights, shares.cache, shares.states])
        kept = self._kept_bytes()
        used = self._other_bytes() + kept @ on_device + self._buffer_bytes() @ (1 - on_device)
        return OffloadStage(
            device_id=self.device_id,
            first_layer=self.first_layer,
            num_layers=self.num_layers,
            scheme=self.precision.scheme,
            weights_on_device=shares.weights,
            cache_on_device=shares.cache,
            states_on_device=shares.states,
            device_bytes=round(float(used)),
            host_bytes=round(float(kept @ (1 - on_device))),
            prefill_ms=self.stage_s(shares, Phase.PREFILL, schedule.full_prefill_load) * 1e3,
            decode_ms=self.stage_s(shares, Phase.DECODE, schedule.full_decode_load) * 1e3,
        )

    @property
    def _profile(self) -> DeviceProfile:
        return self.cost.devices[self.device_id]

    @property
    def _link(self) -> float:
        return float(self._profile.host_link_bytes_per_s)

    def _batches(self, load: Load) -> tuple[int, Load]:
        """How many batches a block is computed in, and the mean one of them."""
        batches = max(-(-round(load.num_sequences) // self.policy.device_batch), 1)
        return batches, Load(load.num_sequences / batches, load.num_rows / batches, load.num_pairs / batches)

    def _compute_s(self, phase: Phase, load: Load) -> float:
        """Seconds of one layer; where the device has no kernel for the scheme, weights are expanded for that of w16."""
        batches, part = self._batches(load)
        schemes = self.cost.latencies[self.device_id].schemes
        scheme = self.precision.scheme if self.precision.scheme in schemes else "w16"
        return batches * self.cost.layer_s(self.device_id, scheme, phase, part)

    def _moved_bytes(self, phase: Phase, load: Load) -> tuple[Floats, Floats]:
        """Bytes that a layer moves for a block to the device and back, were none of weights, cache and states on it."""
        states = load.num_rows * self.cost.shape.hidden_size * self._element_bytes
        per_token = 2 * self.cost.shape.kv_size * self._element_bytes
        read = load.num_pairs * per_token if phase is Phase.DECODE else 0.0
        weights = layer_bytes(self.cost.shape, self.precision)
        return np.array([weights, read, states]), np.array([0.0, load.num_rows * per_token, states])

    def _kept_bytes(self) -> Floats:
        """Bytes of all weights, of the cache, and of the states between layers, wherever they are kept."""
        cache = self._cache_bytes(self.num_layers, self.policy.num_blocks * self.policy.block_size)
        weights = self.num_layers * layer_bytes(self.cost.shape, self.precision)
        block_rows = self.policy.block_size * self.cost.workload.longest_prompt
        return np.array([weights, cache, block_rows * self.cost.shape.hidden_size * self._element_bytes], dtype=float)

    def _buffer_bytes(self) -> Floats:
        """Bytes on the device for what is moved: two layers' weights, two batches' cache and states."""
        batch_rows = self.policy.device_batch * self.cost.workload.longest_prompt
        weights = 2 * layer_bytes(self.cost.shape, self.precision)
        cache = 2 * self._cache_bytes(1, self.policy.device_batch)
        return np.array([weights, cache, 2 * batch_rows * self.cost.shape.hidden_size * self._element_bytes])

    def _other_bytes(self) -> float:
        """Bytes of embedding, head and the temporaries of one batch."""
        outside = embedding_head_bytes(
            self.cost.shape,
            is_first=self.is_first,
            is_last=self.is_last,
            screens_head=self._profile.description.screens_head,
        )
        return outside + workspace_bytes(
            self.cost.shape,
            is_first=self.is_first,
            is_last=self.is_last,
            max_prefill_tokens=self.policy.device_batch * self.cost.workload.longest_prompt,
            decode_sequences=self.policy.device_batch,
            max_sequence_tokens=self.cost.workload.max_sequence_tokens,
            activation_bytes=self._element_bytes,
        )

    def _cache_bytes(self, num_layers: int, num_sequences: int) -> int:
        return kv_bytes(
            self.cost.shape,
            num_layers=num_layers,
            num_slots=num_sequences,
            max_sequence_tokens=self.cost.workload.max_sequence_tokens,
            activation_bytes=self._element_bytes,
        )

    @property
    def _element_bytes(self) -> int:
        return self._profile.description.activation_bytes

"""The rows of the mixed-integer program, one function per family. `milp` puts them together and solves.

Legend: layers i < L; stages j < N in pipeline order; schemes k < K; column c = (j, k) of two-dimensional variables.
Data (Latin letters in capitals, or named) enter as parameters, so that one compiled program serves every candidate.
"""

from typing import Any

import cvxpy as cp
import numpy as np

from planner_svc.program_data import ProgramData


class Variables:
    """The decisions.

    Attributes:
        choice: z (L, N*K), 1 if layer i is on stage j at scheme k. Continuous: see `count_layers`.
        count: n (N*K) integer, layers of stage j at scheme k.
        passed: s (L, N-1) binary, 1 if layer i is on stage j or an earlier one.
        prefill_s, decode_s: (N) compute time of each stage per micro-batch.
        slowest_prefill_s, slowest_decode_s: The slowest server, stage or link.
        prefill_total_s, decode_total_s: Time of all servers.
        decode_end_s: Time of all decode rounds.
        loss: Sum of omega.
        objective: What is minimized.
    """

    def __init__(self, num_layers: int, num_stages: int, num_schemes: int) -> None:
        columns = num_stages * num_schemes
        self.choice = cp.Variable((num_layers, columns), nonneg=True)
        self.count = cp.Variable(columns, integer=True)
        self.passed = cp.Variable((num_layers, num_stages - 1), boolean=True) if num_stages > 1 else None
        self.prefill_s = cp.Variable(num_stages)
        self.decode_s = cp.Variable(num_stages)
        self.slowest_prefill_s = cp.Variable()
        self.slowest_decode_s = cp.Variable()
        self.prefill_total_s = cp.Variable()
        self.decode_total_s = cp.Variable()
        self.decode_end_s = cp.Variable()
        self.loss = cp.Variable()
        self.objective = cp.Variable()
        #: (N, N*K), sums columns over schemes.
        self.per_stage = np.kron(np.eye(num_stages), np.ones((1, num_schemes)))

    def on_stage(self) -> cp.Expression:
        """The matrix x (L, N) = s[i, j] - s[i, j-1]: 1 if layer i is on stage j."""
        ones = np.ones((self.choice.shape[0], 1))
        if self.passed is None:
            return cp.Constant(ones)
        return cp.hstack([self.passed, ones]) - cp.hstack([np.zeros_like(ones), self.passed])


class Parameters:
    """The data of one candidate, by the names that `ProgramData` gives them; see there."""

    def __init__(self, num_stages: int, num_schemes: int) -> None:
        columns = num_stages * num_schemes
        self.layer_prefill = cp.Parameter(columns)
        self.layer_decode = cp.Parameter(columns)
        self.outside_prefill = cp.Parameter(num_stages)
        self.outside_decode = cp.Parameter(num_stages)
        self.link_prefill = cp.Parameter(num_stages)
        self.link_decode = cp.Parameter(num_stages)
        self.memory_share = cp.Parameter(columns)
        self.max_count = cp.Parameter(columns)
        self.prefill_weights = cp.Parameter(2)
        self.server_weights = cp.Parameter(2)
        self.latency_weights = cp.Parameter(2)
        self.theta = cp.Parameter()
        self.deadline = cp.Parameter()

    def load(self, data: ProgramData) -> None:
        """Takes the data of a candidate."""
        for name, parameter in vars(self).items():
            parameter.value = getattr(data, name)


def assign_each_layer(v: Variables) -> list[cp.Constraint]:
    """Sum_k z[i,j,k] = x[i,j]: a layer has one scheme on the stage that it is on, and none elsewhere."""
    return [_named("layer-assigned", v.choice @ v.per_stage.T == v.on_stage())]


def count_layers(v: Variables) -> list[cp.Constraint]:
    """Sum_i z[i,j,k] = n[j,k].

    With x and n integral these rows and those of `assign_each_layer` are a transportation problem, whose vertices are
    integral: z needs no integrality, and the solver branches over N*K counts and the cuts instead of L*N*K choices.
    """
    return [_named("layer-count", cp.sum(v.choice, axis=0) == v.count)]


def keep_stages_contiguous(v: Variables) -> list[cp.Constraint]:
    """s[i,j] >= s[i+1,j] and s[i,j] <= s[i,j+1]: layers and stages ascend together."""
    if v.passed is None:
        return []
    rows = [_named("contiguous-layers", v.passed[:-1] >= v.passed[1:])] if v.passed.shape[0] > 1 else []
    if v.passed.shape[1] > 1:
        rows.append(_named("contiguous-stages", v.passed[:, :-1] <= v.passed[:, 1:]))
    return rows


def use_every_stage(v: Variables) -> list[cp.Constraint]:
    """Sum_k n[j,k] >= 1. A device that is better left out is not a stage: the search tries the shorter pipeline."""
    return [_named("stage-used", v.per_stage @ v.count >= 1)]


def run_only_what_devices_can(v: Variables, p: Parameters) -> list[cp.Constraint]:
    """0 <= n[j,k] <= L where device j can run scheme k, else 0."""
    return [_named("scheme-count-lower", v.count >= 0), _named("scheme-count-upper", v.count <= p.max_count)]


def allow_only_given_schemes(v: Variables, is_allowed: np.ndarray) -> list[cp.Constraint]:
    """z[i,j,k] = 0 for every stage j, where layer i may not have scheme k."""
    forbidden = np.tile(~is_allowed, (1, len(v.per_stage)))
    return [_named("scheme-allowed", v.choice[forbidden] == 0)] if forbidden.any() else []


def fit_memory(v: Variables, p: Parameters) -> list[cp.Constraint]:
    """Sum_k n[j,k] * BYTES[j,k] <= CAPACITY[j]."""
    return [_named("memory", v.per_stage @ cp.multiply(p.memory_share, v.count) <= 1)]


def time_prefill(v: Variables, p: Parameters) -> list[cp.Constraint]:
    """T[j] = OUTSIDE[j] + Sum_k n[j,k] * LAYER[j,k];  T_max >= T[j], LINK[j];  T_sum = Sum_j T[j] + LINK[j]."""
    return [
        _named("prefill-stage", v.prefill_s == p.outside_prefill + v.per_stage @ cp.multiply(p.layer_prefill, v.count)),
        _named("prefill-slowest-stage", v.slowest_prefill_s >= v.prefill_s),
        _named("prefill-slowest-link", v.slowest_prefill_s >= p.link_prefill),
        _named("prefill-total", v.prefill_total_s == cp.sum(v.prefill_s) + cp.sum(p.link_prefill)),
    ]


def time_decode(v: Variables, p: Parameters) -> list[cp.Constraint]:
    """As `time_prefill`, for one decode micro-batch."""
    return [
        _named("decode-stage", v.decode_s == p.outside_decode + v.per_stage @ cp.multiply(p.layer_decode, v.count)),
        _named("decode-slowest-stage", v.slowest_decode_s >= v.decode_s),
        _named("decode-slowest-link", v.slowest_decode_s >= p.link_decode),
        _named("decode-total", v.decode_total_s == cp.sum(v.decode_s) + cp.sum(p.link_decode)),
    ]


def close_the_loop(v: Variables, p: Parameters) -> list[cp.Constraint]:
    """Both branches of `timeline.closed_loop_s`, with lanes M and rounds R.

    D >= T_sum + (M * R - 1) * T_max;  D >= R * T_sum + (M - 1) * T_max
    """
    times = cp.hstack([v.decode_total_s, v.slowest_decode_s])
    return [
        _named("decode-server-bound", v.decode_end_s >= p.server_weights @ times),
        _named("decode-latency-bound", v.decode_end_s >= p.latency_weights @ times),
    ]


def sum_losses(v: Variables, omega: np.ndarray, quality_budget: float | None) -> list[cp.Constraint]:
    """Q = Sum_ijk OMEGA[i,k] * z[i,j,k], and Q <= BUDGET if there is one."""
    finite = np.where(np.isfinite(omega), omega, 0.0)
    rows = [_named("loss", v.loss == cp.sum(cp.multiply(np.tile(finite, (1, len(v.per_stage))), v.choice)))]
    if quality_budget is not None:
        rows.append(_named("quality-budget", v.loss <= quality_budget))
    return rows


def meet_the_deadline(v: Variables, p: Parameters, deadline_s: float | None) -> list[cp.Constraint]:
    """T_sum + (P - 1) * T_max of prefill + D <= DEADLINE, if there is one."""
    if deadline_s is None:
        return []
    return [_named("deadline", _prefill_end(v, p) + v.decode_end_s <= p.deadline)]


def sum_objective(v: Variables, p: Parameters) -> list[cp.Constraint]:
    """OBJECTIVE = T_sum + (P - 1) * T_max of prefill + D + THETA * Q, with P prefill frames."""
    return [_named("objective", v.objective == _prefill_end(v, p) + v.decode_end_s + p.theta * v.loss)]


def _prefill_end(v: Variables, p: Parameters) -> cp.Expression:
    return p.prefill_weights @ cp.hstack([v.prefill_total_s, v.slowest_prefill_s])


def _named(name: str, constraint: Any) -> cp.Constraint:
    return constraint.set_label(name)

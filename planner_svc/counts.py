"""The program without the order of layers: how many layers each stage has at each scheme.

Times and memory depend on these counts alone; the order of layers only says which of them can have which scheme. So
this is the whole problem where all layers cost the same in quality. Where they do not, a scheme may go to the layers
that suffer least from it wherever they are: a lower bound, and counts from which a good assignment can be made.

There are N*K integers and no cuts, and HiGHS takes a hundredth of the time that it takes for the full program of
`milp`. The rows go to HiGHS directly: a search solves thousands of these, and modelling would take longer than solving.

    min   PREFILL_WEIGHTS * (T_sum, T_max) + E + THETA * Q       (times in units, see `ProgramData`)
    n[j,k] >= 0 integer, at most MAX_COUNT[j,k];  z[r,k] >= 0, 0 where layers of kind r may not have scheme k
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import highspy
import numpy as np
from numpy.typing import NDArray

from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.program_data import TOLERANCE, ProgramData

#: Kinds of layers that a bound tells apart.
_MAX_KINDS = 16

#: (kinds, schemes) omega of each kind of layers, and how many layers are of it.
Kinds = tuple[Floats, NDArray[np.int64]]


@dataclass(frozen=True)
class CountsSolution:
    """What a solve came to.

    Attributes:
        counts: (stages, schemes) layers, whole numbers; None if none were found.
        bound_s: No assignment has a lower objective.
        is_final: Whether a longer solve could not find more.
    """

    counts: Floats | None
    bound_s: float
    is_final: bool


def counts_bound_s(problem: AssignmentProblem) -> float:
    """A lower bound on the objective: that of counts that may be fractions; infinite if there are none.

    Args:
        problem: One that fits (`AssignmentProblem.fits`).
    """
    data = ProgramData.of(problem)
    solver = solved(CountsProgram(problem, data, coarse_kinds(problem.omega)).model(is_relaxed=True), {})
    if solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
        return inf
    is_optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return float(solver.getInfo().objective_function_value * data.unit_s) if is_optimal else 0.0


def solve_counts(
    problem: AssignmentProblem, *, time_limit_s: float = inf, cutoff_s: float = inf, relative_gap: float = 0.0
) -> CountsSolution:
    """The counts with the least objective.

    Args:
        problem: One that fits (`AssignmentProblem.fits`).
        time_limit_s: The best counts found by then are returned, with the bound proven by then.
        cutoff_s: What is not below it is of no interest.
        relative_gap: Stop when the bound is this close to the best counts.
    """
    data = ProgramData.of(problem)
    options = {"time_limit": time_limit_s, "mip_rel_gap": relative_gap, "mip_feasibility_tolerance": TOLERANCE}
    if cutoff_s < inf:
        options["objective_bound"] = cutoff_s / data.unit_s
    kinds = np.unique(problem.omega, axis=0, return_counts=True)
    solver = solved(CountsProgram(problem, data, kinds).model(is_relaxed=False), options)
    status, info = solver.getModelStatus(), solver.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return CountsSolution(None, cutoff_s, is_final=True)
    is_final = status != highspy.HighsModelStatus.kTimeLimit
    # With a cutoff, HiGHS gives up whatever cannot be below it, so its bound holds up to the cutoff only.
    bound_s = min(info.mip_dual_bound * data.unit_s, cutoff_s)
    if info.primal_solution_status == 0:
        return CountsSolution(None, bound_s, is_final)
    values = np.array(solver.getSolution().col_value[: problem.num_stages * problem.num_schemes])
    return CountsSolution(np.rint(values).reshape(problem.num_stages, -1), bound_s, is_final)


def solved(model: highspy.HighsLp, options: Mapping[str, float]) -> highspy.Highs:
    """HiGHS after solving a model, quietly and in one thread."""
    solver = highspy.Highs()  # type: ignore[no-untyped-call]  # it ships no types
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    for name, value in options.items():
        solver.setOptionValue(name, value)
    solver.passModel(model)
    solver.run()
    return solver


def coarse_kinds(omega: Floats) -> Kinds:
    """At most `_MAX_KINDS` kinds of layers, none of which costs more than any layer that it stands for.

    Neighbours in the order of what they cost stand together, so little is lost. Where layers may not have every scheme,
    those that differ are kept apart.
    """
    kinds, sizes = np.unique(omega, axis=0, return_counts=True)
    if len(kinds) <= _MAX_KINDS or not np.isfinite(kinds).all():
        return kinds, sizes
    order = np.argsort(omega.sum(axis=1))
    groups = np.array_split(order, _MAX_KINDS)
    return np.array([omega[group].min(axis=0) for group in groups]), np.array([len(group) for group in groups])


class CountsProgram:
    """Columns are n (N*K), z (R*K), the slowest server in prefill and in decode, and the end of decoding.

    Attributes:
        slowest: Columns of the slowest server, in prefill and in decode.
        time_rows: The first of the rows of stage times in prefill, and in decode.
        loop_rows: The first of the two rows, server and latency, of `timeline.closed_loop_s`.
        budget_row, deadline_row: Those of the quality budget and of the deadline, if there are any.
    """

    def __init__(self, problem: AssignmentProblem, data: ProgramData, kinds: Kinds) -> None:
        self._problem, self._data = problem, data
        self._kinds, self._kind_sizes = kinds
        self._num_counts, self._num_choices = data.max_count.size, self._kinds.size
        self._slowest_prefill = self._num_counts + self._num_choices
        self._slowest_decode, self._decode_end = self._slowest_prefill + 1, self._slowest_prefill + 2
        self.slowest = self._slowest_prefill, self._slowest_decode
        self._rows: list[tuple[Floats, float, float]] = []

    def model(self, *, is_relaxed: bool) -> highspy.HighsLp:
        """The program as HiGHS takes it."""
        self._give_every_layer_a_scheme()
        self._use_every_stage_and_fit_its_memory()
        self._time_stages()
        self._close_the_loop()
        self._keep_to_the_budget()
        self._meet_the_deadline()
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self._decode_end + 1, len(self._rows)
        model.col_cost_, model.offset_ = self._costs()
        model.col_lower_, model.col_upper_ = self._bounds()
        model.row_lower_ = np.array([lower for _, lower, _ in self._rows])
        model.row_upper_ = np.array([upper for _, _, upper in self._rows])
        _set_matrix(model, np.array([row for row, _, _ in self._rows]))
        if not is_relaxed:
            kinds = highspy.HighsVarType
            num_continuous = self._num_choices + 3
            model.integrality_ = [kinds.kInteger] * self._num_counts + [kinds.kContinuous] * num_continuous
        return model

    def _give_every_layer_a_scheme(self) -> None:
        """Sum_k z[r,k] = layers of kind r;  Sum_r z[r,k] = Sum_j n[j,k]."""
        num_schemes = self._problem.num_schemes
        for kind, size in enumerate(self._kind_sizes):
            row = self._row()
            first = self._num_counts + kind * num_schemes
            row[first : first + num_schemes] = 1
            self._rows.append((row, size, size))
        for scheme in range(num_schemes):
            row = self._row()
            row[scheme : self._num_counts : num_schemes] = -1
            row[self._num_counts + scheme : self._slowest_prefill : num_schemes] = 1
            self._rows.append((row, 0, 0))

    def _use_every_stage_and_fit_its_memory(self) -> None:
        """Sum_k n[j,k] >= 1;  Sum_k n[j,k] * BYTES[j,k] <= CAPACITY[j]."""
        for stage in range(self._problem.num_stages):
            columns = self._columns(stage)
            used, memory = self._row(), self._row()
            used[columns] = 1
            memory[columns] = self._data.memory_share[columns]
            self._rows += [(used, 1, inf), (memory, -inf, 1)]

    def _time_stages(self) -> None:
        """T_max >= OUTSIDE[j] + Sum_k n[j,k] * LAYER[j,k], in both phases; links are lower bounds of T_max."""
        data = self._data
        self.time_rows = len(self._rows), len(self._rows) + self._problem.num_stages
        for slowest, layer, outside in (
            (self._slowest_prefill, data.layer_prefill, data.outside_prefill),
            (self._slowest_decode, data.layer_decode, data.outside_decode),
        ):
            for stage in range(self._problem.num_stages):
                row = self._row()
                row[self._columns(stage)] = -layer[self._columns(stage)]
                row[slowest] = 1
                self._rows.append((row, outside[stage], inf))

    def _close_the_loop(self) -> None:
        """E >= SERVER_WEIGHTS * (T_sum, T_max);  E >= LATENCY_WEIGHTS * (T_sum, T_max): `timeline.closed_loop_s`."""
        fixed = self._data.outside_decode.sum() + self._data.link_decode.sum()
        self.loop_rows = len(self._rows)
        for of_sum, of_slowest in (self._data.server_weights, self._data.latency_weights):
            row = self._row()
            row[: self._num_counts] = -of_sum * self._data.layer_decode
            row[self._slowest_decode] = -of_slowest
            row[self._decode_end] = 1
            self._rows.append((row, of_sum * fixed, inf))

    def _keep_to_the_budget(self) -> None:
        """Q = Sum_rk OMEGA[r,k] * z[r,k] <= BUDGET, if there is one."""
        self.budget_row = len(self._rows)
        if self._problem.quality_budget is not None:
            row = self._row()
            row[self._num_counts : self._slowest_prefill] = self._omega
            self._rows.append((row, -inf, self._problem.quality_budget))

    def _meet_the_deadline(self) -> None:
        """PREFILL_WEIGHTS * (T_sum, T_max) + E <= DEADLINE, if there is one."""
        self.deadline_row = len(self._rows)
        if self._problem.deadline_s is not None:
            row, fixed = self._costs()
            row[self._num_counts : self._slowest_prefill] = 0
            self._rows.append((row, -inf, self._data.deadline - fixed))

    def _costs(self) -> tuple[Floats, float]:
        """What each column adds to the objective, and what is added in any case."""
        data = self._data
        of_sum, of_slowest = data.prefill_weights
        costs = self._row()
        costs[: self._num_counts] = of_sum * data.layer_prefill
        costs[self._num_counts : self._slowest_prefill] = data.theta * self._omega
        costs[self._slowest_prefill], costs[self._decode_end] = of_slowest, 1
        return costs, float(of_sum * (data.outside_prefill.sum() + data.link_prefill.sum()))

    def _bounds(self) -> tuple[Floats, Floats]:
        lower, upper = self._row(), np.full(self._decode_end + 1, inf)
        upper[: self._num_counts] = self._data.max_count
        upper[self._num_counts : self._slowest_prefill] = np.where(np.isfinite(self._kinds), inf, 0.0).ravel()
        lower[self._slowest_prefill] = self._data.link_prefill.max()
        lower[self._slowest_decode] = self._data.link_decode.max()
        return lower, upper

    @property
    def _omega(self) -> Floats:
        return np.where(np.isfinite(self._kinds), self._kinds, 0.0).ravel()

    def _columns(self, stage: int) -> slice:
        return slice(stage * self._problem.num_schemes, (stage + 1) * self._problem.num_schemes)

    def _row(self) -> Floats:
        return np.zeros(self._decode_end + 1)


def _set_matrix(model: highspy.HighsLp, matrix: Floats) -> None:
    rows, columns = np.nonzero(matrix)
    starts = np.concatenate(([0], np.bincount(rows, minlength=len(matrix)).cumsum()))
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_ = starts, columns
    model.a_matrix_.value_ = matrix[rows, columns]

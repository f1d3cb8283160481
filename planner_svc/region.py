"""Where assignments below a cutoff can be: ranges of what they consist of, from the relaxed counts program.

With one more row, OBJECTIVE <= CUTOFF, each quantity is once minimized and once maximized (optimality-based bound
tightening). A hundred of these programs differ in their costs only and take a tenth of a second together.
"""

from dataclasses import dataclass
from math import ceil, floor, inf

import highspy
import numpy as np
from numpy.typing import NDArray

from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.counts import CountsProgram, coarse_kinds, solved
from planner_svc.program_data import ProgramData

Integers = NDArray[np.int64]
#: (lowest, highest)
Range = tuple[float, float]

#: Ranges are this much wider than HiGHS says, which solves to 1e-7.
_SLACK = 1e-6


@dataclass(frozen=True)
class Region:
    """Ranges that hold for every assignment below the cutoff; times in the units of `ProgramData`.

    Attributes:
        slowest: (2, phases) range of the slowest server's time in prefill and in decode.
        num_layers: (2, stages) range of the layers of a stage.
        cuts: (2, stages + 1) range of the layers before each stage, and of all.
        max_counts: (stages, schemes) most layers of a stage at a scheme.
        shares: (phases, stages) which stages the slowest server's time depends on: the dual prices, as shares of 1.
        server_share: Share of the server-bound branch of the closed loop in its dual prices, 0 to 1.
        loss_price, time_price: Dual prices of the quality budget and of the deadline; 0 if there is none.
    """

    slowest: Floats
    num_layers: Integers
    cuts: Integers
    max_counts: Integers
    shares: Floats
    server_share: float
    loss_price: float
    time_price: float


def region_below(problem: AssignmentProblem, cutoff_s: float) -> Region | None:
    """The region of the assignments whose objective is below `cutoff_s`; None if there are none.

    Args:
        problem: One that fits (`AssignmentProblem.fits`).
        cutoff_s: Infinite where every assignment is of interest.
    """
    ranges = _Ranges(problem, cutoff_s)
    if ranges.is_empty:
        return None
    stages, schemes = range(problem.num_stages), problem.num_schemes
    columns = np.arange(problem.num_stages * schemes).reshape(-1, schemes)
    num_layers = [ranges.whole(columns[stage].tolist()) for stage in stages]
    cuts = [ranges.whole(columns[:stage].ravel().tolist()) for stage in stages[1:]]
    slowest = [ranges.of([column]) for column in ranges.program.slowest]
    max_counts = [[ranges.most([column]) for column in row] for row in columns.tolist()]
    return Region(
        slowest=np.array(slowest).T + np.array([[-_SLACK], [_SLACK]]),
        num_layers=np.array(num_layers).T,
        cuts=np.array([(0, 0), *cuts, (problem.num_layers, problem.num_layers)]).T,
        max_counts=np.array(max_counts),
        shares=ranges.shares,
        server_share=ranges.server_share,
        loss_price=ranges.loss_price,
        time_price=ranges.time_price,
    )


class _Ranges:
    """The relaxed program, solved once for its dual prices and then again and again for ranges."""

    def __init__(self, problem: AssignmentProblem, cutoff_s: float) -> None:
        data = ProgramData.of(problem)
        self.program = CountsProgram(problem, data, coarse_kinds(problem.omega))
        self._num_layers = float(problem.num_layers)
        model = self.program.model(is_relaxed=True)
        self._columns = np.arange(model.num_col_, dtype=np.int32)
        self._solver = solved(model, {})
        self.is_empty = self._solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible
        prices = np.abs(self._solver.getSolution().row_dual)
        stages = [prices[first : first + problem.num_stages] for first in self.program.time_rows]
        self.shares = np.array([prices / (prices.sum() or 1.0) for prices in stages])
        server, latency = prices[self.program.loop_rows : self.program.loop_rows + 2]
        self.server_share = float(server / ((server + latency) or 1.0))
        self.loss_price = 0.0 if problem.quality_budget is None else float(prices[self.program.budget_row])
        self.time_price = 0.0 if problem.deadline_s is None else float(prices[self.program.deadline_row])
        if cutoff_s < inf and not self.is_empty:
            self._cut_off(model, cutoff_s / data.unit_s)
        self._solver.changeObjectiveOffset(0.0)

    def _cut_off(self, model: highspy.HighsLp, cutoff: float) -> None:
        costs = np.array(model.col_cost_)
        used = np.flatnonzero(costs).astype(np.int32)
        self._solver.addRow(-highspy.kHighsInf, cutoff + _SLACK - model.offset_, len(used), used, costs[used])
        self._solver.run()
        self.is_empty = self._solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible

    def of(self, columns: list[int]) -> Range:
        """Range of a sum of columns; infinite where the program does not say."""
        return self._extreme(columns, 1.0), self._extreme(columns, -1.0)

    def whole(self, columns: list[int]) -> tuple[int, int]:
        """Range of a sum of columns that is a number of layers, at least one."""
        return ceil(max(self._extreme(columns, 1.0), 1.0) - _SLACK), self.most(columns)

    def most(self, columns: list[int]) -> int:
        """Most layers that a sum of columns can come to."""
        return floor(min(self._extreme(columns, -1.0), self._num_layers) + _SLACK)

    def _extreme(self, columns: list[int], sign: float) -> float:
        costs = np.zeros(len(self._columns))
        costs[columns] = sign
        self._solver.changeColsCost(len(costs), self._columns, costs)
        self._solver.run()
        is_optimal = self._solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return sign * float(self._solver.getInfo().objective_function_value) if is_optimal else -sign * inf

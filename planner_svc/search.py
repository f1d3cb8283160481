"""The outer search: best-first over candidates, each bounded ever more closely before its program is solved.

A candidate enters with a bound that costs microseconds (`SearchSpace.objective_bounds_s`), comes back with that of
the relaxed program, and is solved only if it is still the most promising. The search ends when no candidate is left
that could improve on the incumbent by more than the optimality gap that the options allow.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from math import inf

from llmpq.plan import Plan
from planner_svc.assignment import AssignmentProblem
from planner_svc.infeasible import explain
from planner_svc.milp import AssignmentModel
from planner_svc.space import Candidate, SearchSpace

#: Improvements that arithmetic cannot tell from none, as a share of the objective.
_LEAST_GAP = 1e-9
#: Gap of a single program, as a share of the gap that the search allows.
_SOLVE_GAP_SHARE = 0.05

#: Relaxed programs to solve at most before the next full one.
_RELAXATIONS_PER_SOLVE = 25

#: Longest single solve, so that a cancelled search ends soon.
_SOLVE_LIMIT_S = 5.0


@dataclass(frozen=True)
class Progress:
    """How far a search is; `best_objective_s` is infinite until there is a plan."""

    candidates_done: int
    candidates_total: int
    best_objective_s: float


#: Told of progress after each step. Whatever it raises ends the search.
OnProgress = Callable[[Progress], None]


class Search:
    """One search.

    Args:
        space: Where to search.
        incumbent: A plan to improve on, or None.
        deadline: Value of `time.monotonic` at which to stop and return the best plan so far.
        on_progress: Told after each step.
    """

    def __init__(self, space: SearchSpace, incumbent: Plan | None, deadline: float, on_progress: OnProgress) -> None:
        self._space = space
        self._best = incumbent
        self._deadline = deadline
        self._on_progress = on_progress
        self._models: dict[tuple[int, bool], AssignmentModel] = {}
        self._bounded: list[tuple[float, int]] = []  # heaps of (bound, number of the candidate)
        self._relaxed: list[tuple[float, int]] = []
        self._closed_bound_s = inf
        self._num_relaxed_since_solve = 0
        self._is_any_undecided = False

    def run(self) -> Plan:
        """The best plan found, with the gap to what is not excluded.

        Raises:
            DoesNotFitError: No candidate fits the memory, even at its most compressed.
            PreconditionError: The quality budget cannot be met, or no plan was found in time.
        """
        candidates = self._space.candidates
        self._bounded = [(bound_s, number) for number, bound_s in enumerate(self._space.objective_bounds_s)]
        heapify(self._bounded)
        while self._open_bound_s < self._cutoff_s and not self._is_late:
            if self._should_solve():
                self._solve(candidates, *heappop(self._relaxed))
            else:
                self._relax(candidates, *heappop(self._bounded))
            self._on_progress(Progress(len(candidates) - self._num_open, len(candidates), self._best_objective_s))
        if self._best is None:
            raise explain(self._space, is_exhaustive=not self._num_open and not self._is_any_undecided)
        return self._with_gap(self._best)

    @property
    def _best_objective_s(self) -> float:
        return self._space.objective_s(self._best) if self._best else inf

    @property
    def _cutoff_s(self) -> float:
        """An objective must be below this to be of interest."""
        return self._best_objective_s * (1 - max(self._space.options.effective_optimality_gap, _LEAST_GAP))

    @property
    def _solve_gap(self) -> float:
        return max(self._space.options.effective_optimality_gap * _SOLVE_GAP_SHARE, _LEAST_GAP)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline

    @property
    def _num_open(self) -> int:
        return len(self._bounded) + len(self._relaxed)

    @property
    def _open_bound_s(self) -> float:
        """No open candidate has a lower objective; infinite if none is open."""
        return min((heap[0][0] for heap in (self._bounded, self._relaxed) if heap), default=inf)

    def _should_solve(self) -> bool:
        """Solve once the best relaxed candidate leads, or after a while in any case: incumbents prune."""
        if not self._relaxed:
            return False
        is_leading = not self._bounded or self._relaxed[0] <= self._bounded[0]
        return is_leading or self._num_relaxed_since_solve >= _RELAXATIONS_PER_SOLVE

    def _relax(self, candidates: list[Candidate], bound_s: float, number: int) -> None:
        """Replaces a candidate's bound by that of its relaxed program; drops it if it cannot fit."""
        problem = self._space.problem(candidates[number])
        if not problem.fits():
            return
        self._num_relaxed_since_solve += 1
        relaxed = self._model(problem, is_relaxed=True).solve(problem, time_limit_s=_SOLVE_LIMIT_S)
        if relaxed.bound_s < inf:
            heappush(self._relaxed, (max(bound_s, relaxed.bound_s), number))

    def _solve(self, candidates: list[Candidate], bound_s: float, number: int) -> None:
        """Solves a candidate's program and keeps its plan if it is the best so far."""
        self._num_relaxed_since_solve = 0
        problem = self._space.problem(candidates[number])
        time_limit_s = min(_SOLVE_LIMIT_S, max(self._deadline - time.monotonic(), 0.0))
        model = self._model(problem, is_relaxed=False)
        limits = {"time_limit_s": time_limit_s, "cutoff_s": self._cutoff_s, "relative_gap": self._solve_gap}
        solution = model.solve(problem, **limits)
        self._closed_bound_s = min(self._closed_bound_s, max(bound_s, solution.bound_s))
        if solution.assignment is None:
            self._is_any_undecided |= solution.bound_s < self._cutoff_s
        else:
            plan = self._space.plan(candidates[number], solution.assignment, "llm-pq")
            if self._space.objective_s(plan) < self._best_objective_s:
                self._best = plan

    def _model(self, problem: AssignmentProblem, *, is_relaxed: bool) -> AssignmentModel:
        key = problem.num_stages, is_relaxed
        if key not in self._models:
            self._models[key] = AssignmentModel(problem, is_relaxed=is_relaxed)
        return self._models[key]

    def _with_gap(self, plan: Plan) -> Plan:
        objective_s = self._best_objective_s
        bound_s = min(self._open_bound_s, self._closed_bound_s)
        gap = max(1 - bound_s / objective_s, 0.0) if objective_s else 0.0
        return replace(plan, estimate=replace(plan.estimate, gap=gap))

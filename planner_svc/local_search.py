"""The outer search without a solver: quick starts for every candidate, then bit-width transfer from the best."""

from dataclasses import replace
from heapq import nsmallest
from math import inf

import numpy as np

from llmpq.plan import Plan
from planner_svc.milp import Assignment
from planner_svc.search import OnProgress, Progress
from planner_svc.space import SearchSpace
from planner_svc.starts import price, starts
from planner_svc.transfer import Transfer

#: Layers of the candidates to find quick starts for, those of the lowest bounds, for each second that a search may
#: take. What is done is counted rather than timed, so that the same problem gets the same plan, and so that llm-pq,
#: which begins with this search, cannot be worse than it.
_STARTED_LAYERS_PER_S = 3_000
#: Candidates to improve, those with the best starts: so many, and so many more for each second.
_LEAST_IMPROVED, _IMPROVED_PER_S = 4, 0.3
#: Work of all improvements, see `Transfer`, for each second: about a fifth of it.
WORK_PER_S = 1_500
#: Starts of one candidate that are improved.
_NUM_STARTS = 2
#: An improvement by less is not worth a further candidate.
_TOLERANCE = 1e-6


class LocalSearch:
    """One search.

    Args:
        space: Where to search.
        on_progress: Told after each candidate.
    """

    def __init__(self, space: SearchSpace, on_progress: OnProgress) -> None:
        self._space = space
        self._best: Plan | None = None
        self._on_progress = on_progress
        self._work_left = WORK_PER_S * space.options.time_limit_s

    def run(self) -> Plan | None:
        """The best plan found, if any is; its gap is to the best bound of any candidate."""
        started = self._started()
        most = _LEAST_IMPROVED + _IMPROVED_PER_S * self._space.options.time_limit_s
        for done, number in enumerate(sorted(started, key=lambda number: started[number][0][0])):
            if self._best and (done >= most or self._work_left <= 0):
                break
            if self._space.objective_bounds_s[number] < self._best_objective_s * (1 - _TOLERANCE):
                self._improve(number, [start for _, start in started[number]])
            self._on_progress(Progress(done + 1, len(self._space.candidates), self._best_objective_s))
        return self._with_gap(self._best) if self._best else None

    @property
    def _best_objective_s(self) -> float:
        return self._space.objective_s(self._best) if self._best else inf

    def _started(self) -> dict[int, list[tuple[float, Assignment]]]:
        """The best starts of each candidate with what they come to, candidates of the lowest bounds first."""
        bounds = self._space.objective_bounds_s
        most = _STARTED_LAYERS_PER_S * self._space.options.time_limit_s / self._space.num_rows
        started: dict[int, list[tuple[float, Assignment]]] = {}
        for number in np.argsort(bounds, kind="stable"):
            if started and len(started) >= most:
                break
            problem = self._space.problem(self._space.candidates[number])
            priced = [(price(problem, start), start) for start in starts(problem)] if problem.fits() else []
            if priced:
                started[int(number)] = nsmallest(_NUM_STARTS, priced, key=lambda start: start[0])
        return started

    def _improve(self, number: int, starts: list[Assignment]) -> None:
        problem = self._space.problem(self._space.candidates[number])
        for start in starts:
            transfer = Transfer(problem, work=self._work_left / _NUM_STARTS)
            assignment, objective_s = transfer.improve(start)
            self._work_left -= transfer.work
            if objective_s < self._best_objective_s:
                self._best = self._space.plan(self._space.candidates[number], assignment, "")

    def _with_gap(self, plan: Plan) -> Plan:
        objective_s = self._best_objective_s
        gap = max(1 - min(self._space.objective_bounds_s) / objective_s, 0.0) if objective_s else 0.0
        return replace(plan, estimate=replace(plan.estimate, gap=gap))

"""Bit-width transfer: local search over cuts and precisions, for problems that are too large to solve exactly in time.

LLM-PQ's heuristic moves layers from the slowest stage to a faster one and pays for their memory by precision; every
move keeps the global numbers of layers at each precision. Here a move is elementary (slide a boundary, raise or lower
one layer's precision), and one or two are made at a time, so that precision can also be bought and sold.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, permutations
from math import inf

import numpy as np
from numpy.typing import NDArray

from planner_svc.assignment import AssignmentProblem, Floats
from planner_svc.milp import Assignment

Integers = NDArray[np.int64]

#: Layers that change stages in one slide, at most.
_MAX_SLIDE = 2
#: Moves that are tried in pairs with every change of precision: those that are best alone, whether or not they fit.
_NUM_LEADING = 120
#: Pairs are ranked by what they would come to if they did not touch the same layers; so many are tried in truth.
_NUM_TRIED = 12
#: Steps that are made whatever they take.
_LEAST_STEPS = 10


@dataclass(frozen=True)
class _State:
    """stage and scheme of each layer, (layers) each."""

    stage: Integers
    scheme: Integers


@dataclass(frozen=True)
class _Move:
    """Layers that get schemes, and in a slide stages: (moved) each."""

    layers: Integers
    schemes: Integers
    stages: Integers | None = None

    def applied(self, state: _State) -> _State:
        stage, scheme = state.stage.copy(), state.scheme.copy()
        scheme[self.layers] = self.schemes
        if self.stages is not None:
            stage[self.layers] = self.stages
        return _State(stage, scheme)


class Transfer:
    """Improves assignments of one inner problem.

    Args:
        problem: The inner problem.
        deadline: Value of `time.monotonic` at which to stop; never by default.
        work: Stop where steps have come to this much, after ten at least. A step takes about 0.1 ms * stages^2.
    """

    def __init__(self, problem: AssignmentProblem, deadline: float = inf, work: float = inf) -> None:
        self._problem = problem
        self._deadline = deadline
        self._max_steps = max(work / problem.num_stages**2, _LEAST_STEPS)
        self._num_steps = 0

    @property
    def work(self) -> int:
        """What the steps so far came to, in squares of stages."""
        return self._num_steps * self._problem.num_stages**2

    def improve(self, start: Assignment) -> tuple[Assignment, float]:
        """The local optimum reached from an assignment, and its objective; infinite if nothing that fits is reached."""
        state = _State(
            np.repeat(np.arange(len(start)), [len(stage) for stage in start]),
            np.concatenate([np.array(stage, dtype=np.int64) for stage in start]),
        )
        objective_s = self._objective_s(state)
        while time.monotonic() < self._deadline and self._num_steps < self._max_steps:
            self._num_steps += 1
            better = self._step(state, objective_s)
            if better is None:
                break
            state, objective_s = better
        cuts = np.searchsorted(state.stage, np.arange(len(start) + 1))
        assignment = tuple(tuple(int(scheme) for scheme in state.scheme[first:end]) for first, end in pairwise(cuts))
        return assignment, objective_s

    def _step(self, state: _State, objective_s: float) -> tuple[_State, float] | None:
        """The best single move or pair of moves; None if none improves."""
        slides, changes = list(self._slides(state)), list(self._changes(state))
        moves = slides + changes
        if not moves:
            return None
        effects, losses = self._effects(state, moves)
        here, loss = self._counts(state)[None], self._loss(state)
        alone = self._problem.objectives_s(here + effects, loss + losses)
        ignoring_memory = np.where(np.isfinite(alone), alone, self._unchecked(here + effects, loss + losses))
        leading = np.argsort(ignoring_memory)[:_NUM_LEADING]
        paired = self._paired(
            state, (effects[leading], losses[leading]), (effects[len(slides) :], losses[len(slides) :])
        )
        first, second = np.repeat(leading, len(changes)), np.tile(np.arange(len(slides), len(moves)), len(leading))
        promised = np.concatenate((alone, paired))
        for number in np.argsort(promised)[:_NUM_TRIED]:
            if promised[number] >= objective_s * (1 - 1e-9):
                return None
            chosen = [number] if number < len(moves) else [first[number - len(moves)], second[number - len(moves)]]
            candidate = state
            for index in chosen:
                candidate = moves[index].applied(candidate)
            reached_s = self._objective_s(candidate)
            if reached_s < objective_s * (1 - 1e-9):
                return candidate, reached_s
        return None

    def _paired(self, state: _State, first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> Floats:
        """(first * second) objectives of each of the first moves together with each of the second.

        Moves are given by their effects. What stages come to is added up, which takes a fraction of the time of adding
        up counts.
        """
        problem = self._problem
        here, one, other = (problem.stage_sums(each) for each in (self._counts(state)[None], first[0], second[0]))
        outside = (problem.outside_prefill_s, problem.outside_decode_s, 0.0, 0.0)
        prefill, decode, used, layers = (
            (here[part] + outside[part] + one[part][:, None] + other[part]).reshape(-1, problem.num_stages)
            for part in range(4)
        )
        losses = self._loss(state) + (first[1][:, None] + second[1]).ravel()
        return problem.objectives_of_sums_s((prefill, decode, used, layers), losses)

    def _slides(self, state: _State) -> Iterator[_Move]:
        """One or two layers fewer on stage a and more on stage b, boundaries between them sliding along.

        Layers that change stages keep their schemes, or all take the same new one.
        """
        num_stages, num_schemes = self._problem.num_stages, self._problem.num_schemes
        cuts = np.searchsorted(state.stage, np.arange(num_stages + 1)).tolist()
        sizes = [end - first for first, end in pairwise(cuts)]
        for giver, taker in permutations(range(num_stages), 2):
            nearer, farther = sorted((giver, taker))
            for size in range(1, _MAX_SLIDE + 1):
                if sizes[giver] <= size or any(between < size for between in sizes[nearer + 1 : farther]):
                    continue
                passed = np.array(cuts[nearer + 1 : farther + 1])[:, None] + np.arange(size)
                layers = (passed - size if giver < taker else passed).ravel()
                stages = np.arange(nearer, farther).repeat(size) + (giver < taker)
                yield _Move(layers, state.scheme[layers], stages)
                for scheme in range(num_schemes):
                    if self._problem.is_allowed[layers, scheme].all():
                        yield _Move(layers, np.full(len(layers), scheme), stages)

    def _changes(self, state: _State) -> Iterator[_Move]:
        """Another scheme for a layer: of a stage's layers at a scheme, the one that it costs the least."""
        omega = self._problem.omega
        for stage in range(self._problem.num_stages):
            on_stage = np.flatnonzero(state.stage == stage)
            for scheme in range(self._problem.num_schemes):
                layers = on_stage[state.scheme[on_stage] == scheme]
                for other in range(self._problem.num_schemes):
                    if other == scheme or not len(layers) or not self._problem.is_usable[stage, other]:
                        continue
                    costs = omega[layers, other] - omega[layers, scheme]
                    if np.isfinite(costs).any():
                        yield _Move(layers[[int(costs.argmin())]], np.array([other]))

    def _effects(self, state: _State, moves: list[_Move]) -> tuple[Floats, Floats]:
        """What each move alone adds: counts (moves, stages, schemes) and loss (moves)."""
        numbers = np.repeat(np.arange(len(moves)), [len(move.layers) for move in moves])
        layers = np.concatenate([move.layers for move in moves])
        schemes = np.concatenate([move.schemes for move in moves])
        stages = np.concatenate([state.stage[move.layers] if move.stages is None else move.stages for move in moves])
        counts = np.zeros((len(moves), self._problem.num_stages, self._problem.num_schemes))
        np.add.at(counts, (numbers, state.stage[layers], state.scheme[layers]), -1.0)
        np.add.at(counts, (numbers, stages, schemes), 1.0)
        added = self._problem.omega[layers, schemes] - self._problem.omega[layers, state.scheme[layers]]
        return counts, np.bincount(numbers, added, minlength=len(moves)).astype(np.float64)

    def _counts(self, state: _State) -> Floats:
        counts = np.zeros((self._problem.num_stages, self._problem.num_schemes))
        np.add.at(counts, (state.stage, state.scheme), 1.0)
        return counts

    def _loss(self, state: _State) -> float:
        return float(self._problem.omega[np.arange(len(state.scheme)), state.scheme].sum())

    def _objective_s(self, state: _State) -> float:
        return float(self._problem.objectives_s(self._counts(state)[None], np.array([self._loss(state)]))[0])

    def _unchecked(self, counts: Floats, losses: Floats) -> Floats:
        """(many) objectives as if there were memory for all."""
        return self._problem.without_limits().objectives_s(counts, losses)

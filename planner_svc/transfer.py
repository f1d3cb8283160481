"""Bit-width transfer: local search over cuts and precisions, for problems that are too large to solve exactly in time.

LLM-PQ's heuristic moves layers from the slowest stage to a faster one and pays for their memory by precision; every
move keeps the global numbers of layers at each precision. Here a move is elementary (slide a boundary, raise or lower
one layer's precision), and one or two are made at a time, so that precision can also be bought and sold.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

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
        deadline: Value of `time.monotonic` at which to stop.
    """

    def __init__(self, problem: AssignmentProblem, deadline: float) -> None:
        self._problem = problem
        self._deadline = deadline

    def improve(self, start: Assignment) -> tuple[Assignment, float]:
        """The local optimum reached from an assignment, and its objective; infinite if nothing that fits is reached."""
        state = _State(
            np.repeat(np.arange(len(start)), [len(stage) for stage in start]),
            np.concatenate([np.array(stage, dtype=np.int64) for stage in start]),
        )
        objective_s = self._objective_s(state)
        while time.monotonic() < self._deadline:
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
        counts, losses = self._effects(state, moves)
        here, loss = self._counts(state), self._loss(state)
        alone = self._problem.objectives_s(here + counts, loss + losses)
        ignoring_memory = np.where(np.isfinite(alone), alone, self._unchecked(here + counts, loss + losses))
        leading = np.argsort(ignoring_memory)[:_NUM_LEADING]
        others = np.arange(len(slides), len(moves))
        first, second = (side.ravel() for side in np.meshgrid(leading, others, indexing="ij"))
        both = here + counts[first] + counts[second], loss + losses[first] + losses[second]
        paired = self._problem.objectives_s(*both)
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

    def _slides(self, state: _State) -> Iterator[_Move]:
        """One or two layers fewer on stage a and more on stage b, boundaries between them sliding along.

        Layers that change stages keep their schemes, or all take the same new one.
        """
        num_stages, num_schemes = self._problem.num_stages, self._problem.num_schemes
        ends = np.searchsorted(state.stage, np.arange(num_stages), side="right")
        starts = np.concatenate(([0], ends[:-1]))
        for giver in range(num_stages):
            for taker in range(num_stages):
                for size in range(1, _MAX_SLIDE + 1):
                    if giver == taker or ends[giver] - starts[giver] <= size:
                        continue
                    if giver < taker:
                        passed = range(giver, taker)
                        layers = np.concatenate([np.arange(ends[stage] - size, ends[stage]) for stage in passed])
                        stages = np.repeat(np.arange(giver + 1, taker + 1), size)
                    else:
                        passed = range(taker + 1, giver + 1)
                        layers = np.concatenate([np.arange(starts[stage], starts[stage] + size) for stage in passed])
                        stages = np.repeat(np.arange(taker, giver), size)
                    if len(np.unique(layers)) < len(layers) or (np.diff(layers) < 0).any():
                        continue  # a stage in between is smaller than the slide
                    kept = state.scheme[layers]
                    for scheme in (None, *range(num_schemes)):
                        schemes = kept if scheme is None else np.full(len(layers), scheme)
                        if np.isfinite(self._problem.omega[layers, schemes]).all():
                            yield _Move(layers, schemes, stages)

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
        counts = np.zeros((len(moves), self._problem.num_stages, self._problem.num_schemes))
        losses = np.zeros(len(moves))
        omega = self._problem.omega
        for number, move in enumerate(moves):
            old_stages, old_schemes = state.stage[move.layers], state.scheme[move.layers]
            np.add.at(counts[number], (old_stages, old_schemes), -1.0)
            new_stages = old_stages if move.stages is None else move.stages
            np.add.at(counts[number], (new_stages, move.schemes), 1.0)
            losses[number] = (omega[move.layers, move.schemes] - omega[move.layers, old_schemes]).sum()
        return counts, losses

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

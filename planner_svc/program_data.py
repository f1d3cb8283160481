"""The numbers that the programs of a candidate consist of, scaled so that objectives are of the order of 1."""

from dataclasses import dataclass

import numpy as np

from planner_svc.assignment import AssignmentProblem, Floats

#: HiGHS lets rows and integrality be violated by this much. Memory rows are shares of the capacity, so whoever states
#: the capacity leaves this share of it free.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class ProgramData:
    """What a candidate's data come to. Times are those of all frames and rounds, in units of `unit_s`.

    Attributes:
        unit_s: Seconds of one unit of time.
        layer_prefill, layer_decode: (N*K) time of a layer; 0 where the device cannot run the scheme.
        outside_prefill, outside_decode: (N) time of embedding and head.
        link_prefill, link_decode: (N) time of the link to the stage.
        memory_share: (N*K) bytes of a layer with its KV cache, as a share of the stage's capacity.
        max_count: (N*K) L, or 0 where the device cannot run the scheme.
        prefill_weights: (2) of sum and slowest in the prefill time.
        server_weights: (2) of sum and slowest in the decode time when the slowest server never waits.
        latency_weights: (2) the same when no micro-batch waits.
        theta: Objective per unit of loss.
        deadline: Longest time; infinite if there is none.
    """

    unit_s: float
    layer_prefill: Floats
    layer_decode: Floats
    outside_prefill: Floats
    outside_decode: Floats
    link_prefill: Floats
    link_decode: Floats
    memory_share: Floats
    max_count: Floats
    prefill_weights: Floats
    server_weights: Floats
    latency_weights: Floats
    theta: float
    deadline: float

    @classmethod
    def of(cls, problem: AssignmentProblem) -> "ProgramData":
        """The data of a problem that fits (`AssignmentProblem.fits`)."""
        unit_s = problem.time_bound_s() or 1.0
        schedule = problem.schedule
        frames, lanes, rounds = schedule.num_frames, schedule.num_lanes, schedule.num_rounds
        prefill_scale, decode_scale = frames / unit_s, lanes * rounds / unit_s
        return cls(
            unit_s=unit_s,
            layer_prefill=np.where(problem.is_usable, problem.layer_prefill_s, 0.0).ravel() * prefill_scale,
            layer_decode=np.where(problem.is_usable, problem.layer_decode_s, 0.0).ravel() * decode_scale,
            outside_prefill=problem.outside_prefill_s * prefill_scale,
            outside_decode=problem.outside_decode_s * decode_scale,
            link_prefill=problem.link_prefill_s * prefill_scale,
            link_decode=problem.link_decode_s * decode_scale,
            memory_share=(problem.layer_bytes / problem.capacity_bytes[:, None]).ravel(),
            max_count=np.where(problem.is_usable, float(problem.num_layers), 0.0).ravel(),
            prefill_weights=np.array(schedule.prefill_weights) / frames,
            server_weights=np.array(schedule.decode_weights[0]) / max(lanes * rounds, 1),
            latency_weights=np.array(schedule.decode_weights[1]) / max(lanes * rounds, 1),
            theta=problem.theta_s / unit_s,
            deadline=np.inf if problem.deadline_s is None else problem.deadline_s / unit_s,
        )

"""How long a pipeline takes: the two formulas that the evaluator and the optimization model share.

A pipeline is a row of servers that a micro-batch passes one after another: the stages and, between them, the links,
which work beside the stages. Only two numbers matter: `total_s`, the sum of the times of all servers, and `slowest_s`,
the largest of them.

LLM-PQ's objective treats decoding like prefilling, as if each micro-batch went through once. Tokens go round instead:
the next token of a sequence needs the last one. `closed_loop_s` says what that takes; for micro-batches of equal times
both formulas are exact.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64] | np.float64


def open_loop_s(*, total_s: float, slowest_s: float, num_micro_batches: float) -> float:
    """Time of micro-batches that each pass the pipeline once: total + (num_micro_batches - 1) * slowest."""
    if num_micro_batches == 0:
        return 0.0
    return total_s + (num_micro_batches - 1) * slowest_s


def closed_loop_s(*, total_s: float, slowest_s: float, num_lanes: int, num_rounds: int) -> float:
    """Time of `num_lanes` micro-batches that each pass the pipeline `num_rounds` times, a round after its predecessor.

    The larger of

    - total + (num_lanes * num_rounds - 1) * slowest: the slowest server never waits;
    - num_rounds * total + (num_lanes - 1) * slowest: no micro-batch ever waits after the first round.
    """
    return float(closed_loops_s(np.float64(total_s), np.float64(slowest_s), num_lanes=num_lanes, num_rounds=num_rounds))


def closed_loops_s(total_s: Floats, slowest_s: Floats, *, num_lanes: int, num_rounds: int) -> Floats:
    """`closed_loop_s` of many pipelines at once."""
    if num_rounds == 0:
        return np.zeros_like(total_s)
    server_bound = total_s + (num_lanes * num_rounds - 1) * slowest_s
    latency_bound = num_rounds * total_s + (num_lanes - 1) * slowest_s
    return np.maximum(server_bound, latency_bound)

"""How long a pipeline takes: the two formulas that the evaluator and the optimization model share.

A pipeline is a row of servers that a micro-batch passes one after another: the stages and, between them, the links,
which work beside the stages. Only two numbers matter: `total_s`, the sum of the times of all servers, and `slowest_s`,
the largest of them.

LLM-PQ's objective treats decoding like prefilling, as if each micro-batch went through once. Tokens go round instead:
the next token of a sequence needs the last one. `closed_loop_s` says what that takes; for micro-batches of equal times
both formulas are exact.
"""

#: What the sum and the slowest count for in a time.
Weights = tuple[float, float]


def open_loop_weights(num_micro_batches: float, *, is_repeated: bool = False) -> Weights:
    """Of micro-batches that each pass the pipeline once: total + (num_micro_batches - 1) * slowest.

    Where the same comes again and again without a pause, the pipeline is filled only once: num_micro_batches * slowest.
    """
    if num_micro_batches == 0:
        return 0.0, 0.0
    return (0.0, num_micro_batches) if is_repeated else (1.0, num_micro_batches - 1)


def closed_loop_weights(num_lanes: int, num_rounds: int, *, is_repeated: bool = False) -> tuple[Weights, Weights]:
    """Of `num_lanes` micro-batches that each pass the pipeline `num_rounds` times, a round after its predecessor.

    The time is the larger of

    - total + (num_lanes * num_rounds - 1) * slowest: the slowest server never waits;
    - num_rounds * total + (num_lanes - 1) * slowest: no micro-batch ever waits after the first round;

    and where the same comes again and again, of num_lanes * num_rounds * slowest and num_rounds * total.
    """
    if num_rounds == 0:
        return (0.0, 0.0), (0.0, 0.0)
    if is_repeated:
        return (0.0, num_lanes * num_rounds), (num_rounds, 0.0)
    return (1.0, num_lanes * num_rounds - 1), (num_rounds, num_lanes - 1)


def open_loop_s(*, total_s: float, slowest_s: float, num_micro_batches: float) -> float:
    """Time of micro-batches that each pass the pipeline once; see `open_loop_weights`."""
    of_total, of_slowest = open_loop_weights(num_micro_batches)
    return of_total * total_s + of_slowest * slowest_s


def closed_loop_s(*, total_s: float, slowest_s: float, num_lanes: int, num_rounds: int) -> float:
    """Time of lanes that each pass the pipeline `num_rounds` times; see `closed_loop_weights`."""
    branches = closed_loop_weights(num_lanes, num_rounds)
    return max(of_total * total_s + of_slowest * slowest_s for of_total, of_slowest in branches)

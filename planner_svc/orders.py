"""Device orders: which devices a pipeline has, and one after another."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import chain, combinations, islice, product

from llmpq.device import DeviceProfile
from planner_svc.cost import profiles_alike

#: Orders that are tried at most; four unlike devices have 64.
MAX_ORDERS = 100
#: Orders that are compared at most, those of most kinds first: many unlike devices have millions.
_MAX_COMPARED = 1_000

Order = tuple[str, ...]


def orders_of(
    devices: Mapping[str, DeviceProfile], fewest: int, most: int, bound_s: Callable[[Order], float]
) -> list[Order]:
    """Ordered selections of devices; of those that differ in names only, one.

    Where these are more than `MAX_ORDERS`, devices of a kind stay together and all are taken or none, as in LLM-PQ; but
    any may be the first or the last, which have the embedding and the head. Of orders that only differ inside one is
    tried: times and memory depend on the ends, and on which devices there are. Where even these are more than
    `MAX_ORDERS`, those of the first thousand are taken whose bounds are the lowest.

    Args:
        devices: Profiles by name.
        fewest: Devices of an order, at least.
        most: At most.
        bound_s: A lower bound on the time of any plan with an order.
    """
    kinds = _kinds(devices)
    selections = (order for size in range(most, fewest - 1, -1) for order in _selections(kinds, size))
    some = list(islice(selections, MAX_ORDERS + 1))
    if len(some) <= MAX_ORDERS:
        return some
    together = (order[:most] for order in _kinds_together(kinds) if fewest <= len(order))
    found = _of_unlike_ends(islice(together, _MAX_COMPARED), kinds)
    return found if len(found) <= MAX_ORDERS else nsmallest(MAX_ORDERS, found, key=bound_s)


def _kinds(devices: Mapping[str, DeviceProfile]) -> list[list[str]]:
    """The devices, those together that are the same but for their names."""
    kinds: list[list[str]] = []
    for device_id, profile in devices.items():
        alike = next((kind for kind in kinds if profiles_alike(devices[kind[0]], profile)), None)
        if alike is None:
            kinds.append([device_id])
        else:
            alike.append(device_id)
    return kinds


def _selections(kinds: Sequence[Sequence[str]], size: int) -> Iterator[Order]:
    """Ordered selections of `size` devices; of each kind, devices are taken in the order given."""
    if size == 0:
        yield ()
        return
    for number, kind in enumerate(kinds):
        if kind:
            left = [*kinds[:number], kind[1:], *kinds[number + 1 :]]
            for rest in _selections(left, size - 1):
                yield (kind[0], *rest)


def _kinds_together(kinds: Sequence[Sequence[str]]) -> Iterator[Order]:
    """Any selection of kinds, one after another: any first, and any other one, or a device of the same, last."""
    for num_kinds in range(len(kinds), 0, -1):
        for chosen in combinations(kinds, num_kinds):
            for first, last in product(chosen, chosen):
                inside = chain.from_iterable(kind for kind in chosen if kind is not first and kind is not last)
                if first is not last:
                    yield (*first, *inside, *last)
                elif len(first) > 1 or num_kinds == 1:
                    yield (*first[:-1], *inside, first[-1])


def _of_unlike_ends(orders: Iterable[Order], kinds: Sequence[Sequence[str]]) -> list[Order]:
    """The first of each that have the same kinds of devices, and the same kinds at their ends."""
    kind_of = {device_id: number for number, kind in enumerate(kinds) for device_id in kind}
    found: dict[tuple[int, ...], Order] = {}
    for order in orders:
        sketch = (kind_of[order[0]], kind_of[order[-1]], *sorted(kind_of[device_id] for device_id in order))
        found.setdefault(sketch, order)
    return list(found.values())

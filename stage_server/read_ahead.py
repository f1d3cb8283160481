"""Reading and computing at the same time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(AbstractContextManager["ReadAhead[T]"], Iterator[T], Generic[T]):
    """An iterator that makes its next item on a thread of its own, while the caller works with the last one.

    So there are never more than two items: the one that the caller has, and the next. Use it as a context manager:
    leaving the block waits for the item being made, and makes no more.

    Args:
        items: Makes the items; None is none of them.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._thread = ThreadPoolExecutor(1, "reader")
        self._next = self._thread.submit(next, items, None)

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __next__(self) -> T:
        """The next item; raises what making it raised."""
        item = self._next.result()
        if item is None:
            raise StopIteration
        self._next = self._thread.submit(next, self._items, None)
        return item

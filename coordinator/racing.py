"""Work that something else may bring to an end."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Never, TypeVar

T = TypeVar("T")


async def unless(failure: Coroutine[Any, Any, Never], work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; if `failure` raises first, gives `work` up and raises that."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(failure)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        working, failing = tasks
        return working.result() if working.done() else failing.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

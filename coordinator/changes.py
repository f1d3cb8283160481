"""How those who wait learn that something changed."""

import asyncio


class Changes:
    """A counter that can be waited on; no change is missed between looking and waiting.

    Read `version`, look at the state, then wait with `after(version)`.
    """

    def __init__(self) -> None:
        self.version = 0
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Wakes everybody who waits."""
        self.version += 1
        self._next.set()
        self._next = asyncio.Event()

    async def after(self, version: int) -> None:
        """Returns once there is a later version."""
        while self.version == version:
            await self._next.wait()

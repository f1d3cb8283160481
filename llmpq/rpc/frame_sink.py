"""What the data plane hands received frames to."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from llmpq.errors import MeshError
from llmpq.frames import Frame


class FrameSink(ABC):
    """Takes the frames of one stream, on the event loop: a task for each of them would cost more than the frame."""

    @abstractmethod
    def take(self, frame: Frame) -> None:
        """Takes a frame; it is acknowledged afterwards.

        Raises:
            MeshError: It is refused, and the stream ends with that.
        """

    @property
    def has_room(self) -> asyncio.Event | None:
        """Set while frames may come; None if they always may. What is not taken waits with its sender."""
        return None

    @property
    def failure(self) -> "asyncio.Future[MeshError] | None":
        """Ends the stream with its result once it has one."""
        return None


#: Makes the sink of a new stream.
MakeSink = Callable[[], FrameSink]

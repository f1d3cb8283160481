"""Brings result frames from the last stages to the pipelines that wait for them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from llmpq.frames import Frame

log = structlog.get_logger(__name__)


class ResultRouter:
    """Result frames by deployment. Those of a deployment that nobody expects any more are dropped.

    Attributes:
        address: host:port at which the last stages reach it; known once this process listens.
    """

    def __init__(self) -> None:
        self.address = ""
        self._queues: dict[str, asyncio.Queue[Frame]] = {}

    @contextmanager
    def expecting(self, deployment_id: str) -> Iterator[asyncio.Queue[Frame]]:
        """The results of a deployment, for the length of the block."""
        queue = self._queues[deployment_id] = asyncio.Queue()
        try:
            yield queue
        finally:
            del self._queues[deployment_id]

    def deliver(self, frame: Frame) -> None:
        """Takes a result as it comes in."""
        queue = self._queues.get(frame.deployment_id)
        if queue is None:
            log.info("result.of_old_deployment", deployment=frame.deployment_id, frame=frame.frame_id)
        else:
            queue.put_nowait(frame)

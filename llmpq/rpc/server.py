"""A gRPC server with what every process of the mesh owes: health, reflection, typed errors, and a graceful end."""

from __future__ import annotations  # grpc's classes are generic for type checkers only

import asyncio
import inspect
import signal
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from llmpq.address import split_address
from llmpq.errors import InternalError, InvalidInputError, MeshError
from llmpq.rpc.channel import CONTROL_OPTIONS
from llmpq.rpc.status import abort_with

log = structlog.get_logger(__name__)

#: How long running calls may take to end after SIGTERM, unless a process says otherwise.
DRAIN_S = 5.0

_SERVER_OPTIONS = (
    # By default a second process on the same port is accepted silently and half the frames go astray.
    ("grpc.so_reuseport", 0),
    # Permit the clients' keepalive; otherwise the server answers GOAWAY "too many pings".
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    *(option for option in CONTROL_OPTIONS if option[0].startswith("grpc.max_")),
)


@dataclass(frozen=True)
class RunningServer:
    """A server that listens.

    Attributes:
        address: host:port it can be reached at, with the port that was really bound.
        health: To announce changes of state.
    """

    address: str
    health: health.aio.HealthServicer


@asynccontextmanager
async def serving(
    listen: str,
    add_services: Callable[[grpc.aio.Server], None],
    service_names: Sequence[str],
    *,
    drain_s: float = DRAIN_S,
) -> AsyncIterator[RunningServer]:
    """Serves inside the block; on leaving it, reports NOT_SERVING, drains and stops.

    Args:
        listen: host:port; port 0 picks a free one.
        add_services: Adds the servicers to the server.
        service_names: Full names of the services, for health and reflection.
        drain_s: How long running calls may take to end.

    Raises:
        InvalidInputError: The address cannot be bound.
    """
    server = grpc.aio.server(interceptors=[_ErrorsAsStatus()], options=_SERVER_OPTIONS)
    add_services(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME),
        server,
    )
    address = _bind(server, listen)
    await server.start()
    for name in ("", *service_names):
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    log.info("server.started", address=address)
    try:
        yield RunningServer(address, health_servicer)
    finally:
        await health_servicer.enter_graceful_shutdown()
        await server.stop(drain_s)
        log.info("server.stopped", address=address)


def until_signal() -> Coroutine[Any, Any, None]:
    """Handles signals from now on; what it returns is done at the first SIGTERM or SIGINT.

    Call it before saying that the process is up, and await the result after. A second signal ends the process at once,
    as the system does by default.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return _until_set(stop)


async def _until_set(stop: asyncio.Event) -> None:
    await stop.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)


def _bind(server: grpc.aio.Server, listen: str) -> str:
    host, _ = split_address(listen, "listen")
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        message = f"Cannot listen on '{listen}': the port is taken or the host is not this machine's."
        raise InvalidInputError(message, subject="listen") from error
    return f"{host}:{port}"


class _ErrorsAsStatus(grpc.aio.ServerInterceptor):
    """Ends a call whose handler raised with the status of its error, and keeps everything else off the wire."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handler found for the call, whatever its kind."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        for kind, factory in _HANDLER_FACTORIES.items():
            behaviour = getattr(handler, kind)
            if behaviour is not None:
                if kind == "stream_unary":
                    behaviour = _reading_all(behaviour)
                # A streaming handler may also be a coroutine that writes to its context, as health's Watch is.
                wrap = _wrap_coroutine if inspect.iscoroutinefunction(behaviour) else _wrap_generator
                return factory(
                    wrap(behaviour, handler_call_details.method),
                    handler.request_deserializer,
                    handler.response_serializer,
                )
        return handler


_HANDLER_FACTORIES: dict[str, Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


def _reading_all(behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Reads what is left of the requests before refusing: a client in the middle of a write would miss the status."""

    async def handle(requests: AsyncIterable[Any], context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(requests, context)
        except MeshError:
            async for _ in requests:
                pass
            raise

    return handle


def _wrap_coroutine(behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:  # noqa: BLE001 the outermost layer of a call
            await _abort(context, error, method)

    return handle


def _wrap_generator(behaviour: Callable[..., AsyncIterator[Any]], method: str) -> Callable[..., Any]:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(request, context):
                yield response
        except Exception as error:  # noqa: BLE001 the outermost layer of a call
            await _abort(context, error, method)

    return handle


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, MeshError):
        log.error("call.failed", method=method, exc_info=error)
        error = InternalError(f"{method} failed: {type(error).__name__}. The server's log has the details.")
    else:
        log.info("call.refused", method=method, reason=error.reason, subject=error.subject)
    await abort_with(context, error)


def announce(address: str) -> None:
    """Tells whoever started this process where it listens: one line on standard output, `listening on HOST:PORT`."""
    print(f"listening on {address}", flush=True)  # noqa: T201 the one line that a parent process waits for

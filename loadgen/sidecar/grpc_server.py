"""OTLP traces over gRPC."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen.errors import LoadgenError
from loadgen.extras import importing
from loadgen.telemetry.otlp_parse import MalformedError

GRPC_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
THREADS = 2
MAX_CALLS = 16
CONNECTION_MS, GRACE_MS = 30_000, 10_000
"""A connection is closed after this time, and its calls after that: calls that never send their spans would otherwise
be all of MAX_CALLS for ever. Clients open another connection by themselves."""


def start_grpc(
    host: str,
    port: int,
    receive: Callable[[bytes], None],
    authorized: Callable[[str | None], bool],
    *,
    max_body_bytes: int,
    certificate: tuple[Path, Path] | None = None,
) -> tuple[Any, int]:
    """Start a server; return it and its port. Raise LoadgenError when grpcio is missing or the port is taken.

    receive: takes the bytes of a request and raises MalformedError; called from threads.
    authorized: decides by the `authorization` metadata. certificate: files of the chain and of its key, PEM.
    """
    with importing("--grpc-port", "sidecar"):
        import grpc
    from concurrent.futures import ThreadPoolExecutor

    def export(body: bytes, context: Any) -> bytes:
        if not authorized(dict(context.invocation_metadata()).get("authorization")):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this sidecar requires its token")
        try:
            receive(body)
        except MalformedError as err:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(err))
        return b""

    handler = grpc.unary_unary_rpc_method_handler(export)
    service, method = GRPC_METHOD.strip("/").split("/")
    server = grpc.server(
        ThreadPoolExecutor(THREADS, "grpc"),
        handlers=[grpc.method_handlers_generic_handler(service, {method: handler})],
        options=[
            ("grpc.max_receive_message_length", max_body_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.max_connection_age_ms", CONNECTION_MS),
            ("grpc.max_connection_age_grace_ms", GRACE_MS),
        ],
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if certificate:
            chain, key = (file.read_bytes() for file in certificate)
            bound_port = server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
        else:
            bound_port = server.add_insecure_port(address)
    except (RuntimeError, OSError) as err:
        raise LoadgenError(f"cannot listen for gRPC on {address}: choose another --grpc-port") from err
    server.start()
    return server, bound_port

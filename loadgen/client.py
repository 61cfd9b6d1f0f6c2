"""One request on the wire -> one record. Never raises: whatever happens is data.

The clock is read where bytes leave the kernel: in the connection's protocol, before HTTP, SSE or JSON is parsed. Plain
HTTP goes over `wire`; TLS, proxies, redirects and whatever else is unusual go over aiohttp. Both give the same records.
"""

import asyncio
from functools import partial
from typing import Any, Self, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientResponse

from loadgen.answer import Answer, RequestError
from loadgen.clock import monotonic_ns
from loadgen.http1 import Head, HTTPError, Unusual
from loadgen.openai_api import ProtocolError, Usage
from loadgen.record import ErrorKind, RequestRecord
from loadgen.sse import SSEError
from loadgen.wire import READ_BUFFER_BYTES, Wire, plain


class _StampedHandler(ResponseHandler):
    """aiohttp's connection, with the instant of its last read."""

    read_ns = 0

    def data_received(self, data: bytes) -> None:
        self.read_ns = monotonic_ns()
        super().data_received(data)


class _StampedResponse(ClientResponse):
    """Remembers its connection's handler: aiohttp lets go of it as soon as the last byte is parsed."""

    handler: _StampedHandler

    async def start(self, connection: Any) -> ClientResponse:
        self.handler = connection.protocol
        return await super().start(connection)


class _StampedConnector(aiohttp.TCPConnector):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = cast("partial[ResponseHandler]", partial(_StampedHandler, loop=self._loop))


class _Reused:
    """Whether aiohttp took this request's connection from its pool."""

    value = False


def _tracing() -> aiohttp.TraceConfig:
    async def reused(_: Any, context: Any, __: Any) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.value = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(reused)
    return tracing


class Client:
    """A pool of connections to one server. Use as an async context manager inside the event loop that runs it."""

    def __init__(
        self,
        base_url: str,
        *,
        headers: dict[str, str] | None = None,
        api_key: str | None = None,
        timeout_s: float | None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream"} | (headers or {})
        self._secrets = [value for value in (headers or {}).values() if len(value) >= 8]
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
            self._secrets.append(api_key)
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._wire = Wire(self.base_url, self._headers) if plain(self.base_url, self._headers) else None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=_StampedConnector(limit=0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),  # a sticky cookie would send the whole load to one backend
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_read=None),
            response_class=_StampedResponse,
            read_bufsize=READ_BUFFER_BYTES,
            trust_env=True,
            trace_configs=[_tracing()],
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._wire:
            self._wire.close()
        if self._session:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "enter the client first"
        return self._session

    def redact(self, text: str) -> str:
        """`text` without the key and header values this client sends: servers like to quote them in errors."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    async def ask(self, path: str, body: bytes, name: str) -> RequestRecord:
        """`send` a request that is in no schedule: a probe, a warm-up."""
        return await self.send(path, body, index=-1, workload=name, scheduled_ns=0, request_id=f"loadgen-{name}")

    async def send(
        self, path: str, body: bytes, *, index: int, workload: str, scheduled_ns: int, request_id: str
    ) -> RequestRecord:
        """POST `body` to `path` and read the stream to its end."""
        answer = Answer()
        error: ErrorKind | None = None
        detail: str | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(path, body, request_id, answer)
        except RequestError as err:
            error, detail = err.kind, str(err)
        except TimeoutError:
            error, detail = "timeout", f"no end after {self._timeout_s} s"
        except asyncio.CancelledError:
            error, detail = "cancelled", "aborted while in flight"
        except (SSEError, ProtocolError, HTTPError, aiohttp.ClientResponseError, aiohttp.InvalidURL) as err:
            error, detail = "protocol", str(err)
        except (aiohttp.ClientError, OSError) as err:
            started = answer.status is not None
            error, detail = "truncated" if started else "connect", f"{type(err).__name__}: {err}"
        finished_ns = answer.finished_ns if error is None and answer.finished_ns else monotonic_ns()
        return record_of(
            index, workload, scheduled_ns, answer, finished_ns, error, detail and self.redact(detail)[:500]
        )

    async def _exchange(self, path: str, body: bytes, request_id: str, answer: Answer) -> None:
        if self._wire:
            try:
                return await self._wire.post(path, body, request_id, answer)
            except Unusual:
                self._wire = None
        return await self._by_aiohttp(path, body, request_id, answer)

    async def _by_aiohttp(self, path: str, body: bytes, request_id: str, answer: Answer) -> None:
        """One request; a second one when a pooled connection turned out to be dead before a byte of answer came.

        Servers close idle connections, and llama.cpp closes after every stream while announcing keep-alive.
        """
        reused = _Reused()
        try:
            await self._attempt(path, body, request_id, answer, reused)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not reused.value or answer.status is not None:
                raise
            await self._attempt(path, body, request_id, answer, _Reused())

    async def _attempt(self, path: str, body: bytes, request_id: str, answer: Answer, reused: _Reused) -> None:
        answer.sent_ns = monotonic_ns()
        async with self.session.post(
            self.base_url + path, data=body, headers={"X-Request-Id": request_id}, trace_request_ctx=reused
        ) as response:
            assert isinstance(response, _StampedResponse)
            kind = response.content_type if "Content-Type" in response.headers else ""
            answer.head(Head(response.status, response.reason or "", kind, None, True, True))
            handler = response.handler
            async for data in response.content.iter_any():
                answer.feed(data, handler.read_ns)
            answer.end(handler.read_ns)


def record_of(
    index: int,
    workload: str,
    scheduled_ns: int,
    answer: Answer,
    finished_ns: int,
    error: ErrorKind | None,
    detail: str | None,
) -> RequestRecord:
    streamed = answer.chunk_ns is not None
    chunks = answer.chunk_ns.tolist() if answer.chunk_ns else []
    usage = answer.usage or Usage()
    counted = usage.completion_tokens is not None
    return RequestRecord(
        index=index,
        workload=workload,
        scheduled_ns=scheduled_ns,
        sent_ns=answer.sent_ns,
        first_token_ns=chunks[0] if chunks else None,
        last_token_ns=chunks[-1] if chunks else None,
        finished_ns=finished_ns,
        chunk_ns=chunks,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens if counted else (len(chunks) if streamed else None),
        cached_tokens=usage.cached_tokens,
        token_source="usage" if counted else ("chunks" if streamed else None),
        status=answer.status,
        finish_reason=answer.finish_reason,
        error=error,
        detail=detail,
    )

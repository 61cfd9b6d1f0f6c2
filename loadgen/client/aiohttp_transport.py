"""The way to a server over aiohttp: TLS, proxies, redirects and whatever else is unusual. The clock is read before HTTP
is parsed. A module of its own because importing aiohttp takes as long as all the rest of a run's beginning."""

from functools import partial
from io import BytesIO
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientResponse

from loadgen.client.connection_pool import MAX_PAGE_BYTES, FetchedPage
from loadgen.client.http1 import Head, HTTPError
from loadgen.client.stream import StreamState
from loadgen.clock import monotonic_ns

READ_BUFFER_BYTES = 256 << 10
LONG_BYTES = 1 << 20
"""aiohttp writes bytes in one go, whatever the socket takes, and a file in pieces."""


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


class Session:
    """A pool of connections to whichever servers are asked. `headers` go with every request."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._session = aiohttp.ClientSession(
            connector=_StampedConnector(limit=0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),  # a sticky cookie would send the whole load to one backend
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_read=None),
            response_class=_StampedResponse,
            read_bufsize=READ_BUFFER_BYTES,
            trust_env=True,
            trace_configs=[_tracing()],
        )

    async def post(self, url: str, body: bytes, request_id: str, answer: StreamState) -> None:
        """Raises HTTPError, aiohttp's other errors, and what `answer` raises.

        A second request goes out when a pooled connection turned out to be dead before a byte of answer came: servers
        close idle connections, and llama.cpp closes after every stream while announcing keep-alive.
        """
        reused = _Reused()
        try:
            await self._attempt(url, body, request_id, answer, reused)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not reused.value or answer.status is not None:
                raise
            await self._attempt(url, body, request_id, answer, _Reused())
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as err:
            raise HTTPError(str(err)) from err

    async def fetch(self, url: str, body: bytes | None) -> FetchedPage:
        """GET, or POST of JSON. OSError: nobody is there. HTTPError: what answers does not do so in HTTP."""
        try:
            method = "GET" if body is None else "POST"
            async with self._session.request(method, url, data=body) as response:
                content = await response.content.read(MAX_PAGE_BYTES + 1)
                while len(content) <= MAX_PAGE_BYTES and not response.content.at_eof():
                    content += await response.content.read(MAX_PAGE_BYTES + 1 - len(content))
                if len(content) > MAX_PAGE_BYTES:
                    raise HTTPError(f"a page of more than {MAX_PAGE_BYTES} bytes")
                return FetchedPage(response.status, content)
        except aiohttp.ClientSSLError as err:
            raise HTTPError(str(err)) from err
        except aiohttp.ClientConnectorError as err:
            raise err.os_error from err
        except (aiohttp.ClientError, ValueError) as err:
            raise HTTPError(str(err)) from err

    async def close(self) -> None:
        await self._session.close()

    async def _attempt(self, url: str, body: bytes, request_id: str, answer: StreamState, reused: _Reused) -> None:
        answer.sent_ns = monotonic_ns()
        data = BytesIO(body) if len(body) > LONG_BYTES else body
        headers = {"X-Request-Id": request_id}
        async with self._session.post(url, data=data, headers=headers, trace_request_ctx=reused) as response:
            assert isinstance(response, _StampedResponse)
            kind = response.content_type if "Content-Type" in response.headers else ""
            answer.head(Head(response.status, response.reason or "", kind, None, True, True))
            handler = response.handler
            async for data in response.content.iter_any():
                answer.feed(data, handler.read_ns)
            answer.end(handler.read_ns)

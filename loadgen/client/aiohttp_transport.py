"""Requests over aiohttp: it supports TLS, proxies, redirects and compression. The clock is read before HTTP is parsed.

This is a module of its own because importing aiohttp takes as long as everything else that a run does at its start.
"""

from __future__ import annotations

import asyncio
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientResponse

from loadgen.client.connection import GRACE_S
from loadgen.client.connection_pool import MAX_FETCHED_BYTES, FetchedPage
from loadgen.client.http1 import Head, HTTPError
from loadgen.client.stream import PROTOCOL_ERRORS, RequestError
from loadgen.clock import monotonic_ns
from loadgen.telemetry.traceparent import TRACEPARENT, traceparent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.client.stream import StreamState

READ_BUFFER_BYTES = 256 << 10
LONG_BYTES = 1 << 20
"""Longer bodies are sent as files: aiohttp writes bytes at once, even if the socket cannot take them, and files in
pieces."""


class _StampedHandler(ResponseHandler):
    """aiohttp's connection, with the time of its last read."""

    read_ns = 0

    def data_received(self, data: bytes) -> None:
        self.read_ns = monotonic_ns()
        super().data_received(data)


class _StampedResponse(ClientResponse):
    """Keeps its connection's handler, which aiohttp releases as soon as the last byte is parsed."""

    handler: _StampedHandler

    async def start(self, connection: Any) -> ClientResponse:
        self.handler = connection.protocol
        return await super().start(connection)


class _StampedConnector(aiohttp.TCPConnector):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = cast("partial[ResponseHandler]", partial(_StampedHandler, loop=self._loop))


class _Attempt:
    """One attempt to send a request; the `trace_request_ctx` of aiohttp."""

    reused_connection = False


async def _on_reuse(_session: Any, context: Any, _params: Any) -> None:
    if isinstance(context.trace_request_ctx, _Attempt):
        context.trace_request_ctx.reused_connection = True


async def _on_redirect(_session: Any, _context: Any, redirect: aiohttp.TraceRequestRedirectParams) -> None:
    """Raise RequestError for a redirect to another host: headers may hold keys, which are for the one named."""
    target = urlsplit(urljoin(str(redirect.url), redirect.response.headers.get("Location", "")))
    if target.hostname != redirect.url.raw_host:
        redirect.response.close()
        status, there = redirect.response.status, target.hostname or "nowhere"
        raise RequestError("http", f"{status}: a redirect to another host ({there}), which is not followed")


class Session:
    """A pool of connections to one server. `headers` are part of every request.

    Nothing comes from the environment: logins are among the headers, and `proxy` is the URL of the proxy.
    """

    def __init__(self, headers: dict[str, str], proxy: str | None) -> None:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_on_reuse)
        tracing.on_request_redirect.append(_on_redirect)
        self._traced = TRACEPARENT not in {name.lower() for name in headers}
        self._session = aiohttp.ClientSession(
            connector=_StampedConnector(limit=0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),  # a sticky cookie would send the whole load to one backend
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_read=None),
            response_class=_StampedResponse,
            read_bufsize=READ_BUFFER_BYTES,
            proxy=proxy,
            trace_configs=[tracing],
        )

    async def post(
        self, url: str, body: bytes, request_id: str, stream: StreamState, headers: Mapping[str, str]
    ) -> None:
        """POST `body` and feed the response to `stream`. Raises HTTPError, aiohttp's other errors, and what `stream`
        raises.

        The request is sent once more if a pooled connection proves dead before a byte of the response arrives: servers
        close idle connections, and llama.cpp closes after every stream while announcing keep-alive.
        """
        attempt = _Attempt()
        try:
            await self._post_once(url, body, request_id, stream, headers, attempt)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not attempt.reused_connection or stream.status is not None:
                raise
            await self._post_once(url, body, request_id, stream, headers, _Attempt())
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as err:
            raise HTTPError(str(err)) from err

    async def fetch(self, url: str, body: bytes | None) -> FetchedPage:
        """GET `url`, or POST JSON to it. OSError: no connection. HTTPError: the response is not HTTP."""
        try:
            method = "GET" if body is None else "POST"
            async with self._session.request(method, url, data=body, allow_redirects=False) as response:
                content = await response.content.read(MAX_FETCHED_BYTES + 1)
                while len(content) <= MAX_FETCHED_BYTES and not response.content.at_eof():
                    content += await response.content.read(MAX_FETCHED_BYTES + 1 - len(content))
                if len(content) > MAX_FETCHED_BYTES:
                    raise HTTPError(f"a page of more than {MAX_FETCHED_BYTES} bytes")
                location = response.headers.get("Location") if 300 <= response.status < 400 else None
                return FetchedPage(response.status, content, location and urljoin(url, location))
        except aiohttp.ClientConnectorCertificateError as err:
            raise err.certificate_error from err
        except aiohttp.ClientConnectorError as err:
            raise err.os_error from err
        except (aiohttp.ClientError, ValueError) as err:
            raise HTTPError(str(err)) from err

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def _post_once(
        self,
        url: str,
        body: bytes,
        request_id: str,
        stream: StreamState,
        headers: Mapping[str, str],
        attempt: _Attempt,
    ) -> None:
        stream.sent_ns = monotonic_ns()
        data = BytesIO(body) if len(body) > LONG_BYTES else body
        headers = {**headers, "X-Request-Id": request_id}
        if self._traced:
            headers[TRACEPARENT] = traceparent(request_id)
        async with self._session.post(url, data=data, headers=headers, trace_request_ctx=attempt) as response:
            assert isinstance(response, _StampedResponse)
            if response.method != "POST":
                raise RequestError("http", f"{response.history[0].status}: a redirect that turns POST into GET")
            kind = response.content_type if "Content-Type" in response.headers else ""
            fields = b"".join(b"\r\n%b:%b" % field for field in response.raw_headers)
            stream.head(Head(response.status, response.reason or "", kind, None, True, True, fields))
            handler = response.handler
            try:
                async with asyncio.timeout(None) as limit:
                    async for data in response.content.iter_any():
                        stream.feed(data, handler.read_ns)
                        if stream.is_done and limit.when() is None:
                            limit.reschedule(asyncio.get_running_loop().time() + GRACE_S)
            except (TimeoutError, aiohttp.ClientError, *PROTOCOL_ERRORS):
                if not stream.is_done:
                    raise
            stream.end(handler.read_ns)

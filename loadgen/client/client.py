"""One request on the wire -> one record. Never raises: whatever happens is recorded.

Plain HTTP uses `connection_pool`, with the kernel's arrival times. TLS, proxies, redirects and everything else unusual
use aiohttp, where the clock is read before HTTP, SSE or JSON is parsed. Both give the same records.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit

import msgspec

from loadgen.client.connection import Connection, StaleError
from loadgen.client.connection_pool import ConnectionPool, FetchedPage, is_plain
from loadgen.client.http1 import Unusual
from loadgen.client.openai_api import UNSTREAMED_PATHS, Usage
from loadgen.client.redact import redact, secrets_of, without_quotes
from loadgen.client.served_by import ServedBy
from loadgen.client.server_url import ServerURL, parse_server_url
from loadgen.client.stream import PROTOCOL_ERRORS, RequestError, StreamState
from loadgen.client.surroundings import login_of, proxy_of
from loadgen.clock import monotonic_ns
from loadgen.record import ErrorKind, RequestRecord, StampedBy

if TYPE_CHECKING:
    from loadgen.client.aiohttp_transport import Session


KEY_FIELDS = frozenset({"authorization", "api-key", "x-api-key"})
"""Fields that carry a key, in lower case."""
MAX_DETAIL_CHARS = 500
"""Longest description of a failure in a record."""


class Post(msgspec.Struct, frozen=True):
    """One request, and the fields of its record that do not depend on the response."""

    path: str
    body: bytes
    index: int
    workload: str
    scheduled_ns: int
    request_id: str
    headers: Mapping[str, str] = {}
    """Headers of this request alone; they replace the client's own of the same name."""
    keeps_answer: bool = False
    """True if the exchange's stream has the words of the answer at the end."""
    hides_words: bool = False
    """True if the words of the request are the user's own: its record does not quote them."""


OnRecord = Callable[[RequestRecord], None]
"""Called once with the record of a request."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One request in flight."""

    post: Post
    on_record: OnRecord
    stream: StreamState = field(init=False)
    connection: Connection | None = None
    """The plain connection that carries the exchange, while one does."""
    task: asyncio.Task[None] | None = None
    """The last task that the exchange had to wait for: a name look-up or aiohttp."""
    is_complete: bool = False
    """True once `on_record` has been called."""

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Expect a response from its first byte."""
        self.stream = StreamState(self.post.path not in UNSTREAMED_PATHS, keeps_answer=self.post.keeps_answer)


class Client:
    """A pool of connections to one server. Use as an async context manager inside the event loop that runs it."""

    def __init__(
        self,
        base_url: str,
        *,
        headers: dict[str, str] | None = None,
        api_key: str | None = None,
        timeout_s: float | None,
        engines: Sequence[str] = (),
        engine_headers: Sequence[str] = (),
    ) -> None:
        """engines, engine_headers: those of --engine, and the response headers that name which of them served.

        Raises LoadgenError for what is none.
        """
        self._served_by = ServedBy(engine_headers, engines)
        self._given = headers or {}
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._session: Session | None = None
        self._reach(parse_server_url(base_url))
        self._ids = count()
        self._name = secrets.token_hex(4)
        self._deadlines_s: dict[Exchange, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def _reach(self, url: ServerURL) -> None:
        """Settle the way to `url`, and the headers of every request. The user's take the place of the client's own."""
        self.url = url
        self.proxy = proxy_of(url.scheme, url.host)
        fields = {"content-type": ("Content-Type", "application/json"), "accept": ("Accept", "text/event-stream")}
        fields |= {name.lower(): (name, value) for name, value in self._given.items()}
        login = login_of(url, self._api_key)
        if login and "authorization" not in fields:
            fields["authorization"] = ("Authorization", login)
        self._headers = dict(fields.values())
        self.has_key = not fields.keys().isdisjoint(KEY_FIELDS)
        """True when a field that carries a key or a login is sent."""
        long = [*self._given.values(), login or "", url.query, *(value for _, value in parse_qsl(url.query))]
        self._secrets = [self._api_key] if self._api_key else []
        self._secrets += secrets_of(long)
        self._pool = ConnectionPool(url, self._headers)
        self._is_plain = is_plain(url, self._headers, self.proxy)

    async def move(self, url: ServerURL) -> None:
        """Send to `url` from now on."""
        await self.__aexit__()
        self._session = None
        self._reach(url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        self._pool.close()
        if self._session:
            await self._session.close()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses that connections go round over; empty when a proxy or aiohttp chooses them."""
        return tuple(address[0] for _, address in self._pool.preferred()) if self._is_plain else ()

    @property
    def stamped_by(self) -> StampedBy | None:
        """The source of arrival times; None before anything arrived."""
        return self._pool.stamped_by if self._is_plain else "reading"

    def redact(self, text: str) -> str:
        """Return `text` without the key and header values this client sends: servers quote them in errors."""
        return redact(text, self._secrets)

    async def fetch(self, url: str, body: bytes | None = None, *, timeout_s: float) -> FetchedPage:
        """GET a page of the same server, or POST JSON to it. TimeoutError: no response. OSError: no connection.
        HTTPError: the response is not HTTP."""
        async with asyncio.timeout(timeout_s):
            if self._is_plain:
                parts = urlsplit(url)
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                with suppress(Unusual):  # that this page is unusual says nothing about the others
                    return await self._pool.fetch(target, body)
            return await self._aiohttp().fetch(url, body)

    async def post(
        self,
        path: str,
        body: bytes,
        *,
        workload: str,
        index: int = -1,
        scheduled_ns: int = 0,
        request_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        hides_words: bool = False,
    ) -> RequestRecord:
        """POST `body` to `path`, read the stream to its end, and return the record. When cancelled, the record says so;
        CancelledError is raised only when it is complete already.

        Probes and warm-up requests are in no schedule: they need a `workload` only, which names them.
        """
        completed: asyncio.Future[RequestRecord] = asyncio.get_running_loop().create_future()
        request_id = request_id or f"loadgen-{workload}-{self._name}-{next(self._ids)}"
        post = Post(path, body, index, workload, scheduled_ns, request_id, headers or {}, False, hides_words)
        exchange = self.send(post, completed.set_result)
        while not completed.done():
            try:
                await asyncio.wait([completed])
            except asyncio.CancelledError:
                if completed.done():  # too late for the record to say so
                    raise
                self.cancel(exchange)
        return completed.result()

    def send(self, post: Post, on_record: OnRecord) -> Exchange:
        """Start a request without waiting; `on_record` is called once, after this has returned.

        Over a plain connection an exchange needs callbacks only; a task does whatever has to wait.
        """
        exchange = Exchange(post, on_record)
        if self._timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._deadlines_s[exchange] = deadline_s = loop.time() + self._timeout_s
            self._timer = self._timer or loop.call_at(deadline_s, self._expire)
        if not self._is_plain:
            self._send_by_aiohttp(exchange)
        elif idle := self._pool.idle:
            exchange.connection = connection = idle.pop()
            request = self._pool.request(post.path, post.body, post.request_id, post.headers)
            connection.send(request, exchange.stream, partial(self._done, exchange))
        elif self._pool.addresses:
            self._connect(exchange, None)
        else:
            self._wait(exchange, self._pool.resolve(), self._connect)
        return exchange

    def cancel(self, exchange: Exchange) -> None:
        """End `exchange` with a record that says so, unless it already has one."""
        self._give_up(exchange, asyncio.CancelledError())

    def _connect(self, exchange: Exchange, error: BaseException | None) -> None:
        """Send over a new connection, unless looking its address up ended in `error`."""
        if error:
            self._complete(exchange, error)
            return
        try:
            exchange.connection = connection = self._pool.connect()
        except OSError as err:
            asyncio.get_running_loop().call_soon(self._complete, exchange, err)  # `send` has to return first
            return
        post = exchange.post
        request = self._pool.request(post.path, post.body, post.request_id, post.headers)
        connection.send(request, exchange.stream, partial(self._done, exchange))

    def _send_by_aiohttp(self, exchange: Exchange) -> None:
        post = exchange.post
        work = self._aiohttp().post(self.url.page(post.path), post.body, post.request_id, exchange.stream, post.headers)
        self._wait(exchange, work, self._complete)

    def _wait(
        self,
        exchange: Exchange,
        work: Coroutine[Any, Any, None],
        then: Callable[[Exchange, BaseException | None], None],
    ) -> None:
        """Call `then` with the exception that `work` ended with, or None. Nothing is called when it is cancelled."""
        exchange.task = asyncio.get_running_loop().create_task(work)
        exchange.task.add_done_callback(lambda task: None if task.cancelled() else then(exchange, task.exception()))

    def _done(self, exchange: Exchange, error: Exception | None, last_arrival_ns: int) -> None:
        exchange.connection = None
        if error and not exchange.stream.is_done:
            self._retry(exchange, error)
            return
        error = None
        try:
            exchange.stream.end(last_arrival_ns)
        except (RequestError, *PROTOCOL_ERRORS) as err:
            error = err
        self._complete(exchange, error)

    def _retry(self, exchange: Exchange, error: Exception) -> None:
        """Send once more where `error` allows it, else complete the exchange with it."""
        if isinstance(error, Unusual):
            self._is_plain = False
            exchange.begin()
            self._send_by_aiohttp(exchange)
        elif isinstance(error, StaleError) and self._pool.can_retry(error):
            exchange.begin()
            self._connect(exchange, None)
        else:
            self._complete(exchange, error)

    def _give_up(self, exchange: Exchange, reason: BaseException) -> None:
        if exchange.is_complete:
            return
        if exchange.task:
            exchange.task.cancel()
        if exchange.connection:
            exchange.connection.abort()
        if exchange.stream.is_done:
            self._done(exchange, None, 0)
        else:
            self._complete(exchange, reason)

    def _expire(self) -> None:
        """Give up the exchanges that are overdue. All have the same time, so they expire in the order in which they
        began, and one timer serves all."""
        loop = asyncio.get_running_loop()
        while self._deadlines_s:
            exchange, deadline_s = next(iter(self._deadlines_s.items()))
            if deadline_s > loop.time():
                self._timer = loop.call_at(deadline_s, self._expire)
                return
            self._give_up(exchange, TimeoutError())
        self._timer = None

    def _complete(self, exchange: Exchange, error: BaseException | None) -> None:
        """Make the record and hand it over, the first time this is called for an exchange."""
        if exchange.is_complete:
            return
        exchange.is_complete = True
        self._deadlines_s.pop(exchange, None)
        post, stream = exchange.post, exchange.stream
        engines = self._served_by.engines(stream.fields)
        if error is None:
            record = record_of(post, stream, stream.finished_ns or monotonic_ns(), None, None, engines)
        else:
            kind, detail = _classify(error, stream, self._timeout_s)
            detail = redact(self.redact(detail), secrets_of(post.headers.values()))[:MAX_DETAIL_CHARS]
            if post.hides_words and kind in ("http", "server", "protocol"):
                detail = without_quotes(detail, post.body)
            record = record_of(post, stream, monotonic_ns(), kind, detail, engines)
        exchange.on_record(record)

    def _aiohttp(self) -> "Session":
        if self._session is None:
            from loadgen.client.aiohttp_transport import Session

            self._session = Session(self._headers, self.proxy.url if self.proxy else None)
        return self._session


def _classify(error: BaseException, stream: StreamState, timeout_s: float | None) -> tuple[ErrorKind, str]:
    """Return the kind of `error` and a description of it."""
    match error:
        case RequestError():
            return error.kind, str(error)
        case TimeoutError():
            return "timeout", f"no end after {timeout_s} s"
        case asyncio.CancelledError():
            return "cancelled", "aborted while in flight"
        case _ if isinstance(error, PROTOCOL_ERRORS):
            return "protocol", str(error)
    return "truncated" if stream.status is not None else "connect", f"{type(error).__name__}: {error}"


def record_of(
    post: Post,
    stream: StreamState,
    finished_ns: int,
    error: ErrorKind | None,
    detail: str | None,
    engines: list[str] | None = None,
) -> RequestRecord:
    """Return the record of `post`. Output tokens are those that the server reports, or else the chunks received."""
    streamed = stream.chunk_ns is not None
    chunk_ns, last_token_ns = stream.token_times()
    usage = stream.usage or Usage()
    counted, prompt, output = usage.output_tokens, usage.prompt_tokens_details, usage.completion_tokens_details
    return RequestRecord(
        index=post.index,
        workload=post.workload,
        scheduled_ns=post.scheduled_ns,
        sent_ns=stream.sent_ns,
        first_token_ns=chunk_ns[0] if chunk_ns else None,
        last_token_ns=last_token_ns,
        finished_ns=finished_ns,
        chunk_ns=chunk_ns,
        kinds=stream.kinds(chunk_ns) if streamed else None,
        input_tokens=usage.input_tokens,
        output_tokens=counted or (len(chunk_ns) if streamed else None),
        cached_tokens=usage.cached_tokens,
        hidden_tokens=stream.hidden_tokens,
        reasoning_tokens=usage.thought_tokens,
        output_audio_tokens=output.audio_tokens if output else None,
        input_audio_tokens=prompt.audio_tokens if prompt else None,
        input_image_tokens=prompt.image_tokens if prompt else None,
        token_source="usage" if counted else ("chunks" if streamed else None),
        status=stream.status,
        finish_reason=stream.finish_reason,
        error=error,
        detail=detail,
        engines=engines,
    )

"""One request on the wire -> one record. Never raises: whatever happens is data.

Plain HTTP goes over `wire`, which knows when the kernel took bytes in. TLS, proxies, redirects and whatever else is
unusual go over aiohttp; there the clock is read before HTTP, SSE or JSON is parsed. Both give the same records.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import msgspec

from loadgen.client.connection import Connection, ConnectionPool, FetchedPage, StaleError, plain
from loadgen.client.http1 import HTTPError, Unusual
from loadgen.client.openai_api import ProtocolError, Usage
from loadgen.client.sse import SSEError
from loadgen.client.stream import RequestError, StreamState
from loadgen.clock import monotonic_ns
from loadgen.record import ErrorKind, RequestRecord, StampedBy

if TYPE_CHECKING:
    from loadgen.client.aiohttp_transport import Session


class Post(msgspec.Struct, frozen=True):
    """One request, and what its record says of it beyond the answer."""

    path: str
    body: bytes
    index: int
    workload: str
    scheduled_ns: int
    request_id: str


Landed = Callable[[RequestRecord], None]
"""Told the record of a request, once."""


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
        self._session: Session | None = None
        self._wire = ConnectionPool(self.base_url, self._headers)
        self._is_plain = plain(self.base_url, self._headers)
        self._flights: dict[Flight, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        self._wire.close()
        if self._session:
            await self._session.close()

    @property
    def stamped_by(self) -> StampedBy | None:
        """None before anything came."""
        return self._wire.stamped_by if self._is_plain else "reading"

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
        """POST `body` to `path` and read the stream to its end. Cancelled, it gives its record all the same."""
        landed: asyncio.Future[RequestRecord] = asyncio.get_running_loop().create_future()
        flight = self.launch(Post(path, body, index, workload, scheduled_ns, request_id), landed.set_result)
        while not landed.done():
            try:
                await asyncio.wait([landed])
            except asyncio.CancelledError:
                flight.cancel()
        return landed.result()

    async def fetch(self, url: str, body: bytes | None = None, *, timeout_s: float) -> FetchedPage:
        """GET, or POST of JSON, from a page of the same server. TimeoutError: no answer. OSError: nobody is there.
        HTTPError: what answers does not do so in HTTP."""
        async with asyncio.timeout(timeout_s):
            if self._is_plain:
                try:
                    return await self._wire.fetch(urlsplit(url).path or "/", body)
                except Unusual:
                    self._is_plain = False
            return await self._aiohttp().fetch(url, body)

    def launch(self, post: Post, landed: Landed) -> "Flight":
        """`send`, for who cannot wait: on its way before this returns if there is a connection, and `landed` is told
        after that."""
        return Flight(self, self._wire, post, landed)

    def _record(self, post: Post, answer: StreamState, problem: BaseException | None) -> RequestRecord:
        if problem is None:
            return record_of(post, answer, answer.finished_ns or monotonic_ns(), None, None)
        kind, detail = _error(problem, answer, self._timeout_s)
        return record_of(post, answer, monotonic_ns(), kind, self.redact(detail)[:500])

    def _watch(self, flight: "Flight") -> None:
        """All have the same time, so they run out in the order in which they began: one timer does for all."""
        if self._timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._flights[flight] = deadline_s = loop.time() + self._timeout_s
            self._timer = self._timer or loop.call_at(deadline_s, self._expire)

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        while self._flights:
            flight, deadline_s = next(iter(self._flights.items()))
            if deadline_s > loop.time():
                self._timer = loop.call_at(deadline_s, self._expire)
                return
            flight.give_up(TimeoutError())
        self._timer = None

    def _aiohttp(self) -> "Session":
        if self._session is None:
            from loadgen.client.aiohttp_transport import Session

            self._session = Session(self._headers)
        return self._session

    async def _by_aiohttp(self, post: Post, answer: StreamState) -> None:
        await self._aiohttp().post(self.base_url + post.path, post.body, post.request_id, answer)


class Flight:
    """A request on its way. Over the wire it is callbacks only; a task does what has to wait."""

    __slots__ = ("_answer", "_client", "_connection", "_landed", "_post", "_task", "_wire")

    def __init__(self, client: Client, wire: ConnectionPool, post: Post, landed: Landed) -> None:
        self._client, self._wire, self._post = client, wire, post
        self._landed: Landed | None = landed
        self._answer = StreamState()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        client._watch(self)
        if not client._is_plain:
            self._wait_for(client._by_aiohttp(post, self._answer), self._land)
        elif connection := wire.idle():
            self._ask(connection)
        elif wire.addresses:
            self._connect()
        else:
            self._wait_for(wire.look_up(), self._looked_up)

    def cancel(self) -> None:
        """It has its record all the same, unless it has one already."""
        self.give_up(asyncio.CancelledError())

    def give_up(self, why: BaseException) -> None:
        """Its record says `why`."""
        if self._landed is None:
            return
        if self._task:
            self._task.cancel()
        if self._connection:
            self._connection.abort()
        self._land(why)

    def _ask(self, connection: Connection) -> None:
        post, self._connection = self._post, connection
        connection.ask(self._wire.request(post.path, post.body, post.request_id), self._answer, self._over)

    def _connect(self) -> None:
        try:
            connection = self._wire.connect()
        except OSError as err:
            asyncio.get_running_loop().call_soon(self._land, err)
        else:
            self._ask(connection)

    def _looked_up(self, err: BaseException | None) -> None:
        if err:
            self._land(err)
        else:
            self._connect()

    def _over(self, err: Exception | None) -> None:
        self._connection = None
        if isinstance(err, Unusual):
            self._client._is_plain = False
            self._answer = StreamState()
            self._wait_for(self._client._by_aiohttp(self._post, self._answer), self._land)
        elif isinstance(err, StaleError) and self._wire.addresses:
            self._answer = StreamState()
            self._connect()
        else:
            self._land(err)

    def _wait_for(self, work: Coroutine[Any, Any, None], then: Callable[[BaseException | None], None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(lambda task: None if task.cancelled() else then(task.exception()))

    def _land(self, problem: BaseException | None) -> None:
        if self._landed is not None:
            landed, self._landed = self._landed, None
            self._client._flights.pop(self, None)
            landed(self._client._record(self._post, self._answer, problem))


_PROTOCOL = (SSEError, ProtocolError, HTTPError)


def _error(problem: BaseException, answer: StreamState, timeout_s: float | None) -> tuple[ErrorKind, str]:
    match problem:
        case RequestError():
            return problem.kind, str(problem)
        case TimeoutError():
            return "timeout", f"no end after {timeout_s} s"
        case asyncio.CancelledError():
            return "cancelled", "aborted while in flight"
    if isinstance(problem, _PROTOCOL):
        return "protocol", str(problem)
    return "truncated" if answer.status is not None else "connect", f"{type(problem).__name__}: {problem}"


def record_of(
    post: Post, answer: StreamState, finished_ns: int, error: ErrorKind | None, detail: str | None
) -> RequestRecord:
    streamed = answer.chunk_ns is not None
    chunks = answer.chunk_ns.tolist() if answer.chunk_ns else []
    usage = answer.usage or Usage()
    counted = usage.completion_tokens is not None
    return RequestRecord(
        index=post.index,
        workload=post.workload,
        scheduled_ns=post.scheduled_ns,
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

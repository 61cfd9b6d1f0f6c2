"""Shows a request whose energy is final: GET /requests/ID, and the ledger on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web

from loadgen.results.ledger_lines import EnginePeriod, LedgerBatch, LedgerPeriod, SettledRequest
from loadgen.sidecar.ledger_writer import MAX_WAITING, LedgerWriter
from loadgen.sidecar.request_lookup import NamedRequest, RequestLookup, is_request_id, request_json
from loadgen.sidecar.request_pairs import RequestPairs, SettledPair, SettledPart
from loadgen.telemetry.otlp_parse import MAX_TEXT, join_key
from loadgen.units import ns_from_s

if TYPE_CHECKING:
    from loadgen.energy.named_engine import NamedEngine
    from loadgen.sidecar.accounts import OpenRequest
    from loadgen.sidecar.ledger import Snapshot
    from loadgen.sidecar.span_router import SpanRouter
    from loadgen.sidecar.watched_engine import WatchedEngine

KEPT_REQUESTS = 50_000
"""Settled requests that can be looked up, unless an option says otherwise."""
KEPT_S = 3600.0
"""Time for which they can be."""
RETRY_S = 5
"""An engine's exporter sends that often."""


class Settlement:
    """Takes what each commit settled. A request is shown once its line is on disk, where there is a ledger."""

    def __init__(
        self,
        engines: Sequence[WatchedEngine],
        router: SpanRouter | None = None,
        named: Sequence[NamedEngine] = (),
        *,
        folder: Path | None = None,
        kept: int = KEPT_REQUESTS,
        kept_s: float = KEPT_S,
        wait_s: float = 600.0,
    ) -> None:
        """Raise LoadgenError when the ledger's folder cannot be written.

        named: the engines, where they have names. folder: of the ledger on disk; None for none. kept, kept_s: requests
        that can be looked up, and how long. wait_s: longest wait for the decode of a request after its prefill.
        """
        self._engines, self._router = engines, router
        self._pairs = RequestPairs(named, ns_from_s(wait_s))
        self._lookup = RequestLookup(kept, ns_from_s(kept_s))
        self._names = [engine.name or _address(engine.url) for engine in engines]
        self._is_named = bool(named)
        self._writer = LedgerWriter(folder, sources=self._sources) if folder else None
        self._unwritten: list[NamedRequest] = []
        self._writing: list[NamedRequest] = []
        """Requests that are being written."""
        self._totals = [EnginePeriod(engine=name or "") for name in self._names]
        """Energy of each engine in all periods so far."""
        self._to_unix_ns: int | None = None
        self.on_settled: Callable[[SettledRequest, bytes, bytes], None] | None = None
        """Is called with each settled request, and the ids of its trace and of the engine's span in it."""

    def take(
        self, snapshots: Sequence[Snapshot], unix_ns: Callable[[int], int], now_ns: int, *, last: bool = False
    ) -> None:
        """Take what the newest commits settled. unix_ns: converts monotonic instants to Unix time. last: nothing more
        settles."""
        pairs = [
            pair
            for number, engine in enumerate(self._engines)
            for settled in engine.ledger.settled
            if (pair := self._pairs.add(SettledPart(number, settled, now_ns)))
        ]
        pairs += self._pairs.due(now_ns, lambda number: self._engines[number].ledger.committed_ns)
        pairs += self._pairs.all() if last else []
        requests: list[SettledRequest] = []
        for pair in pairs:
            entry = pair.entry
            self._engines[pair.main.engine].ledger.count(entry)
            request = settled_request(pair, entry, self._names, unix_ns, now_ns)
            requests.append(request)
            names = pair.main.names | (pair.prefill.names if pair.prefill else set())
            self._unwritten.append(NamedRequest(request, tuple(names)))
            if self.on_settled is not None:
                span = pair.main.settled.entry.request
                self.on_settled(request, span.trace_id, span.span_id)
        self._lookup.forget(unix_ns(now_ns))
        if self._writer is None:
            self._lookup.add(self._unwritten)
            self._unwritten = []
        else:
            self._add_period(self._writer, tuple(requests), snapshots, unix_ns)
            self._lookup.add(self._unwritten[:-MAX_WAITING])  # the disk does not answer: no longer is waited for it
            self._unwritten = self._unwritten[-MAX_WAITING:]

    def _add_period(
        self,
        writer: LedgerWriter,
        requests: tuple[SettledRequest, ...],
        snapshots: Sequence[Snapshot],
        unix_ns: Callable[[int], int],
    ) -> None:
        """Write a period that ends now, unless nothing was committed."""
        ledgers = [engine.ledger for engine in self._engines]
        totals = [
            EnginePeriod(
                engine=name or "",
                counter_mj=sum(domain.committed_mj for domain in snapshot.domains),
                idle_mj=snapshot.idle_mj,
                unattributed_mj=snapshot.unattributed_mj,
                open_mj=ledger.open_mj() + self._pairs.held_mj(number),
            )
            for number, (name, snapshot, ledger) in enumerate(zip(self._names, snapshots, ledgers, strict=True))
        ]
        if not requests and [total.counter_mj for total in totals] == [total.counter_mj for total in self._totals]:
            return
        parts = [after.since(before) for before, after in zip(self._totals, totals, strict=True)]
        since_ns = min(ledger.measured_since_ns or ledger.committed_ns for ledger in ledgers)
        begin_ns = self._to_unix_ns or unix_ns(since_ns)
        end_ns = max(unix_ns(max(ledger.committed_ns for ledger in ledgers)), begin_ns)
        period = LedgerPeriod(
            from_unix_ns=begin_ns,
            to_unix_ns=end_ns,
            counter_mj=sum(part.counter_mj for part in parts),
            idle_mj=sum(part.idle_mj for part in parts),
            unattributed_mj=sum(part.unattributed_mj for part in parts),
            open_mj=sum(part.open_mj for part in parts),
            requests=len(requests),
            engines=tuple(parts) if self._is_named else (),
        )
        writer.add(LedgerBatch(period, requests))
        self._totals, self._to_unix_ns = totals, end_ns

    async def write(self) -> None:
        """Write what was taken, in a thread, and then show it. More may be taken meanwhile."""
        if self._writer is not None:
            self._writing, self._unwritten = self._unwritten, []
            await asyncio.to_thread(self._writer.flush)
            self._lookup.add(self._writing)
            self._writing = []

    def _sources(self) -> list[str]:
        return [source for engine in self._engines for source in engine.ledger.sources]

    def close(self) -> None:
        """Write what waits, and release the ledger's folder."""
        if self._writer is not None:
            self._writer.close()

    @property
    def health(self) -> str | None:
        """State of the ledger on disk in words; None without one."""
        return self._writer.health if self._writer else None

    async def serve(self, request: web.Request) -> web.Response:
        """Serve GET /requests/ID: 200 with its joules, 202 while its energy is not final, 404 if nothing is known."""
        name = request.match_info["id"]
        if not is_request_id(name):
            raise web.HTTPBadRequest(text="a request's id is printable and at most 128 characters long\n")
        if (settled := self._lookup.find(name)) is not None:
            return web.json_response(request_json(settled))
        waiting = {name, join_key(name)}
        if any(map(self._is_waiting, waiting)) or any(
            not waiting.isdisjoint(unwritten.names) for unwritten in (*self._writing, *self._unwritten)
        ):
            headers = {"Retry-After": str(RETRY_S)}
            return web.json_response({"state": "waiting", "id": name}, status=202, headers=headers)
        return web.json_response({"state": "unknown", "id": name}, status=404)

    def _is_waiting(self, key: str) -> bool:
        return (
            any(engine.ledger.is_open(key) for engine in self._engines)
            or self._pairs.is_waiting(key)
            or (self._router is not None and self._router.is_waiting(key))
        )


def _address(engine_url: str | None) -> str | None:
    """Return the address of an engine without a name."""
    return urlsplit(engine_url).netloc.rpartition("@")[2][:MAX_TEXT] if engine_url else None


def settled_request(
    pair: SettledPair, entry: OpenRequest, engines: Sequence[str | None], unix_ns: Callable[[int], int], now_ns: int
) -> SettledRequest:
    """Return a request as the ledger and its page have it. entry: that of the pair. engines: names of all engines."""
    model, workload = pair.main.settled.account
    request = entry.request
    return SettledRequest(
        id=next((part.key for part in entry.parts if part.client), request.key),
        model=model[:MAX_TEXT],
        workload=workload,
        engine=engines[pair.main.engine],
        prefill_engine=engines[pair.prefill.engine] if pair.prefill else None,
        labels=request.labels,
        ok=request.ok,
        begin_unix_ns=unix_ns(request.start_ns),
        first_token_unix_ns=None if request.first_token_ns is None else unix_ns(request.first_token_ns),
        end_unix_ns=unix_ns(request.end_ns),
        settled_unix_ns=unix_ns(now_ns),
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        cached_tokens=request.cached_tokens,
        prefill_mj=entry.prefill_mj,
        decode_mj=entry.decode_mj,
        se_mj=entry.se_mj,
        whole=entry.whole and entry.charged,
    )

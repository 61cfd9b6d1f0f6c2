"""Shows a request whose energy is final: GET /requests/ID, and the ledger on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web

from loadgen.results.ledger_lines import LedgerBatch, LedgerPeriod, SettledRequest
from loadgen.sidecar.ledger_writer import LedgerWriter
from loadgen.sidecar.request_lookup import NamedRequest, RequestLookup, is_request_id, request_json
from loadgen.telemetry.otlp_parse import MAX_TEXT, join_key
from loadgen.units import ns_from_s

if TYPE_CHECKING:
    from loadgen.sidecar.ledger import Ledger, SettledEntry, Snapshot

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
        ledger: Ledger,
        *,
        folder: Path | None = None,
        kept: int = KEPT_REQUESTS,
        kept_s: float = KEPT_S,
        engine_url: str | None = None,
    ) -> None:
        """Raise LoadgenError when the ledger's folder cannot be written.

        folder: of the ledger on disk; None for none. kept, kept_s: requests that can be looked up, and how long.
        """
        self._ledger, self._lookup = ledger, RequestLookup(kept, ns_from_s(kept_s))
        self._engine = urlsplit(engine_url).netloc.rpartition("@")[2][:MAX_TEXT] if engine_url else None
        self._writer = LedgerWriter(folder) if folder else None
        self._unwritten: list[NamedRequest] = []
        self._committed_mj = self._idle_mj = self._unattributed_mj = 0
        self._to_unix_ns: int | None = None
        self.on_settled: Callable[[SettledRequest, bytes, bytes], None] | None = None
        """Is called with each settled request, and the ids of its trace and of the engine's span in it."""

    def take(self, snapshot: Snapshot, unix_ns: Callable[[int], int], now_ns: int) -> None:
        """Take what the newest commit settled. unix_ns: converts monotonic instants to Unix time."""
        ledger = self._ledger
        requests = tuple(settled_request(settled, self._engine, unix_ns, now_ns) for settled in ledger.settled)
        self._unwritten += [
            NamedRequest(request, tuple({part.key for part in settled.entry.parts}))
            for request, settled in zip(requests, ledger.settled, strict=True)
        ]
        if self.on_settled is not None:
            for request, settled in zip(requests, ledger.settled, strict=True):
                self.on_settled(request, settled.entry.request.trace_id, settled.entry.request.span_id)
        self._lookup.forget(unix_ns(now_ns))
        if self._writer is None:
            self._show()
            return
        committed_mj = sum(domain.committed_mj for domain in snapshot.domains)
        if not requests and committed_mj == self._committed_mj:
            return
        begin_ns = self._to_unix_ns or unix_ns(ledger.measured_since_ns or ledger.committed_ns)
        end_ns = max(unix_ns(ledger.committed_ns), begin_ns)
        period = LedgerPeriod(
            from_unix_ns=begin_ns,
            to_unix_ns=end_ns,
            counter_mj=committed_mj - self._committed_mj,
            idle_mj=snapshot.idle_mj - self._idle_mj,
            unattributed_mj=snapshot.unattributed_mj - self._unattributed_mj,
            open_mj=ledger.open_mj(),
            requests=len(requests),
        )
        self._writer.add(LedgerBatch(period, requests))
        self._committed_mj, self._to_unix_ns = committed_mj, end_ns
        self._idle_mj, self._unattributed_mj = snapshot.idle_mj, snapshot.unattributed_mj

    async def write(self) -> None:
        """Write what was taken, in a thread, and then show it."""
        if self._writer is not None:
            await asyncio.to_thread(self._writer.flush)
            self._show()

    def _show(self) -> None:
        self._lookup.add(self._unwritten)
        self._unwritten = []

    def close(self) -> None:
        """Write what waits, and release the ledger's folder."""
        if self._writer is not None:
            self._writer.close()

    @property
    def health(self) -> str | None:
        """State of the ledger on disk in words; None without one."""
        if self._writer is None:
            return None
        return f"cannot be written: {self._writer.problem}" if self._writer.problem else "written"

    async def serve(self, request: web.Request) -> web.Response:
        """Serve GET /requests/ID: 200 with its joules, 202 while its energy is not final, 404 if nothing is known."""
        name = request.match_info["id"]
        if not is_request_id(name):
            raise web.HTTPBadRequest(text="a request's id is printable and at most 128 characters long\n")
        if (settled := self._lookup.find(name)) is not None:
            return web.json_response(request_json(settled))
        waiting = {name, join_key(name)}
        if any(map(self._ledger.is_open, waiting)) or any(
            not waiting.isdisjoint(unwritten.names) for unwritten in self._unwritten
        ):
            headers = {"Retry-After": str(RETRY_S)}
            return web.json_response({"state": "waiting", "id": name}, status=202, headers=headers)
        return web.json_response({"state": "unknown", "id": name}, status=404)


def settled_request(
    settled: SettledEntry, engine: str | None, unix_ns: Callable[[int], int], now_ns: int
) -> SettledRequest:
    """Return a request as the ledger and its page have it."""
    entry, (model, workload) = settled
    request = entry.request
    return SettledRequest(
        id=next((part.key for part in entry.parts if part.client), request.key),
        model=model[:MAX_TEXT],
        workload=workload,
        engine=engine,
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

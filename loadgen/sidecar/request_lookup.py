"""Requests that have settled, by id, for GET /requests/ID: bounded in number and in time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from loadgen.telemetry.otlp_parse import MAX_TEXT, join_key
from loadgen.units import j_from_mj

if TYPE_CHECKING:
    from loadgen.results.ledger_lines import SettledRequest


class NamedRequest(NamedTuple):
    """A settled request, and the ids of the spans that it was joined from."""

    request: SettledRequest
    names: tuple[str, ...]


class RequestLookup:
    """The newest settled requests. Of requests with the same id, the one that settled last counts."""

    def __init__(self, kept: int, kept_ns: int) -> None:
        self._kept, self._kept_ns = kept, kept_ns
        self._settled: OrderedDict[str, NamedRequest] = OrderedDict()
        self._ids: dict[str, str] = {}
        """Name -> id."""

    def __len__(self) -> int:
        return len(self._settled)

    def add(self, settled: Iterable[NamedRequest]) -> None:
        """Keep these, and forget the oldest that are too many."""
        for named in settled:
            key = named.request.id
            if key in self._settled:
                self._forget(key)
            self._settled[key] = named
            self._ids |= dict.fromkeys((*named.names, key), key)
        while len(self._settled) > self._kept:
            self._forget(next(iter(self._settled)))

    def forget(self, now_unix_ns: int) -> None:
        """Forget those that settled too long ago."""
        before_ns = now_unix_ns - self._kept_ns
        while self._settled and next(iter(self._settled.values())).request.settled_unix_ns < before_ns:
            self._forget(next(iter(self._settled)))

    def find(self, name: str) -> SettledRequest | None:
        """Return the request with this id, or with the client's id that an engine's id contains."""
        key = self._ids.get(name) or self._ids.get(join_key(name))
        return None if key is None else self._settled[key].request

    def _forget(self, key: str) -> None:
        for name in {key, *self._settled.pop(key).names}:
            if self._ids.get(name) == key:
                del self._ids[name]


def is_request_id(text: str) -> bool:
    """Return True if a request can have this id: printable and short."""
    return 0 < len(text) <= MAX_TEXT and text.isprintable()


def request_json(request: SettledRequest) -> dict[str, Any]:
    """Return what the page of a request shows. The joules of a request that was not measured whole are unknown."""
    shown = msgspec.structs.asdict(request)
    prefill_mj, decode_mj, se_mj = (shown.pop(name) for name in ("prefill_mj", "decode_mj", "se_mj"))
    whole = shown.pop("whole")
    return {
        "state": "settled",
        **shown,
        "joules": j_from_mj(prefill_mj + decode_mj) if whole else None,
        "se_joules": None if se_mj is None or not whole else j_from_mj(se_mj),
        "prefill_joules": j_from_mj(prefill_mj) if whole else None,
        "decode_joules": j_from_mj(decode_mj) if whole else None,
        "measured_joules": j_from_mj(prefill_mj + decode_mj),
    }

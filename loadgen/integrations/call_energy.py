"""A call of a gateway with its measured joules, and where they are shown: a file of JSON lines, Prometheus counters."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
from prometheus_client import Counter

from loadgen.errors import LoadgenError
from loadgen.integrations.energy_lookup import RequestEnergy
from loadgen.sidecar.label_sets import LabelSets
from loadgen.telemetry.span_labels import OTHER, shown_value
from loadgen.units import J_PER_KWH

_log = logging.getLogger(__name__)

MAX_TEXT = 256
"""Characters of a text in a line of the log; a client may send longer ones."""
MAX_VALUES = 50
"""Values of a label that are shown; any further one is `other`."""
MAX_ROWS = 1_000
"""Sets of values that are shown; of any further one all values are `other`."""
PREFIX = "loadgen_litellm_"
"""Names of the counters begin with this."""
LABELS = ("requested_model", "team", "team_alias", "user", "api_key_alias", "end_user")
"""Labels that can be chosen, by the names that LiteLLM's own metrics have."""


class CallNames(msgspec.Struct, frozen=True, kw_only=True):
    """Names of a call, without its words, its key and the hash of its key. Texts that nobody gave are empty."""

    call_id: str
    """The gateway's id of the call, the same for each attempt of it."""
    request_id: str
    """The id that the engine knows."""
    ok: bool
    requested_model: str
    team: str
    team_alias: str
    user: str
    api_key_alias: str
    end_user: str
    cost: float | None
    """Price that the gateway charges, in its currency."""
    begin_unix_ns: int
    end_unix_ns: int


class GatewayCall(CallNames, frozen=True, kw_only=True):
    """Report of a gateway about a call. Numbers that the engine did not report are None."""

    first_token_unix_ns: int | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None


class CallEnergy(CallNames, frozen=True, kw_only=True):
    """A call and its measured joules; tokens are those that the sidecar counted."""

    state: Literal["settled", "partial", "unknown"]
    """Partial: a part of its time was not measured. Unknown: no span of it arrived, or no sidecar answered."""
    joules: float | None
    """Is None unless it settled."""
    se_joules: float | None
    prefill_joules: float | None
    decode_joules: float | None
    measured_joules: float | None
    """Energy that was measured of a request, whole or not."""
    energy_cost: float | None
    """Price of its joules; None without a price per kWh."""
    model: str | None
    engine: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    settled_unix_ns: int | None


_NAMES = CallNames.__struct_fields__


def call_energy(call: GatewayCall, energy: RequestEnergy | None, price_per_kwh: float | None) -> CallEnergy:
    """Return a call with the joules that a sidecar measured; energy is None if it does not know the request."""
    fields: dict[str, Any] = {name: getattr(call, name) for name in _NAMES}
    fields |= {name: getattr(energy, name, None) for name in RequestEnergy.__struct_fields__}
    joules = fields["joules"]
    return CallEnergy(
        **fields,
        state="unknown" if energy is None else "partial" if joules is None else "settled",
        energy_cost=None if joules is None or price_per_kwh is None else joules / J_PER_KWH * price_per_kwh,
    )


class EnergyLog:
    """A file of JSON lines, one per call. Several processes may append to it."""

    def __init__(self, path: Path) -> None:
        """Raises LoadgenError when it cannot be written."""
        self._path = path
        self.lost = 0
        """Lines that could not be written."""
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise LoadgenError(f"the log of joules {path} cannot be written: {err.strerror or err}") from err

    def add(self, energy: CallEnergy) -> None:
        """Append a line, in one write: lines of other processes cannot come between."""
        line = msgspec.json.encode(energy) + b"\n"
        try:
            os.write(self._file, line)
        except OSError as err:
            if not self.lost:
                _log.warning("the log of joules %s cannot be written: %s", self._path, err.strerror or err)
            self.lost += 1


@cache
def _counters(labels: tuple[str, ...]) -> tuple[Counter, Counter, Counter]:
    """Return the counters with these labels. They are on the default page of prometheus_client, as LiteLLM's are, and
    can be there only once."""
    return (
        Counter(PREFIX + "energy_joules", "Measured joules of calls that settled.", labels),
        Counter(PREFIX + "energy_cost", "Price of these joules. Absent without a price per kWh.", labels),
        Counter(PREFIX + "calls", "Calls; state is settled, partial, unknown or dropped.", (*labels, "state")),
    )


class EnergyCounters:
    """Prometheus counters of joules beside those of LiteLLM's spend, with bounded labels."""

    def __init__(self, labels: Sequence[str]) -> None:
        """Raises LoadgenError for a label that is not one of LABELS."""
        if unknown := [label for label in labels if label not in LABELS]:
            raise LoadgenError(f"{unknown[0]!r} is no label of LiteLLM's calls; the labels are {', '.join(LABELS)}")
        self._labels = LabelSets(labels, MAX_VALUES)
        self._rows: set[tuple[str, ...]] = set()
        try:
            self._joules, self._cost, self._calls = _counters(tuple(labels))
        except ValueError as err:
            raise LoadgenError("the counters of joules have other labels in this process: use one callback") from err

    def add(self, call: GatewayCall, energy: CallEnergy | None) -> None:
        """Count a call; energy is None if its joules were not looked up, because too many waited."""
        values = {name: shown_value([getattr(call, name)]) for name in self._labels.names}
        row = self._labels.row(self._labels.bounded(values))
        if row not in self._rows and len(self._rows) >= MAX_ROWS:
            row = (OTHER,) * len(row)
        self._rows.add(row)
        self._calls.labels(*row, "dropped" if energy is None else energy.state).inc()
        if energy is not None and energy.joules is not None:
            self._joules.labels(*row).inc(energy.joules)
            if energy.energy_cost is not None:
                self._cost.labels(*row).inc(energy.energy_cost)

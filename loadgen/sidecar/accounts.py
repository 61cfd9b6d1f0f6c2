"""Accounts per model and workload: energy, tokens, requests and their histograms. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from loadgen.errors import LoadgenError
from loadgen.sidecar.label_sets import LabelSets, ShownValues
from loadgen.sidecar.server_times import ServerTimes
from loadgen.sidecar.session_energy import OpenSessions
from loadgen.telemetry.histogram import Histogram
from loadgen.telemetry.otlp_parse import MAX_TEXT
from loadgen.telemetry.span_labels import OTHER
from loadgen.units import j_from_mj, mj_from_j, s_from_ns

if TYPE_CHECKING:
    from loadgen.telemetry.otlp_parse import RequestSpan

MAX_LABEL_VALUES = 50
"""Values of a label of the user's choosing that are shown, unless an option says otherwise."""
MAX_ROWS = 2000
"""Limit of the rows of totals by model, workload and labels. The stated accounts together have this limit, and so have
all others; requests of any further row have `other` as each of their labels."""
MAX_LABELS = 50
"""Limit of the pairs of model and workload besides the stated ones; requests of any further pair are added up under
`other`. No pair replaces another: if `other` took its joules over, Prometheus would count them twice."""
MAX_STATED_ACCOUNTS = 200
"""Limit of the pairs that can be stated."""
UNLABELLED = "unlabelled"
"""Workload of spans that name none."""

SPAN_PREFILL = 0.05
"""Standard error of a prefill's energy for what a span does not show: when its steps ran. Chosen so that 1.96 standard
errors hold 95 % on average over the cases of tests/sidecar/test_live_errors.py, in which they hold 89 to 98 %."""

ENERGY_BOUNDS_J = tuple(base * 10.0**k for k in range(-1, 6) for base in (1, 2, 5))[:19]
TTFT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
SESSION_BOUNDS_J = tuple(base * 10.0**k for k in range(7) for base in (1, 2, 5))[:19]
DURATION_BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 3.5, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)

AccountKey = tuple[str, str]
"""Model, workload."""


def parse_accounts(texts: Iterable[str]) -> tuple[AccountKey, ...]:
    """Return the pairs of each `MODEL` or `MODEL=WORKLOAD,WORKLOAD`. Raises LoadgenError for what no span can have."""
    keys: dict[AccountKey, None] = {}
    for text in texts:
        model, _, workloads = text.rpartition("=") if "=" in text else (text, "=", UNLABELLED)
        names = [name.strip() for name in (model, *workloads.split(","))]
        if not all(name and name.isprintable() and len(name) <= MAX_TEXT for name in names):
            raise LoadgenError(
                f"--account {text[:MAX_TEXT]!r}: expected MODEL=WORKLOAD,..., each printable and at most {MAX_TEXT} "
                "characters"
            )
        keys |= dict.fromkeys((names[0], workload) for workload in names[1:])
    if len(keys) > MAX_STATED_ACCOUNTS:
        raise LoadgenError(f"--account: {len(keys)} accounts, of which at most {MAX_STATED_ACCOUNTS} can be stated")
    return tuple(keys)


@dataclass
class OpenRequest:
    """A request that is not closed yet, and the energy committed to it so far."""

    request: RequestSpan
    prefill_mj: int = 0
    decode_mj: int = 0
    charged: bool = False
    """True once a commit had steps of it; until then its energy is unknown, not 0."""
    whole: bool = True
    """False if part of its time was not measured, or committed before its span arrived: its energy is then unknown."""
    windows_j2: float | None = 0.0
    """Variance of its joules by the noise of the counter's windows; None if it was charged before the first fit."""
    law_j: float = 0.0
    """Standard error of its joules by the law's misfit."""
    parts: tuple[RequestSpan, ...] = ()
    """The spans that `request` was joined from."""
    totals: tuple[Account, *tuple[Totals, ...]] | tuple[()] = ()
    """The totals that it is charged in, once it is."""

    def __post_init__(self) -> None:
        self.parts = self.parts or (self.request,)

    def add_errors(self, windows_j2: float | None, law_j: float) -> None:
        """Add the errors of a portion of its energy. windows_j2: None if there is no fit yet."""
        self.windows_j2 = None if self.windows_j2 is None or windows_j2 is None else self.windows_j2 + windows_j2
        self.law_j += law_j

    @property
    def se_mj(self) -> int | None:
        """Standard error of its energy."""
        if self.windows_j2 is None or not self.charged:
            return None
        prefill_j = SPAN_PREFILL * j_from_mj(self.prefill_mj)
        return mj_from_j(math.hypot(math.sqrt(self.windows_j2), self.law_j, prefill_j))


@dataclass
class Totals:
    """Energy, tokens and requests. Changes only when energy is committed or a request is closed."""

    prefill_mj: int = 0
    decode_mj: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    without_input_tokens: int = 0
    """Requests whose spans do not say how many: they are in no token total."""
    without_output_tokens: int = 0
    completed: int = 0
    failed: int = 0

    def charge(self, prefill_mj: int, decode_mj: int) -> None:
        """Add committed energy."""
        self.prefill_mj += prefill_mj
        self.decode_mj += decode_mj

    def count(self, request: RequestSpan) -> None:
        """Count a request that is closed, and its tokens."""
        self.completed += request.ok
        self.failed += not request.ok
        self.input_tokens += request.input_tokens or 0
        self.output_tokens += request.output_tokens or 0
        self.without_input_tokens += request.input_tokens is None
        self.without_output_tokens += request.output_tokens is None


@dataclass
class Account(Totals):
    """Totals of one pair of model and workload, with their distributions."""

    energy_mj: int = 0
    """Energy of closed requests alone: the energy histogram's sum."""
    energy: Histogram = field(default_factory=lambda: Histogram(ENERGY_BOUNDS_J))
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS_S))
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS_S))
    server: ServerTimes = field(default_factory=ServerTimes)

    completed_sessions: Histogram = field(default_factory=lambda: Histogram(SESSION_BOUNDS_J))
    """Energy of ended sessions whose every request completed."""
    failed_sessions: Histogram = field(default_factory=lambda: Histogram(SESSION_BOUNDS_J))
    """Energy of those with a request that failed."""
    completed_sessions_mj: int = 0
    failed_sessions_mj: int = 0
    by_labels: dict[tuple[str, ...], Totals] = field(default_factory=dict)
    """The same totals by the values of the labels of the user's choosing. Empty without such labels."""

    def close(self, entry: OpenRequest) -> None:
        """Count a request to which no more energy can be committed."""
        request = entry.request
        self.count(request)
        if entry.charged and entry.whole:
            energy_mj = entry.prefill_mj + entry.decode_mj
            self.energy_mj += energy_mj
            self.energy.observe(j_from_mj(energy_mj), request.request_id)
            self.energy.sum = j_from_mj(self.energy_mj)
        self.server.observe(request, entry.parts)
        if request.ok:
            self.duration.observe(s_from_ns(request.end_ns - request.start_ns), request.request_id)
        if request.ok and request.first_token_ns is not None:
            self.ttft.observe(s_from_ns(request.first_token_ns - request.start_ns), request.request_id)

    def end_session(self, energy_mj: int, ok: bool) -> None:
        """Count a session to which no more requests are added."""
        if ok:
            self.completed_sessions_mj += energy_mj
            self.completed_sessions.observe(j_from_mj(energy_mj))
            self.completed_sessions.sum = j_from_mj(self.completed_sessions_mj)
        else:
            self.failed_sessions_mj += energy_mj
            self.failed_sessions.observe(j_from_mj(energy_mj))
            self.failed_sessions.sum = j_from_mj(self.failed_sessions_mj)

    def copy(self) -> Account:
        return replace(
            self,
            energy=self.energy.copy(),
            ttft=self.ttft.copy(),
            duration=self.duration.copy(),
            server=self.server.copy(),
            completed_sessions=self.completed_sessions.copy(),
            failed_sessions=self.failed_sessions.copy(),
            by_labels={values: replace(totals) for values, totals in self.by_labels.items()},
        )


class Accounts:
    """One account per pair of model and workload, bounded in number whatever clients call themselves."""

    def __init__(
        self,
        model: str | None = None,
        labels: Iterable[str] = (),
        label_values: int = MAX_LABEL_VALUES,
        shown: ShownValues | None = None,
        stated: Iterable[AccountKey] = (),
    ) -> None:
        """stated: accounts that are shown from the beginning, whichever others come before."""
        self.labels = LabelSets(labels, label_values, shown)
        """Labels of the user's choosing, by which totals are shown too."""
        self._rows = {True: 0, False: 0}
        """Totals by labels, of the accounts that are stated and of the others."""
        self.model = model
        """Model of spans that name none, from now on."""
        self._accounts = {key: Account() for key in stated}
        self._stated = frozenset(self._accounts)
        self._sessions = OpenSessions()

    def key_of(self, request: RequestSpan) -> AccountKey:
        """The key of the request's account, as the metrics show it."""
        key = (request.model or self.model or "unknown", request.workload or UNLABELLED)
        has_room = len(self._accounts) < len(self._stated) + MAX_LABELS
        return key if key in self._accounts or has_room else ("other", "other")

    def of(self, request: RequestSpan) -> Account:
        """The request's account, opened if there is none yet."""
        return self._opened(self.key_of(request))

    def _opened(self, key: AccountKey) -> Account:
        if (account := self._accounts.get(key)) is not None:
            return account
        return self._accounts.setdefault(key, Account())

    def totals_of(self, request: RequestSpan) -> tuple[Account, *tuple[Totals, ...]]:
        """The totals that the request is counted in: its account, and there those of its labels if labels are shown."""
        account = self._opened(key := self.key_of(request))
        if not self.labels.names:
            return (account,)
        row = self.labels.row(request.labels)
        if (totals := account.by_labels.get(row)) is None:
            is_stated = key in self._stated
            if self._rows[is_stated] >= MAX_ROWS:
                row = (OTHER,) * len(row)
            self._rows[is_stated] += row not in account.by_labels
            totals = account.by_labels.setdefault(row, Totals())
        return account, totals

    def charge(self, entry: OpenRequest, prefill_mj: int, decode_mj: int) -> None:
        """Commit energy to a request and to its account."""
        if not entry.charged:
            entry.request = self._labelled(entry.request)
        entry.charged = True
        entry.prefill_mj += prefill_mj
        entry.decode_mj += decode_mj
        entry.totals = entry.totals or self.totals_of(entry.request)
        for totals in entry.totals:
            totals.charge(prefill_mj, decode_mj)

    def close(self, entry: OpenRequest) -> None:
        """Count a request to which no more energy can be committed, in its account and in its session."""
        if not entry.charged:
            entry.request = self._labelled(entry.request)
        account, *by_labels = entry.totals or self.totals_of(entry.request)
        account.close(entry)
        for totals in by_labels:
            totals.count(entry.request)
        self._sessions.add(entry, account)

    def end_sessions(self, now_ns: int) -> None:
        """Count the sessions that have been idle for long."""
        self._sessions.end_idle(now_ns)

    def _labelled(self, request: RequestSpan) -> RequestSpan:
        """Return the request with the labels of its trace; once it was charged they do not change."""
        if not self.labels.names:
            return request
        return msgspec.structs.replace(request, labels=self.labels.of(request))

    def open(self, request: RequestSpan) -> None:
        """Show the request's totals, at 0 if they are new: a counter that starts elsewhere has no rate."""
        self.totals_of(self._labelled(request))

    def freeze(self) -> Mapping[AccountKey, Account]:
        """Copies of all accounts, which later commits do not change."""
        return {key: account.copy() for key, account in self._accounts.items()}

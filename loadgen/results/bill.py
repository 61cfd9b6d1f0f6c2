"""The bill: lines of a ledger on disk, summed by model, workload, engine or day, equal to the counter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from loadgen.errors import LoadgenError
from loadgen.results.factors import Factors
from loadgen.results.read_ledger import LedgerFile, ledger_files
from loadgen.results.table import Column, Table
from loadgen.units import NS_PER_S, j_from_mj

if TYPE_CHECKING:
    from loadgen.results.ledger_lines import LedgerBatch, LedgerPeriod, SettledRequest

ShareIdle = Literal["none", "by-tokens", "by-energy"]
SHARES: tuple[ShareIdle, ...] = get_args(ShareIdle)

LABELS = ("model", "workload", "engine", "day")
"""Labels of each bill, beside those of `sidecar --label`. The day, in UTC, is that of the period in
which a request settled."""
MAX_GROUPS = 100_000


class SpanOfTime(NamedTuple):
    """Periods that end at `from_ns` or later and before `to_ns` are billed; None is no limit. Unix time."""

    from_ns: int | None = None
    to_ns: int | None = None

    def has(self, period: LedgerPeriod) -> bool:
        end_ns = period.to_unix_ns
        return (self.from_ns is None or end_ns >= self.from_ns) and (self.to_ns is None or end_ns < self.to_ns)


ALWAYS = SpanOfTime()
NO_FACTORS = Factors()


@dataclass
class BillGroup:
    """Energy and tokens of one group of requests."""

    requests: int = 0
    failed: int = 0
    partial: int = 0
    """Requests of which a part was not measured: they used more than is billed."""
    without_tokens: int = 0
    """Requests whose input or output tokens are unknown: those are in no count of tokens."""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    prefill_mj: int = 0
    decode_mj: int = 0
    idle_mj: int = 0
    """Share of the idle energy."""
    se_mj: int = 0
    """Sum of the known standard errors of requests, the largest that their sum can have."""
    without_error: int = 0
    """Requests whose standard error is unknown: as before a sidecar's first fit."""

    @property
    def energy_mj(self) -> int:
        return self.prefill_mj + self.decode_mj + self.idle_mj

    @property
    def known_se_mj(self) -> int | None:
        """Sum of the known standard errors; None if none is."""
        return None if self.without_error and not self.se_mj else self.se_mj

    def add(self, request: SettledRequest) -> None:
        self.requests += 1
        self.failed += not request.ok
        self.partial += not request.whole
        self.without_tokens += request.input_tokens is None or request.output_tokens is None
        self.input_tokens += request.input_tokens or 0
        self.cached_tokens += request.cached_tokens or 0
        self.output_tokens += request.output_tokens or 0
        self.decode_mj += request.decode_mj
        if request.prefill_engine is None:
            self.prefill_mj += request.prefill_mj
        self._add_error(request)

    def add_prefill(self, request: SettledRequest, *, of_other: bool) -> None:
        """Add the prefill of a request that another engine decoded; its error is no larger than the request's.

        of_other: the request is counted in another group, with its error.
        """
        self.prefill_mj += request.prefill_mj
        if of_other:
            self._add_error(request)

    def _add_error(self, request: SettledRequest) -> None:
        if request.energy_mj:
            self.se_mj += request.se_mj or 0
            self.without_error += request.se_mj is None


@dataclass
class BillSums:
    """The groups of a bill by their labels, and the energy that is in none. It all sums to the counter."""

    by: tuple[str, ...]
    groups: dict[tuple[str, ...], BillGroup]
    share_idle: ShareIdle = "none"
    factors: Factors = NO_FACTORS
    """Factors by which energy becomes CO2e and money."""
    counter_mj: int = 0
    idle_mj: int = 0
    """Idle energy that is in no group."""
    unattributed_mj: int = 0
    engine_idle_mj: dict[str, int] = field(default_factory=dict)
    """Parts of `idle_mj` by engine, where engines have names."""
    engine_unattributed_mj: dict[str, int] = field(default_factory=dict)
    """Parts of `unattributed_mj` by engine."""
    unsettled_mj: int = 0
    """Energy of requests that had not settled at the end, less that of requests which had not at the beginning."""
    lost_requests: int = 0
    """Requests without a line, because the disk was full: their energy is unattributed."""
    from_unix_ns: int | None = None
    """Begin of the first period; None without a period."""
    to_unix_ns: int | None = None
    measured_ns: int = 0
    """Sum of the periods: less than from begin to end where no sidecar ran, and more where several did."""
    labels: set[str] = field(default_factory=set)
    """Names of the labels of `sidecar --label` that its requests have."""
    sources: set[str] = field(default_factory=set)
    """Domains of the sidecars' meters, with the origin of their joules."""
    files: int = 0
    torn: int = 0
    """Files that end in lines of a batch that was not written whole, which are left out."""

    def check(self) -> None:
        """Raise AssertionError unless the bill is the counter; called before anything is shown."""
        of_groups = sum(group.energy_mj for group in self.groups.values())
        if off_mj := self.counter_mj - of_groups - self.idle_mj - self.unattributed_mj - self.unsettled_mj:
            raise AssertionError(f"the bill is not the counter: {off_mj} mJ are in no line")


def bill_of(
    folder: Path,
    by: Sequence[str] = ("workload",),
    span: SpanOfTime = ALWAYS,
    share_idle: ShareIdle = "none",
    factors: Factors = NO_FACTORS,
) -> BillSums:
    """Sum the ledger in a folder. Raises LoadgenError for what cannot be read, or is not a ledger."""
    if refused := [name for name in by if list(by).count(name) > 1 or not name or name in _COLUMN_NAMES]:
        raise LoadgenError(f"a bill is by labels, each once and no column of it, not by {refused[0][:80]!r}")
    bill = BillSums(tuple(by), {}, share_idle, factors)
    parts: dict[tuple[str, int], Path] = {}
    for path in ledger_files(folder):
        bill.files += 1
        reader = LedgerFile(path)
        for batch, open_before_mj in reader.batches():
            if span.has(batch.period):
                _add(bill, batch, open_before_mj)
                bill.sources |= {*(reader.start.sources if reader.start else ())}
        bill.torn += reader.torn
        if reader.start is not None:
            other = parts.setdefault((reader.start.session, reader.start.file), path)
            if other != path:
                raise LoadgenError(f"{path} is the same part of the ledger as {other.name}: remove one of the two")
    if unknown := [name for name in bill.by if bill.groups and name not in (*LABELS, *bill.labels)]:
        known = ", ".join((*LABELS, *sorted(bill.labels)[:20]))
        raise LoadgenError(f"no request of the bill has a label {unknown[0][:80]!r}: it can be by {known[:300]!r}")
    _share_idle(bill)
    bill.check()
    return bill


def _add(bill: BillSums, batch: LedgerBatch, open_before_mj: int) -> None:
    period = batch.period
    day = datetime.fromtimestamp(period.to_unix_ns // NS_PER_S, UTC).strftime("%Y-%m-%d") if "day" in bill.by else ""
    for request in batch.requests:
        if request.labels and len(bill.labels) < MAX_GROUPS:
            bill.labels |= request.labels.keys()
        group = _group(bill, request, request.engine, day)
        group.add(request)
        if request.prefill_engine is not None:
            first = _group(bill, request, request.prefill_engine, day)
            first.add_prefill(request, of_other=first is not group)
    bill.counter_mj += period.counter_mj
    bill.idle_mj += period.idle_mj
    bill.unattributed_mj += period.unattributed_mj + period.lost_mj
    for part in period.engines:
        for parts_mj, energy_mj in (
            (bill.engine_idle_mj, part.idle_mj),
            (bill.engine_unattributed_mj, part.unattributed_mj),
        ):
            parts_mj[part.engine] = parts_mj.get(part.engine, 0) + energy_mj
    bill.unsettled_mj += period.open_mj - open_before_mj
    bill.lost_requests += period.lost_requests
    bill.from_unix_ns = min(bill.from_unix_ns or period.from_unix_ns, period.from_unix_ns)
    bill.to_unix_ns = max(bill.to_unix_ns or period.to_unix_ns, period.to_unix_ns)
    bill.measured_ns += period.to_unix_ns - period.from_unix_ns


def _group(bill: BillSums, request: SettledRequest, engine: str | None, day: str) -> BillGroup:
    """Return the group of a request, or of its part at an engine."""
    own = {"model": request.model, "workload": request.workload, "engine": engine or "", "day": day}
    key = tuple(own[name] if name in own else request.labels.get(name, "") for name in bill.by)
    if key not in bill.groups and len(bill.groups) >= MAX_GROUPS:
        raise LoadgenError(f"more than {MAX_GROUPS:,} lines by {', '.join(bill.by)}: bill by fewer labels")
    return bill.groups.setdefault(key, BillGroup())


def _share_idle(bill: BillSums) -> None:
    """Divide the idle energy among the groups, that of an engine among its own in a bill by engine.

    What no group has a weight for stays idle.
    """
    if bill.share_idle == "none":
        return
    if "engine" not in bill.by:
        bill.engine_idle_mj = {}
    column = bill.by.index("engine") if bill.engine_idle_mj else 0
    rest_mj = bill.idle_mj - sum(bill.engine_idle_mj.values())
    for engine, idle_mj in ((None, rest_mj), *bill.engine_idle_mj.items()):
        groups = [group for key, group in bill.groups.items() if engine is None or key[column] == engine]
        weights = [
            group.input_tokens + group.output_tokens
            if bill.share_idle == "by-tokens"
            else group.prefill_mj + group.decode_mj
            for group in groups
        ]
        if sum(weights):
            for group, share_mj in zip(groups, whole_shares(idle_mj, weights), strict=True):
                group.idle_mj += share_mj
            bill.idle_mj -= idle_mj
            if engine is not None:
                bill.engine_idle_mj = bill.engine_idle_mj | {engine: 0}


def whole_shares(total: int, weights: Sequence[int]) -> list[int]:
    """Divide a whole number in proportion to weights, exactly: the largest remainders are rounded up."""
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda k: -(total * weights[k] % whole))
    for k in by_remainder[: total - sum(shares)]:
        shares[k] += 1
    return shares


LINE_COLUMNS = (
    Column("account", "string", None, "requests, idle, unattributed or unsettled."),
    Column("requests", "int64", None, "Settled requests."),
    Column("failed", "int64", None, "Those that failed."),
    Column("partial", "int64", None, "Those of which a part was not measured: they used more than is billed."),
    Column("without_tokens", "int64", None, "Those whose tokens are not all known, and not all counted."),
    Column("without_error", "int64", None, "Those whose standard error is unknown, and not in max_se_mj."),
    Column("input_tokens", "int64", "tokens", "Prompt tokens, cached ones included."),
    Column("cached_tokens", "int64", "tokens", "Prompt tokens from the prefix cache."),
    Column("output_tokens", "int64", "tokens", "Output tokens."),
    Column("prefill_mj", "int64", "mJ", "Energy of prefills."),
    Column("decode_mj", "int64", "mJ", "Energy of decode steps."),
    Column("idle_mj", "int64", "mJ", "Idle energy, or the line's share of it."),
    Column("energy_mj", "int64", "mJ", "All energy of the line; the lines sum to the counter."),
    Column("max_se_mj", "int64", "mJ", "Largest standard error that prefill_mj + decode_mj can have, but for requests "
           "whose own is unknown (without_error): the sum of those of the others. Null if there are no others."),
    Column("total_joules", "float64", "J", "energy_mj with the facility's overhead by the stated PUE; without it if "
           "none is stated."),
    Column("co2e_grams", "float64", "g", "total_joules times the stated grid intensity. Null if none is stated."),
    Column("cost", "float64", None, "total_joules times the stated price. Null if none is stated."),
)  # fmt: skip
"""Columns of a bill; those of its labels follow the first."""
_COLUMN_NAMES = {column.name for column in LINE_COLUMNS}


def bill_table(bill: BillSums) -> Table:
    """Return the lines of a bill: its groups, those of most energy first, then idle, unattributed and unsettled."""
    account, *numbers = LINE_COLUMNS
    labels = [Column(name, "string", None, f"The {name} of the requests; empty if there is none.") for name in bill.by]
    groups = sorted(bill.groups.items(), key=lambda item: (-item[1].energy_mj, item[0]))
    rows: list[list[Any]] = [
        ["requests", *key, group.requests, group.failed, group.partial, group.without_tokens, group.without_error,
         group.input_tokens, group.cached_tokens, group.output_tokens, group.prefill_mj, group.decode_mj, group.idle_mj,
         group.energy_mj, group.known_se_mj, *priced(group.energy_mj, bill.factors)]
        for key, group in groups
    ]  # fmt: skip
    for name, engine, energy_mj in _others(bill):
        idle_mj = energy_mj if name == "idle" else None
        of_labels = [engine if label == "engine" else None for label in bill.by]
        shown = [*of_labels, *([None] * 10), idle_mj, energy_mj, None]
        rows.append([name, *shown, *priced(energy_mj, bill.factors)])
    columns = [account, *labels, *numbers]
    return Table(columns, {column.name: [row[k] for row in rows] for k, column in enumerate(columns)})


def priced(energy_mj: int, factors: Factors) -> list[float | None]:
    """Return an energy with the facility's overhead, its CO2e and its cost."""
    joules = factors.facility_joules(j_from_mj(energy_mj))
    return [joules, factors.co2e_grams(joules), factors.cost(joules)]


def _others(bill: BillSums) -> list[tuple[str, str | None, int]]:
    """Return the lines of energy in no group: account, engine if the bill is by engine and it is known, and energy."""
    lines: list[tuple[str, str | None, int]] = []
    for account, total_mj, by_engine in (
        ("idle", bill.idle_mj, bill.engine_idle_mj),
        ("unattributed", bill.unattributed_mj, bill.engine_unattributed_mj),
    ):
        parts = sorted(by_engine.items()) if "engine" in bill.by else []
        rest_mj = total_mj - sum(energy_mj for _, energy_mj in parts)
        lines += [(account, engine, energy_mj) for engine, energy_mj in parts]
        if rest_mj or not parts:
            lines.append((account, None, rest_mj))
    return [*lines, ("unsettled", None, bill.unsettled_mj)]

"""Lines of a ledger on disk: requests that have settled, and periods, which sum to the counter. Pure.

A file begins with a `start`. Then come batches: the requests that settled in a period, and the `period`, which ends its
batch. Lines after the last period are of a batch that was not written whole. All energy is in whole millijoules, and in
each batch, with the `open_mj` of the line before it,

    counter_mj == sum of requests + idle_mj + unattributed_mj + lost_mj + (open_mj - previous open_mj)
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

FORMAT_VERSION = "1.1"
"""Version of the format. MINOR grows with a new field, MAJOR when a field goes away or changes its meaning."""

MAX_INT = 2**63 - 1
"""Numbers have at most 64 bits, as in Parquet."""
Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
Instant = Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)]
Name = Annotated[str, Meta(max_length=256)]


class LedgerStart(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="start"):
    """The first line of a file."""

    format_version: Name
    """Version of this format, MAJOR.MINOR."""
    loadgen_version: Name
    """Version of loadgen that wrote the file."""
    session: Name
    """Random identity of one process of the sidecar."""
    file: Count
    """Number of the file in its session, from 1."""
    open_mj: Count
    """Energy that earlier files of the session have in no line yet: of requests that had not settled."""
    sources: Annotated[list[Name], Meta(max_length=64)] = []
    """Domains of the meter with the origin of their joules, such as "gpu:0 (nvml-counter)"; empty before 1.1."""


class SettledRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="kind", tag="request"):
    """A request to which no more energy is assigned. Instants are Unix time; null is unknown."""

    id: Name
    """X-Request-Id of the client, where the engine's id contains it; else the engine's id, or that of its span."""
    model: Name
    """Model, as the metrics name it."""
    workload: Name
    """Workload, as the metrics name it."""
    engine: Name | None
    """Engine that served it; of a request with a prefill engine too, the one that decoded."""
    prefill_engine: Name | None = None
    """Engine that computed its prompt, where another one decoded: `prefill_mj` is of this one, `decode_mj` of that."""
    labels: Annotated[dict[Name, Name], Meta(max_length=16)] = {}
    """Values of the labels of `--label`, as the metrics name them. A label that it has no value of is left out."""
    ok: bool
    """True if it completed."""
    begin_unix_ns: Instant
    """Instant of its arrival."""
    first_token_unix_ns: Instant | None
    """Instant of its first token."""
    end_unix_ns: Instant
    """Instant of its end."""
    settled_unix_ns: Instant
    """Instant from which on its energy is final."""
    input_tokens: Count | None
    """Tokens of the prompt, cached ones included."""
    output_tokens: Count | None
    """Generated tokens."""
    cached_tokens: Count | None
    """Tokens of the prompt that were in the prefix cache."""
    prefill_mj: Count
    """Energy of its prefill."""
    decode_mj: Count
    """Energy of its decode steps."""
    se_mj: Count | None
    """Standard error of prefill_mj + decode_mj."""
    whole: bool
    """False if a part of its time was not measured: it used more than its millijoules, and how much is unknown."""

    @property
    def energy_mj(self) -> int:
        return self.prefill_mj + self.decode_mj


class EnginePeriod(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a period that is of one engine: its counter, and where that went but for requests."""

    engine: Name
    """Name of the engine."""
    counter_mj: Count = 0
    """Energy that its meter counted in the period."""
    idle_mj: Count = 0
    """Part of it used while it had no request."""
    unattributed_mj: Count = 0
    """Part of it used by requests without a span, or none in time."""
    open_mj: Count = 0
    """Energy that it assigned so far to requests that have not settled."""

    def since(self, before: EnginePeriod) -> EnginePeriod:
        """Return the growth from `before`, with the open energy that is open at the end."""
        return EnginePeriod(
            engine=self.engine,
            counter_mj=self.counter_mj - before.counter_mj,
            idle_mj=self.idle_mj - before.idle_mj,
            unattributed_mj=self.unattributed_mj - before.unattributed_mj,
            open_mj=self.open_mj,
        )


class LedgerPeriod(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="period"):
    """The energy that the meter counted between two instants, and where it went."""

    from_unix_ns: Instant
    """Begin of the period: the end of the one before it."""
    to_unix_ns: Instant
    """End of the period."""
    counter_mj: Count
    """Energy that the meter counted in the period."""
    idle_mj: Count
    """Part of it used while no request was in flight."""
    unattributed_mj: Count
    """Part of it used by requests without a span, or none in time."""
    open_mj: Count
    """Energy assigned so far to requests that have not settled."""
    requests: Count
    """Lines of requests in the batch that this line ends."""
    lost_requests: Count = 0
    """Requests that settled in the period and have no line, because the disk was full for too long."""
    lost_mj: Count = 0
    """Energy of those requests."""
    engines: Annotated[tuple[EnginePeriod, ...], Meta(max_length=256)] = ()
    """The period's parts by engine, where several have names; they sum to it."""


LedgerLine = LedgerStart | SettledRequest | LedgerPeriod


class LedgerBatch(msgspec.Struct, frozen=True):
    """A period and the requests that settled in it."""

    period: LedgerPeriod
    requests: tuple[SettledRequest, ...]


def imbalance_mj(batch: LedgerBatch, open_mj: int) -> int:
    """Return the period's counter less the sum of its parts: 0, or the batch is wrong. open_mj: that before it."""
    period = batch.period
    of_requests = sum(request.energy_mj for request in batch.requests) + period.lost_mj
    return period.counter_mj - of_requests - period.idle_mj - period.unattributed_mj - (period.open_mj - open_mj)


def engines_agree(period: LedgerPeriod) -> bool:
    """Return True unless the period has parts by engine that do not sum to it."""
    names = ("counter_mj", "idle_mj", "unattributed_mj", "open_mj")
    return not period.engines or all(
        sum(getattr(part, name) for part in period.engines) == getattr(period, name) for name in names
    )


def folded(older: LedgerBatch, newer: LedgerBatch) -> LedgerBatch:
    """Return one batch of two that follow each other, without the lines of the older one's requests."""
    before, after = older.period, newer.period
    return LedgerBatch(
        msgspec.structs.replace(
            after,
            from_unix_ns=before.from_unix_ns,
            counter_mj=before.counter_mj + after.counter_mj,
            idle_mj=before.idle_mj + after.idle_mj,
            unattributed_mj=before.unattributed_mj + after.unattributed_mj,
            lost_requests=before.lost_requests + after.lost_requests + len(older.requests),
            lost_mj=before.lost_mj + after.lost_mj + sum(request.energy_mj for request in older.requests),
            engines=tuple(_summed(*parts) for parts in zip(before.engines, after.engines, strict=True)),
        ),
        newer.requests,
    )


def _summed(before: EnginePeriod, after: EnginePeriod) -> EnginePeriod:
    """Return one part of two that follow each other. A sidecar's engines are the same in all of its periods."""
    return EnginePeriod(
        engine=after.engine,
        counter_mj=before.counter_mj + after.counter_mj,
        idle_mj=before.idle_mj + after.idle_mj,
        unattributed_mj=before.unattributed_mj + after.unattributed_mj,
        open_mj=after.open_mj,
    )

"""The ledger of a sidecar in virtual time: the real Ledger, Settlement and files, without sockets and clocks.

What a sidecar is sent and reads comes from a simulated run: the counter as NVML is polled, the engine's counters four
times a second, and a span of each request with the next batch of vLLM's exporter.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadgen.clock import Anchor
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.sidecar.ledger import Ledger, Snapshot
from loadgen.sidecar.settlement import Settlement
from loadgen.sidecar.watched_engine import WatchedEngine
from loadgen.simulator.engine import SimulatedRun
from loadgen.simulator.spans import Finished, export_finished
from loadgen.telemetry.engine_sample import EngineSample
from loadgen.telemetry.otlp_parse import RequestSpan, parse_spans
from loadgen.units import NS_PER_MS, NS_PER_S

GPU = EnergyDomain(name="gpu:0", source="simulated", limit_w=700.0)
TENANT = "tenant"
ENGINE_PERIOD_NS = 250 * NS_PER_MS
"""Period at which a sidecar reads an engine's counters."""
EXPORT_NS = 5 * NS_PER_S
"""Period at which vLLM's exporter sends the spans of the requests that ended."""
WALL_NS = 1_700_000_000 * NS_PER_S
"""Wall-clock time at the virtual instant 0."""
MODEL = "llama-3.1-8b"


class Received(NamedTuple):
    """Samples and spans that arrive at a sidecar in one second."""

    energy: Sequence[EnergySample]
    engine: Sequence[EngineSample]
    spans: Sequence[RequestSpan]


class VirtualSidecar:
    """A ledger on disk that lives in virtual time: one call a second, as `Sidecar.tick`."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger([GPU], labels=(TENANT,))
        self.settlement = Settlement([WatchedEngine(self.ledger, [GPU], None, None)], folder=folder, kept=0)

    async def tick(self, now_ns: int, received: Received) -> Snapshot:
        """Take what has arrived by `now_ns`, commit and write; return what a scrape would show."""
        self.ledger.add_energy(received.energy)
        for sample in received.engine:
            self.ledger.add_engine_sample(sample)
        for span in received.spans:
            self.ledger.add_span(span, now_ns)
        self.ledger.commit(now_ns)
        snapshot = self.ledger.snapshot(now_ns)
        self.settlement.take([snapshot], unix_ns, now_ns)
        await self.settlement.write()
        return snapshot


def unix_ns(virtual_ns: int) -> int:
    return WALL_NS + virtual_ns


def spans_of(run: SimulatedRun, tenants: Sequence[str]) -> list[RequestSpan]:
    """Return the engine's span of each request, through the exporter's bytes, with the tenant as its label."""
    finished = [
        Finished(
            f"chatcmpl-{number}", request.arrival_ns, request.started_ns, request.token_ns[0], request.token_ns[-1],
            request.input_tokens, request.output_tokens,
        )
        for number, request in enumerate(run.requests)
    ]  # fmt: skip
    parsed = parse_spans(export_finished(MODEL, finished, Anchor(WALL_NS, 0)))
    assert len(parsed.spans) == len(tenants)
    return [
        msgspec.structs.replace(span.moved(lambda wall_ns: wall_ns - WALL_NS), labels={TENANT: tenant})
        for span, tenant in zip(parsed.spans, tenants, strict=True)
    ]


def seconds_of(
    energy: Iterable[EnergySample], engine: Iterable[EngineSample], spans: Iterable[RequestSpan], end_ns: int
) -> Iterator[tuple[int, Received]]:
    """Yield each second's end, and what has arrived in it. A span arrives with the next batch after its end."""
    by_second: dict[int, tuple[list[EnergySample], list[EngineSample], list[RequestSpan]]] = {}

    def second(t_ns: int) -> tuple[list[EnergySample], list[EngineSample], list[RequestSpan]]:
        return by_second.setdefault(-(-t_ns // NS_PER_S), ([], [], []))

    for sample in energy:
        second(sample.t_ns)[0].append(sample)
    for values in engine:
        second(int(values["t_ns"]))[1].append(values)
    for span in sorted(spans, key=lambda span: span.end_ns):
        second(-(-span.end_ns // EXPORT_NS) * EXPORT_NS)[2].append(span)
    for number in range(1, -(-end_ns // NS_PER_S) + 1):
        yield number * NS_PER_S, Received(*by_second.get(number, ((), (), ())))

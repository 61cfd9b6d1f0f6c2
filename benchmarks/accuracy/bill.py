"""Measure the bills of two tenants, short chats and long code, against the simulated engine's own account.

    python -m benchmarks.accuracy.bill [--requests 3000] [--seed 0] [--only "90/10"] [--budget 8192] [--publish]

In virtual time: so many requests are always in flight, each of one of two tenants at random. The spans, the counter and
the engine's counters go into the real ledger of a sidecar, it writes its files, and `loadgen bill --by tenant` sums
them. The truth is the simulated engine's account of each request: of a step, the part that it costs whoever is in it
(weights read, gaps, static power in that time) equally by those who are in it, the rest, static power of the time that
their own work adds among it, in proportion to that work. Static power while no request runs is idle, and nobody's.

Beside it the same joules as a gateway divides them: by tokens, by output tokens, by tokens of which an output token
counts 4 times, by requests, and by time in flight.
"""

import argparse
import asyncio
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.accuracy.attribution_oracle import TRACES, polled
from benchmarks.accuracy.virtual_sidecar import (
    ENGINE_PERIOD_NS,
    GPU,
    MODEL,
    TENANT,
    VirtualSidecar,
    seconds_of,
    spans_of,
)
from benchmarks.instrument.results_table import with_part
from loadgen.energy.series import EnergySample, EnergySeries, series_by_domain
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.results.bill import BillSums, bill_of
from loadgen.simulator.engine import EngineOptions, SimulatedRun, SubmittedRequest, simulate
from loadgen.units import MJ_PER_J, NS_PER_MS, NS_PER_S
from loadgen.workload.trace import read_trace

TENANTS = ("chat", "code")
MIXES = (90, 70, 50, 30, 10)
"""Per cent of the requests that are chats."""
IN_FLIGHT = (1, 5, 20, 100, 500)
IDLE_NS = 3 * NS_PER_S
"""Time before the first request."""
TAIL_NS = 60 * NS_PER_S
"""Time after the last one: all requests settle."""
ROUNDS = 6
"""Requests at the least, relative to those in flight."""
BUDGET = EngineOptions().max_num_batched_tokens
"""Tokens that a step may compute."""
TARGET = 0.02
"""Largest error wanted, of the bill of a tenant."""
DOCS = Path(__file__).parents[2] / "docs"
JSON, PAGE = DOCS / "results/bill-oracle.json", DOCS / "how-to/bill.md"


@dataclass(frozen=True)
class Cell:
    """chats: per cent of the requests."""

    chats: int
    in_flight: int
    idle_first: bool = True
    """False if requests run from the first sample on."""

    @property
    def name(self) -> str:
        return f"{self.chats}/{100 - self.chats}, {self.in_flight} in flight"


def simulated(cell: Cell, requests: int, seed: int, budget: int = BUDGET) -> tuple[SimulatedRun, list[str]]:
    """Return a run in which each request follows another, and the tenant of each. budget: tokens that a step may
    compute."""
    rng = np.random.default_rng([seed, cell.chats, cell.in_flight])
    traces = {tenant: read_trace(TRACES / f"{tenant}.jsonl").requests for tenant in TENANTS}
    number = max(requests, ROUNDS * cell.in_flight)
    tenants = [TENANTS[int(rng.random() >= cell.chats / 100)] for _ in range(number)]
    drawn = [traces[tenant][rng.integers(len(traces[tenant]))] for tenant in tenants]
    begin_ns = IDLE_NS if cell.idle_first else 0
    arrivals = [
        SubmittedRequest(
            begin_ns + int(rng.uniform(0, 2 * NS_PER_S)) if row < cell.in_flight else int(rng.exponential(NS_PER_MS)),
            request.input_tokens or 1, request.output_tokens or 1,
        )
        for row, request in enumerate(drawn)
    ]  # fmt: skip
    after = {row: (row - cell.in_flight,) for row in range(cell.in_flight, number)}
    run = simulate(
        arrivals, read_hardware("h200"), read_model(MODEL),
        EngineOptions(max_num_seqs=512, max_num_batched_tokens=budget), after=after,
        tail_ns=TAIL_NS, engine_period_ns=ENGINE_PERIOD_NS, seed=seed,
    )  # fmt: skip
    return run, tenants


def billed(run: SimulatedRun, tenants: list[str], energy: list[EnergySample]) -> tuple[BillSums, int]:
    """Return the bill by tenant of a ledger that was fed the run, and the energy that its last page showed, in mJ."""

    async def fed(folder: Path) -> int:
        sidecar = VirtualSidecar(folder)
        for now_ns, received in seconds_of(energy, run.engine, spans_of(run, tenants), run.end_ns):
            snapshot = await sidecar.tick(now_ns, received)
        sidecar.settlement.close()
        return sum(domain.committed_mj for domain in snapshot.domains)

    with tempfile.TemporaryDirectory() as name:
        committed_mj = asyncio.run(fed(Path(name)))
        return bill_of(Path(name), (TENANT,)), committed_mj


def as_polled(run: SimulatedRun, seed: int) -> list[EnergySample]:
    """Return the counter's samples as NVML's are read."""
    [series] = series_by_domain(run.counter, [GPU]).values()
    return samples_of(polled(series, np.random.default_rng(seed)))


def as_read_rarely(samples: list[EnergySample], every_s: float, seed: int) -> list[EnergySample]:
    """Return what `loadgen sidecar --energy-every` reads of these updates: one is up to 0.1 s old when it is read, and
    is taken to be half of 1.5 periods old."""
    rng, kept = np.random.default_rng(seed), samples[:40]
    for sample in samples[40:]:
        if sample.t_ns - kept[-1].t_ns >= every_s * NS_PER_S:
            read_ns = sample.t_ns + int(rng.uniform(0, 100 * NS_PER_MS))
            kept.append(msgspec.structs.replace(sample, t_ns=read_ns - 75 * NS_PER_MS, slack_ns=75 * NS_PER_MS))
    return kept


def samples_of(series: EnergySeries) -> list[EnergySample]:
    assert series.slack_ns is not None and series.capped_ns is not None
    columns = zip(*(x.tolist() for x in (series.t_ns, series.mj, series.slack_ns, series.capped_ns)), strict=True)
    return [
        EnergySample(t_ns, series.domain, mj / MJ_PER_J, slack_ns, capped_ns=capped_ns)
        for t_ns, mj, slack_ns, capped_ns in columns
    ]


def score(cell: Cell, requests: int, seed: int, every_s: float = 0.0, budget: int = BUDGET) -> dict[str, Any]:
    """Return the relative error of each tenant's bill, by what was measured and by each other way to divide it."""
    run, tenants = simulated(cell, requests, seed, budget)
    samples = as_polled(run, seed)
    bill, committed_mj = billed(run, tenants, as_read_rarely(samples, every_s, seed) if every_s else samples)
    is_tenant = {tenant: np.array(tenants) == tenant for tenant in TENANTS}
    true_j = {
        tenant: sum(r.prefill_j + r.decode_j for r, own in zip(run.requests, rows, strict=True) if own)
        for tenant, rows in is_tenant.items()
    }
    groups = {key[0]: group for key, group in bill.groups.items()}
    billed_j = {tenant: groups[tenant].energy_mj / MJ_PER_J if tenant in groups else 0.0 for tenant in TENANTS}
    tokens = np.array([(r.input_tokens, r.output_tokens) for r in run.requests])
    in_flight_ns = np.array([r.token_ns[-1] - r.arrival_ns for r in run.requests])
    weights = {
        "tokens": tokens.sum(axis=1), "output tokens": tokens[:, 1], "tokens 1:4": tokens @ [1, 4],
        "requests": np.ones(len(tokens)), "time": in_flight_ns,
    }  # fmt: skip
    total_j = sum(billed_j.values())
    others = {
        name: {tenant: total_j * weight[rows].sum() / weight.sum() for tenant, rows in is_tenant.items()}
        for name, weight in weights.items()
    }
    ways = {"measured": billed_j, **others}
    return {
        "chats": cell.chats, "in_flight": cell.in_flight, "idle_first": cell.idle_first,
        "requests": {tenant: int(rows.sum()) for tenant, rows in is_tenant.items()},
        "seconds": round((run.end_ns - TAIL_NS) / NS_PER_S, 1),
        "true_j": {tenant: round(joules, 1) for tenant, joules in true_j.items()},
        "errors": {
            way: {tenant: joules[tenant] / true_j[tenant] - 1 for tenant in TENANTS} for way, joules in ways.items()
        },
        "unattributed": bill.unattributed_mj / bill.counter_mj,
        "unsettled_mj": bill.unsettled_mj,
        "settled": sum(group.requests for group in bill.groups.values()),
        "off_counter_mj": bill.counter_mj - committed_mj,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of the page: the error of the bill of chats, then that of code."""
    ways = list(rows[0]["errors"])
    head = ["chats / code", "in flight", "joules of chats", "**measured**", *(f"by {way}" for way in ways[1:])]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        share = row["true_j"]["chat"] / sum(row["true_j"].values())
        errors = [" / ".join(_percent(row["errors"][way][tenant], way) for tenant in TENANTS) for way in ways]
        cells = [f"{row['chats']} / {100 - row['chats']}", f"{row['in_flight']}", f"{100 * share:.0f} %"]
        lines.append(f"| {' | '.join([*cells, f'**{errors[0]}** %', *(f'{error} %' for error in errors[1:])])} |")
    within = sum(max(map(abs, row["errors"]["measured"].values())) <= TARGET for row in rows)
    worst = max(abs(error) for row in rows for error in row["errors"]["measured"].values())
    lines += ["", f"{within} of {len(rows)} loads are within {100 * TARGET:.0f} % for both tenants; the worst bill is "
              f"{100 * worst:.1f} % off."]  # fmt: skip
    return "\n".join(lines)


def _percent(error: float, way: str) -> str:
    return f"{100 * error:+.{1 if way == 'measured' else 0}f}".replace("-", "−")


def with_table(page: str, rows: list[dict[str, Any]]) -> str:
    """Return the page with its table drawn again."""
    return with_part(page, "bill against the oracle", table(rows))


def cells(only: str = "") -> list[Cell]:
    return [cell for cell in (Cell(chats, n) for chats, n in product(MIXES, IN_FLIGHT)) if only in cell.name]


def _line(row: dict[str, Any]) -> str:
    errors = "  ".join(
        f"{way} " + " ".join(f"{100 * errors[tenant]:+.2f}" for tenant in TENANTS)
        for way, errors in row["errors"].items()
    )
    return (
        f"{row['chats']:2}/{100 - row['chats']:2} x {row['in_flight']:3} {row['seconds']:6.0f} s "
        f"{sum(row['requests'].values()):5} {row['settled']:5} unattributed {100 * row['unattributed']:.2f} %  "
        f"counter {row['off_counter_mj']}  {errors}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000, help="of a cell; six for each in flight at the least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--every", type=float, default=0.0, help="read the counter so often, in s; 0: at every update")
    parser.add_argument("--budget", type=int, default=BUDGET, help="tokens that a step of the engine may compute")
    parser.add_argument("--publish", action="store_true", help=f"write {JSON.name} and the table of {PAGE.name}")
    options = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(2) as pool:
        measure = partial(
            score, requests=options.requests, seed=options.seed, every_s=options.every, budget=options.budget
        )
        for row in pool.map(measure, cells(options.only)):
            rows.append(row)
            print(_line(row), flush=True)
    if options.publish:
        JSON.write_text(json.dumps(rows, indent=1) + "\n")
        PAGE.write_text(with_table(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()

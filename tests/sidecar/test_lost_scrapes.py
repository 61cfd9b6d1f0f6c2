"""What Prometheus adds up of a sidecar's counters, whichever scrapes it loses and whenever the sidecar starts again.

A restart of Prometheus on the same data is a series of lost scrapes: its `increase` is of the samples that it has.
"""

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loadgen.results.read_ledger import LedgerFile, ledger_files
from loadgen.sidecar.exporter import Exporter, SidecarPage
from sidecar.test_bill_laws import ENGINES, HAPPENS, REQUESTS, TURN_S, TURNS, Happens, Life, Sent, World, spans_of

Key = tuple[str, ...]
"""A metric and values of its labels."""
WHOLE = {"loadgen_gpu_energy_joules_total": "counter_mj", "loadgen_idle_energy_joules_total": "idle_mj",
         "loadgen_unattributed_energy_joules_total": "unattributed_mj"}  # fmt: skip
"""Metrics of an engine, and the same in a line of the ledger."""
LABELS = {
    "loadgen_attributed_energy_joules_total": ("engine",),
    "loadgen_request_energy_joules_sum": ("engine", "model", "workload"),
    "loadgen_requests_total": ("engine", "model", "workload", "outcome", "tenant"),
    "loadgen_output_tokens_total": ("engine", "model", "workload", "tenant"),
    **dict.fromkeys(WHOLE, ("engine",)),
}
"""Labels by which the series of a metric are compared with the ledger."""


def scraped(life: Life) -> dict[Key, dict[tuple[tuple[str, str], ...], int]]:
    """Return the series of the sidecar's page by the key they are compared by; joules in mJ."""
    pages = [
        SidecarPage(engine.name, snapshot, {}, {}, 0, 0, None, None, None, None)
        for engine, snapshot in zip(ENGINES, life.snapshots, strict=True)
    ]
    registry = CollectorRegistry()
    registry.register(Exporter(lambda: pages))
    series: defaultdict[Key, dict[tuple[tuple[str, str], ...], int]] = defaultdict(dict)
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for row in family.samples:
            if (names := LABELS.get(row.name)) is not None:
                scale = 1000 if "joules" in row.name else 1
                key = (row.name, *(row.labels.get(name, "") for name in names))
                series[key][tuple(sorted(row.labels.items()))] = round(row.value * scale)
    return series


def on_disk(folder: Path) -> Counter[Key]:
    """Return what the whole ledger has by now, by the same keys."""
    sums: Counter[Key] = Counter()
    files = ledger_files(folder) if any(folder.glob("*.jsonl")) else []
    for batch in (batch for path in files for batch, _ in LedgerFile(path).batches()):
        for part in batch.period.engines:
            sums += Counter({(metric, part.engine): getattr(part, name) for metric, name in WHOLE.items()})
            attributed_mj = part.counter_mj - part.idle_mj - part.unattributed_mj
            sums["loadgen_attributed_energy_joules_total", part.engine] += attributed_mj
        for line in batch.requests:
            account = (str(line.engine), line.model, line.workload)
            tenant = line.labels.get("tenant", "")
            sums["loadgen_requests_total", *account, "completed" if line.ok else "failed", tenant] += 1
            sums["loadgen_output_tokens_total", *account, tenant] += line.output_tokens or 0
            sums["loadgen_request_energy_joules_sum", *account] += line.energy_mj if line.whole else 0
    return sums


def increase(samples: list[int]) -> int:
    """Return `increase` of all samples of a series, without the extrapolation to the ends of a range.

    https://github.com/prometheus/prometheus/blob/v2.42.0/promql/functions.go, extrapolatedRate: the last sample less
    the first, and of each that is below the one before it, what the counter had before it started again.
    """
    return samples[-1] - samples[0] + sum(before for before, after in pairwise(samples) if after < before)


def unseen(samples: list[tuple[int, int]]) -> int:
    """Return what `increase` cannot see in the samples (life, value) of a series: the value of the first, and that of
    the last one before a restart if the counter is not below it when it is scraped next."""
    return samples[0][1] + sum(
        before for (life, before), (next_life, after) in pairwise(samples) if life != next_life and after >= before
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(REQUESTS, max_size=25), HAPPENS, st.sets(st.integers(1, TURNS)))
@pytest.mark.timeout(180)
def test_prometheus_has_the_ledger_but_for_what_it_was_not_there_to_see(
    tmp_path_factory: pytest.TempPathFactory, requests: list[Sent], happens: Happens, lost: set[int]
) -> None:
    """Of each life of the sidecar it has all until the last scrape, but for what `unseen` is, which is before the first
    scrape or a restart. So it never has more than the ledger."""
    folder, world = tmp_path_factory.mktemp("ledger"), World(requests, happens)
    arrivals = [arrival for number, sent in enumerate(requests) for arrival in spans_of(number, sent)]
    life, number, before = Life(folder, 0.0), 0, Counter[Key]()
    series: defaultdict[Key, defaultdict[tuple[tuple[str, str], ...], list[tuple[int, int]]]]
    series = defaultdict(lambda: defaultdict(list))
    last: dict[int, Counter[Key]] = {}
    """What the ledger got in each life until its last scrape."""
    for turn in range(1, TURNS + 1):
        now_s = float(TURN_S * turn)
        new = [sent for at_s, sent in arrivals if now_s - TURN_S < at_s <= now_s or (turn == 1 and at_s <= 0)]
        life.turn(now_s, world.energy(turn), world.counters(turn), new)
        life.write()
        if turn not in lost:
            last[number] = on_disk(folder)
            last[number].subtract(before)
            for key, rows in scraped(life).items():
                assert sum(rows.values()) == last[number][key], "a counter is the ledger since the sidecar's start"
                for labels, value in rows.items():
                    series[key][labels].append((number, value))
        if turn in happens.kills:
            life.settlement.close()
            life, number, before = Life(folder, now_s), number + 1, on_disk(folder)
    life.settlement.close()
    whole, total = on_disk(folder), sum(last.values(), Counter[Key]())
    for key, rows in series.items():
        got = {labels: increase([value for _, value in samples]) for labels, samples in rows.items()}
        hidden = sum(unseen(samples) for samples in rows.values())
        assert sum(got.values()) + hidden == total[key]
        assert 0 <= sum(got.values()) <= whole[key]

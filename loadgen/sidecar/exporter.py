"""A frozen snapshot of the books -> Prometheus metric families. The declarations here are the metric reference."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from loadgen.sidecar.ledger import FrozenAccount, FrozenHistogram, Label, Snapshot

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Page:
    """All that one scrape shows: the books, and what the edges know besides."""

    books: Snapshot
    watts: dict[str, float]
    """By domain; those whose power is unknown are absent."""
    resets: int
    read_errors: int
    last_read_s: float | None
    """Unix time of the meter's newest sample."""
    engine_up: bool | None
    """Whether the engine's page answered last time; None when there is no engine to ask."""
    engine_restarts: int


class Row(NamedTuple):
    labels: tuple[str, ...]
    value: "float | FrozenHistogram"


Rows = Callable[[Page], Iterator[Row]]


class Declared(NamedTuple):
    """One metric: what a reader of dashboards may rely on."""

    name: str
    """As scraped, with `_total` where it is a counter."""
    kind: Kind
    labels: tuple[str, ...]
    help: str
    rows: Rows


def _one(value: Callable[[Page], float | None]) -> Rows:
    def rows(page: Page) -> Iterator[Row]:
        if (found := value(page)) is not None:
            yield Row((), found)

    return rows


def _by_domain(value: Callable[[Any, Page], float | None]) -> Rows:
    def rows(page: Page) -> Iterator[Row]:
        for books in page.books.domains:
            if (found := value(books, page)) is not None:
                yield Row((gpu_label(books.domain.name), books.domain.uuid or ""), found)

    return rows


def _by_label(value: Callable[[FrozenAccount], "float | FrozenHistogram"]) -> Rows:
    def rows(page: Page) -> Iterator[Row]:
        for label, account in _sorted(page):
            yield Row(label, value(account))

    return rows


def _attributed(page: Page) -> Iterator[Row]:
    for label, account in _sorted(page):
        yield Row((*label, "prefill"), account.prefill_mj / 1000)
        yield Row((*label, "decode"), account.decode_mj / 1000)


def _requests(page: Page) -> Iterator[Row]:
    for label, account in _sorted(page):
        yield Row((*label, "completed"), account.completed)
        yield Row((*label, "failed"), account.failed)


def _dropped(page: Page) -> Iterator[Row]:
    for reason, count in page.books.dropped.items():
        yield Row((reason,), count)


def _source(page: Page) -> Iterator[Row]:
    for books in page.books.domains:
        yield Row((gpu_label(books.domain.name), books.domain.uuid or "", books.domain.source), 1)


def _sorted(page: Page) -> list[tuple[Label, FrozenAccount]]:
    return sorted(page.books.accounts.items())


def gpu_label(domain: str) -> str:
    """`gpu:0` is GPU 0; other domains keep their name."""
    return domain.removeprefix("gpu:")


GPU = ("gpu", "uuid")
WHO = ("model", "workload")

METRICS = (
    Declared("loadgen_gpu_energy_joules_total", "counter", GPU,
             "Energy settled so far: attributed + idle + unattributed equals the sum of this, at every scrape.",
             _by_domain(lambda books, _: books.settled_mj / 1000)),
    Declared("loadgen_gpu_energy_pending_joules", "gauge", GPU,
             "Energy that the meter has counted and that waits for the spans of the requests that had it.",
             _by_domain(lambda books, _: books.pending_mj / 1000)),
    Declared("loadgen_gpu_power_watts", "gauge", GPU,
             "Mean power over about the last second, live. Absent when it is unknown.",
             _by_domain(lambda books, page: page.watts.get(books.domain.name))),
    Declared("loadgen_attributed_energy_joules_total", "counter", (*WHO, "account"),
             "Energy of requests; account is prefill (until the first token) or decode (after it).", _attributed),
    Declared("loadgen_idle_energy_joules_total", "counter", (),
             "Energy while nobody asked for anything.", _one(lambda page: page.books.idle_mj / 1000)),
    Declared("loadgen_unattributed_energy_joules_total", "counter", (),
             "Energy of requests that sent no span, or none in time.",
             _one(lambda page: page.books.unattributed_mj / 1000)),
    Declared("loadgen_request_energy_joules", "histogram", WHO,
             "Energy of each settled request. Exemplars carry request_id.", _by_label(lambda account: account.energy)),
    Declared("loadgen_input_tokens_total", "counter", WHO,
             "Input tokens of settled requests.", _by_label(lambda account: account.input_tokens)),
    Declared("loadgen_output_tokens_total", "counter", WHO,
             "Output tokens of settled requests.", _by_label(lambda account: account.output_tokens)),
    Declared("loadgen_requests_total", "counter", (*WHO, "outcome"),
             "Settled requests; outcome is completed or failed.", _requests),
    Declared("loadgen_request_ttft_seconds", "histogram", WHO,
             "Time to first token of completed requests, as the span's sender saw it.",
             _by_label(lambda account: account.ttft)),
    Declared("loadgen_request_duration_seconds", "histogram", WHO,
             "Duration of completed requests, as the span's sender saw it.",
             _by_label(lambda account: account.duration)),
    Declared("loadgen_energy_attribution_coverage_ratio", "gauge", (),
             "Output tokens with a span over the engine's own, last 5 minutes settled. Absent where it does not say.",
             _one(lambda page: page.books.coverage)),
    Declared("loadgen_foreign_output_tokens_total", "counter", (),
             "Output tokens that the engine counted and no span told of: an estimate.",
             _one(lambda page: page.books.foreign_tokens)),
    Declared("loadgen_energy_resets_total", "counter", (),
             "Energy counters found restarted. What flowed around a restart is unknown.",
             _one(lambda page: page.resets)),
    Declared("loadgen_energy_read_errors_total", "counter", (),
             "Reads of the energy source that failed.", _one(lambda page: page.read_errors)),
    Declared("loadgen_energy_last_read_timestamp_seconds", "gauge", (),
             "Unix time of the newest energy sample. Absent before the first.", _one(lambda page: page.last_read_s)),
    Declared("loadgen_energy_source_info", "gauge", (*GPU, "source"),
             "Always 1; source says how the joules came to be.", _source),
    Declared("loadgen_settlement_lag_seconds", "gauge", (),
             "How far the counters above are behind now: energy is held until its requests' spans have arrived.",
             _one(lambda page: page.books.held_s)),
    Declared("loadgen_spans_dropped_total", "counter", ("reason",),
             "Spans that took no part.", _dropped),
    Declared("loadgen_spans_merged_total", "counter", (),
             "Requests told of by both client and engine, counted once.", _one(lambda page: page.books.merged)),
    Declared("loadgen_spans_partial_total", "counter", (),
             "Requests whose beginning was settled before their span arrived.", _one(lambda page: page.books.partial)),
    Declared("loadgen_spans_open", "gauge", (),
             "Requests told of and not settled yet.", _one(lambda page: page.books.open_requests)),
    Declared("loadgen_engine_up", "gauge", (),
             "Whether the engine's metrics answered last time. Absent when no engine was named.",
             _one(lambda page: None if page.engine_up is None else float(page.engine_up))),
    Declared("loadgen_engine_restarts_total", "counter", (),
             "Times the engine's token counter started again.", _one(lambda page: page.engine_restarts)),
)  # fmt: skip
"""Every metric there is, in the order of the page."""

DROP_REASONS = {
    "malformed": "no protobuf trace export, or times or counts that contradict themselves",
    "not_a_request": "another kind of span: an engine's start-up, say",
    "oversized": "the body that carried it was over the limit (counted once a body)",
    "late": "its whole time was settled before it arrived",
    "duplicate": "the same request was told of before",
    "future": "it ends after now: the sender's clock is wrong",
    "overflow": "more unsettled requests than are kept",
}


class Exporter:
    """A prometheus_client collector over the page that `latest` gives. Reads memory; asks no GPU."""

    def __init__(self, latest: Callable[[], Page]) -> None:
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        page = self._latest()
        for declared in METRICS:
            yield _family(declared, page)

    def describe(self) -> Iterator[Metric]:
        """So that registering does not collect."""
        return iter(())


def _family(declared: Declared, page: Page) -> Metric:
    match declared.kind:
        case "counter":
            family: Any = CounterMetricFamily(
                declared.name.removesuffix("_total"), declared.help, labels=declared.labels
            )
        case "gauge":
            family = GaugeMetricFamily(declared.name, declared.help, labels=declared.labels)
        case "histogram":
            family = HistogramMetricFamily(declared.name, declared.help, labels=declared.labels)
    for row in declared.rows(page):
        if isinstance(row.value, FrozenHistogram):
            family.add_metric(row.labels, _buckets(row.value), row.value.sum)
        else:
            family.add_metric(row.labels, row.value)
    assert isinstance(family, Metric)
    return family


def _buckets(histogram: FrozenHistogram) -> list[Any]:
    total, rows = 0, []
    bounds = (*map(floatToGoString, histogram.bounds), "+Inf")
    for bound, count, last in zip(bounds, histogram.counts, histogram.exemplars, strict=True):
        total += count
        exemplar = Exemplar({"request_id": last.request_id}, last.value) if last else None
        rows.append((bound, total, exemplar))
    return rows


def reference() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics of the sidecar",
        "",
        "Made by `loadgen sidecar --reference`; a test holds it in step with the code.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
        *(f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help} |" for m in METRICS),
        "",
        "All counters and histograms are as of the settlement frontier, `loadgen_settlement_lag_seconds` ago, so that",
        "ratios of them are of the same requests. At every scrape, to the millijoule:",
        "",
        "    sum(loadgen_attributed_energy_joules_total) + loadgen_idle_energy_joules_total",
        "      + loadgen_unattributed_energy_joules_total == sum(loadgen_gpu_energy_joules_total)",
        "",
        "What the meter has counted beyond that is `loadgen_gpu_energy_pending_joules`; power is live.",
        "",
        "Values of `reason` in `loadgen_spans_dropped_total`:",
        "",
        *(f"* `{reason}`: {meaning}" for reason, meaning in DROP_REASONS.items()),
        "",
    ]
    return "\n".join(lines)

"""Turns a frozen snapshot of the ledger into Prometheus metric families. Its declarations are the metric reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar

from loadgen.energy.series import EnergyDomain, scope
from loadgen.sidecar.ledger import DROP_REASONS, DomainEnergy, Snapshot
from loadgen.sidecar.otel_names import attribute_name, otel_name
from loadgen.telemetry.histogram import Histogram
from loadgen.units import j_from_mj

if TYPE_CHECKING:
    from loadgen.sidecar.accounts import Account, Totals

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class PushCounts:
    """Outcomes of what is sent to an OTLP collector. Empty without one."""

    exports: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Messages by signal and outcome."""
    spans: Counter[str] = field(default_factory=Counter)
    """Spans of settled requests by outcome."""

    def copy(self) -> PushCounts:
        return PushCounts(self.exports.copy(), self.spans.copy())


@dataclass(frozen=True)
class SidecarPage:
    """Everything that one scrape shows of an engine: its ledger, and the state of its meter and of the engine."""

    engine: str | None
    """Name of the engine; None where there is one engine, without a name."""
    ledger: Snapshot
    dropped: Mapping[str, int]
    """Spans that were not used, those of all engines, by reason."""
    watts: dict[str, float]
    """Power by domain; domains whose power is unknown are absent."""
    resets: int
    """Counter restarts, those of all engines."""
    read_errors: int
    """Failed reads, those of all engines."""
    last_read_s: float | None
    """Unix time of the meter's newest sample."""
    engine_up: bool | None
    """True if the engine answered lately; None when no engine was named."""
    engine_understood: bool | None
    """True if it did with a metrics page whose names are known."""
    engine_restarts: int | None
    """Is None if no engine was named."""
    beside: dict[EnergyDomain, float] = field(default_factory=dict)
    """Energy since the sidecar's start of the domains that are in no account, such as the host's beside the GPUs."""
    pushes: PushCounts = field(default_factory=PushCounts)


class MetricRow(NamedTuple):
    labels: tuple[str, ...]
    value: float | Histogram


Rows = Callable[[SidecarPage], Iterator[MetricRow]]


class Declared(NamedTuple):
    """One metric, as dashboards may rely on it."""

    name: str
    """The name on the page, with `_total` where it is a counter."""
    kind: Kind
    labels: tuple[str, ...]
    help: str
    rows: Rows
    by_labels: bool = False
    """True if it has the labels of the user's choosing too."""
    by_engine: bool = True
    """True if it has the label `engine` where engines have names."""


def _single(value: Callable[[SidecarPage], float | None]) -> Rows:
    def rows(page: SidecarPage) -> Iterator[MetricRow]:
        if (number := value(page)) is not None:
            yield MetricRow((), number)

    return rows


def _measured(rows: Rows) -> Rows:
    """Return these rows where a meter has the engine's energy; else it is unknown, and they would say 0."""
    return lambda page: rows(page) if page.ledger.domains else iter(())


def _by_domain(value: Callable[[DomainEnergy, SidecarPage], float | None]) -> Rows:
    def rows(page: SidecarPage) -> Iterator[MetricRow]:
        for energy in page.ledger.domains:
            if (number := value(energy, page)) is not None:
                yield MetricRow(_gpu_labels(energy), number)

    return rows


def _by_account(value: Callable[[Account], Histogram]) -> Rows:
    def rows(page: SidecarPage) -> Iterator[MetricRow]:
        for key, account in sorted(page.ledger.accounts.items()):
            yield MetricRow(key, value(account))

    return rows


def _by_labels(**values: Callable[[Totals], float]) -> Rows:
    """Return a row per account, value and values of the labels of the user's choosing, which come after the declared
    ones."""

    def rows(page: SidecarPage) -> Iterator[MetricRow]:
        for key, account in sorted(page.ledger.accounts.items()):
            by_labels = sorted(account.by_labels.items()) if page.ledger.labels else [((), account)]
            for labels, totals in by_labels:
                for name, value in values.items():
                    yield MetricRow((*key, *([name] if len(values) > 1 else ()), *labels), value(totals))

    return rows


def _server_durations(page: SidecarPage) -> Iterator[MetricRow]:
    """Yield the durations of requests that the engine reported; those that failed have a type of error."""
    for key, account in sorted(page.ledger.accounts.items()):
        yield MetricRow((*key, ""), account.server.completed)
        if any(account.server.failed.counts):
            yield MetricRow((*key, "_OTHER"), account.server.failed)


def _session_rows(page: SidecarPage) -> Iterator[MetricRow]:
    """Yield the energy of ended sessions by outcome; nothing for accounts without any."""
    for key, account in sorted(page.ledger.accounts.items()):
        for outcome, energy in (("completed", account.completed_sessions), ("failed", account.failed_sessions)):
            if any(energy.counts):
                yield MetricRow((*key, outcome), energy)


def gpu_label(domain: str) -> str:
    """Name a domain as label `gpu`: `gpu:0` is GPU 0, `gpu:0@a` that of engine a; other domains keep their name."""
    return domain.removeprefix("gpu:").partition("@")[0]


def _gpu_labels(energy: DomainEnergy) -> tuple[str, str]:
    return gpu_label(energy.domain.name), energy.domain.uuid or ""


GPU = ("gpu", "uuid")
ACCOUNT = ("model", "workload")

METRICS = (
    Declared("loadgen_gpu_energy_joules_total", "counter", GPU,
             "Energy committed so far: attributed + idle + unattributed equals the sum of this, at every scrape.",
             _by_domain(lambda energy, _: j_from_mj(energy.committed_mj))),
    Declared("loadgen_gpu_energy_pending_joules", "gauge", GPU,
             "Energy that the meter has counted and that waits for the spans of the requests that used it.",
             _by_domain(lambda energy, _: j_from_mj(energy.pending_mj))),
    Declared("loadgen_gpu_power_watts", "gauge", GPU,
             "Mean power over about the last second, live. Absent when it is unknown.",
             _by_domain(lambda energy, page: page.watts.get(energy.domain.name))),
    Declared("loadgen_host_energy_joules_total", "counter", ("domain", "scope", "within"),
             "Energy of each domain beside the GPUs, in no account; scope is host or machine. Never add a domain "
             "to the one that it is within.",
             lambda page: (MetricRow((domain.name, scope(domain), domain.within or ""), joules)
                           for domain, joules in page.beside.items()), by_engine=False),
    Declared("loadgen_attributed_energy_joules_total", "counter", (*ACCOUNT, "account"),
             "Energy of requests; account is prefill (until the first token) or decode (after it).",
             _measured(_by_labels(prefill=lambda totals: j_from_mj(totals.prefill_mj),
                                  decode=lambda totals: j_from_mj(totals.decode_mj))), by_labels=True),
    Declared("loadgen_idle_energy_joules_total", "counter", (),
             "Energy used while no request was in flight.",
             _measured(_single(lambda page: j_from_mj(page.ledger.idle_mj)))),
    Declared("loadgen_unattributed_energy_joules_total", "counter", (),
             "Energy of requests that sent no span, or none in time.",
             _measured(_single(lambda page: j_from_mj(page.ledger.unattributed_mj)))),
    Declared("loadgen_request_energy_joules", "histogram", ACCOUNT,
             "Energy of each closed request whose whole time was measured. Exemplars carry request_id.",
             _by_account(lambda account: account.energy)),
    Declared("loadgen_session_energy_joules", "histogram", (*ACCOUNT, "outcome"),
             "Energy of each session whose spans have gen_ai.conversation.id or session.id, 10 minutes after its last "
             "request. Outcome is completed or failed, if a request of it did. Absent without such sessions.",
             _session_rows),
    Declared("loadgen_input_tokens_total", "counter", ACCOUNT,
             "Input tokens of closed requests whose spans say how many.",
             _by_labels(value=lambda totals: totals.input_tokens), by_labels=True),
    Declared("loadgen_output_tokens_total", "counter", ACCOUNT,
             "Output tokens of closed requests whose spans say how many.",
             _by_labels(value=lambda totals: totals.output_tokens), by_labels=True),
    Declared("loadgen_requests_without_tokens_total", "counter", (*ACCOUNT, "tokens"),
             "Closed requests that are in no token total: no span says how many input or output tokens they had.",
             _by_labels(input=lambda totals: totals.without_input_tokens,
                        output=lambda totals: totals.without_output_tokens), by_labels=True),
    Declared("loadgen_requests_total", "counter", (*ACCOUNT, "outcome"),
             "Closed requests; outcome is completed or failed.",
             _by_labels(completed=lambda totals: totals.completed,
                        failed=lambda totals: totals.failed), by_labels=True),
    Declared("loadgen_request_ttft_seconds", "histogram", ACCOUNT,
             "Time to first token of the completed requests whose spans say it.",
             _by_account(lambda account: account.ttft)),
    Declared("loadgen_request_duration_seconds", "histogram", ACCOUNT,
             "Duration of completed requests, as the span's sender saw it.",
             _by_account(lambda account: account.duration)),
    Declared("gen_ai_server_request_duration_seconds", "histogram", (*ACCOUNT, "error_type"),
             "Duration of requests as the engine saw it, queue included; error_type is _OTHER if they failed.",
             _server_durations),
    Declared("gen_ai_server_time_to_first_token_seconds", "histogram", ACCOUNT,
             "Time to first token of the completed requests, as the engine saw it.",
             _by_account(lambda account: account.server.first_token)),
    Declared("gen_ai_server_time_per_output_token_seconds", "histogram", ACCOUNT,
             "Time per output token after the first of the completed requests, as the engine saw it.",
             _by_account(lambda account: account.server.per_token)),
    Declared("loadgen_energy_attribution_coverage_ratio", "gauge", (),
             "Output tokens with a span over the engine's own, last 5 minutes committed. Absent without its count.",
             _single(lambda page: page.ledger.coverage)),
    Declared("loadgen_foreign_output_tokens_total", "counter", (),
             "Output tokens that the engine counted and no span reported: an estimate. Absent without its count.",
             _single(lambda page: page.ledger.foreign_tokens)),
    Declared("loadgen_energy_resets_total", "counter", (),
             "Energy counters found restarted. The energy used around a restart is unknown.",
             _single(lambda page: page.resets), by_engine=False),
    Declared("loadgen_energy_read_errors_total", "counter", (),
             "Reads of the energy source that failed.", _single(lambda page: page.read_errors), by_engine=False),
    Declared("loadgen_energy_last_read_timestamp_seconds", "gauge", (),
             "Unix time of the newest energy sample. Absent before the first.", _single(lambda page: page.last_read_s)),
    Declared("loadgen_energy_source_info", "gauge", (*GPU, "source"),
             "Always 1; source is how the joules were measured.",
             lambda page: (MetricRow((*_gpu_labels(energy), energy.domain.source), 1)
                           for energy in page.ledger.domains)),
    Declared("loadgen_settlement_lag_seconds", "gauge", (),
             "How far the counters above are behind now: energy is pending until its requests' spans have arrived.",
             _single(lambda page: page.ledger.lag_s)),
    Declared("loadgen_spans_dropped_total", "counter", ("reason",),
             "Spans that were not used.",
             lambda page: (MetricRow((reason,), count) for reason, count in page.dropped.items()), by_engine=False),
    Declared("loadgen_spans_merged_total", "counter", (),
             "Requests reported by both client and engine, counted once.", _single(lambda page: page.ledger.merged)),
    Declared("loadgen_spans_partial_total", "counter", (),
             "Requests whose beginning was committed before their span arrived, or was not measured.",
             _single(lambda page: page.ledger.partial)),
    Declared("loadgen_spans_open", "gauge", (),
             "Requests reported and not closed yet.", _single(lambda page: page.ledger.open_requests)),
    Declared("loadgen_engine_up", "gauge", (),
             "1 if the engine answered within the last 5 s. Absent when no engine was named.",
             _single(lambda page: None if page.engine_up is None else float(page.engine_up))),
    Declared("loadgen_engine_metrics_understood", "gauge", (),
             "1 if the engine answers with a metrics page whose names are known. Absent when no engine was named.",
             _single(lambda page: None if page.engine_understood is None else float(page.engine_understood))),
    Declared("loadgen_engine_restarts_total", "counter", (),
             "Restarts of the engine, seen by its token counter. Absent when no engine was named.",
             _single(lambda page: page.engine_restarts)),
    Declared("loadgen_otlp_exports_total", "counter", ("signal", "outcome"),
             "Messages to the OTLP collector; signal is metrics or traces, outcome is sent, rejected (in part, by the "
             "collector) or failed. Absent without a collector.",
             lambda page: (MetricRow(key, count) for key, count in sorted(page.pushes.exports.items())),
             by_engine=False),
    Declared("loadgen_energy_spans_total", "counter", ("outcome",),
             "Spans with the energy of a settled request; outcome is sent, rejected by the collector, or dropped: it "
             "refused the message, or too many waited. Absent without a collector.",
             lambda page: (MetricRow((outcome,), count) for outcome, count in sorted(page.pushes.spans.items())),
             by_engine=False),
)  # fmt: skip
"""All metrics, in the order of the page."""


class Exporter:
    """A prometheus_client collector of the pages that `latest` returns. Reads memory, never a GPU."""

    def __init__(self, latest: Callable[[], Sequence[SidecarPage]]) -> None:
        """latest: returns a page for each engine."""
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        pages = self._latest()
        for declared in METRICS:
            yield metric_family(declared, pages)

    def describe(self) -> Iterator[Metric]:
        """Describe nothing, so that registering does not collect."""
        return iter(())


def label_names(declared: Declared, pages: Sequence[SidecarPage]) -> tuple[str, ...]:
    """Return the names of the labels that a metric's rows have on these pages."""
    of_engine = ("engine",) if declared.by_engine and pages[0].engine is not None else ()
    return (*of_engine, *declared.labels, *(pages[0].ledger.labels if declared.by_labels else ()))


def metric_rows(declared: Declared, pages: Sequence[SidecarPage]) -> Iterator[MetricRow]:
    """Yield a metric's rows, those of each engine."""
    if not declared.by_engine or pages[0].engine is None:
        yield from declared.rows(pages[0])
        return
    for page in pages:
        for labels, value in declared.rows(page):
            yield MetricRow((page.engine or "", *labels), value)


def metric_family(declared: Declared, pages: Sequence[SidecarPage]) -> Metric:
    """Return the metric with its rows on these pages, as prometheus_client encodes it."""
    names = label_names(declared, pages)
    match declared.kind:
        case "counter":
            family: Any = CounterMetricFamily(declared.name.removesuffix("_total"), declared.help, labels=names)
        case "gauge":
            family = GaugeMetricFamily(declared.name, declared.help, labels=names)
        case "histogram":
            family = HistogramMetricFamily(declared.name, declared.help, labels=names)
    for labels, value in metric_rows(declared, pages):
        if isinstance(value, Histogram):
            buckets = [
                (bound, count, Exemplar({"request_id": exemplar.request_id}, exemplar.value) if exemplar else None)
                for bound, count, exemplar in value.buckets()
            ]
            family.add_metric(labels, buckets, value.sum)
        else:
            family.add_metric(labels, value)
    assert isinstance(family, Metric)
    return family


def _labels_of(declared: Declared) -> str:
    labels = ", ".join(f"`{label}`" for label in declared.labels)
    return f"{labels} +" if declared.by_labels else labels


def _otlp_reference() -> list[str]:
    """Return the lines about the names by which an OTLP collector gets the same metrics."""
    labels = dict.fromkeys(("engine", *(label for declared in METRICS for label in declared.labels)))
    return [
        "[`--otlp-metrics-endpoint`](../how-to/opentelemetry.md) sends the same metrics as OTLP, named as below. Names",
        "that begin with `gen_ai.`, `hw.` or `error.` are of OpenTelemetry's",
        "[conventions](https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/); `loadgen.` is loadgen's.",
        "",
        "| metric | OTLP name | unit |",
        "|---|---|---|",
        *(f"| `{m.name}` | `{otel.name}` | {otel.unit} |" for m in METRICS for otel in [otel_name(m.name)]),
        "",
        "Labels are attributes: "
        + ", ".join(f"`{label}` is `{attribute_name(label)}`" for label in labels)
        + ". Labels of `--label` keep their names, and an empty label is no attribute.",
        "",
    ]


def reference() -> str:
    """Return docs/reference/metrics.md."""
    lines = [
        "# Metrics of the sidecar",
        "",
        "This page lists every metric of `loadgen sidecar`. It is generated by `loadgen sidecar --reference`.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
        *(f"| `{m.name}` | {m.kind} | {_labels_of(m)} | {m.help} |" for m in METRICS),
        "",
        *_otlp_reference(),
        "The metrics marked + have the labels of `loadgen sidecar --label` too; without the option there are none. The",
        "values that a label states are shown, or else its first 50 (`--label-values`). Further values are counted as",
        "`other`, and so are values that are longer than 64 characters or not printable. A request without a value has",
        "an empty one, which is the same as no label to Prometheus. The pairs of model and workload that `--account`",
        "states are shown from the beginning, and beside them the first 50; further ones are counted as `other`.",
        "",
        "Where engines have names (`--engine`), the metrics have the label `engine`, but for "
        + ", ".join(f"`{m.name}`" for m in METRICS if not m.by_engine)
        + ".",
        "The watermark and the equation below are then of each engine. A request with a prefill engine and a decode",
        "engine counts at the decode engine alone, with the energy of both in `loadgen_request_energy_joules`; the",
        "prefill engine has its attributed energy. Until the energy source of an engine first answers, its energy is",
        "unknown, and its energy counters are absent.",
        "",
        "All counters and histograms are as of the watermark, `loadgen_settlement_lag_seconds` ago, so that",
        "ratios of them are of the same requests. At every scrape, to the millijoule:",
        "",
        "```text",
        "sum(loadgen_attributed_energy_joules_total) + loadgen_idle_energy_joules_total",
        "  + loadgen_unattributed_energy_joules_total == sum(loadgen_gpu_energy_joules_total)",
        "```",
        "",
        "What the meter has counted beyond that is `loadgen_gpu_energy_pending_joules`; power is live.",
        "",
        "Values of `reason` in `loadgen_spans_dropped_total`:",
        "",
        *(f"* `{reason}`: {meaning}" for reason, meaning in DROP_REASONS.items()),
        "",
    ]
    return "\n".join(lines)

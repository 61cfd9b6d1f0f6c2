"""The simulated server's /metrics: vLLM's names and types, and the GPU's energy counter."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from loadgen.simulator.cost_model import each_gpu
from loadgen.simulator.engine import Engine, Step, Totals
from loadgen.telemetry.histogram import Histogram
from loadgen.units import j_from_mj, mj_from_j

_TOKENS = [base * 10**k for k in range(6) for base in (1, 2, 5)]
_ITERATION_TOKENS = [1, *(2**k for k in range(3, 15))]
_FIRST_TOKEN_S = [
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
]
_BETWEEN_TOKENS_S = [
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
]
_REQUEST_S = [
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
]
"""Upper bounds of vLLM 0.20."""

HISTOGRAMS: dict[str, tuple[str, list[float] | list[int]]] = {
    "iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _ITERATION_TOKENS),
    "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _FIRST_TOKEN_S),
    "inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _BETWEEN_TOKENS_S),
    "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _REQUEST_S),
    "request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", _REQUEST_S),
    "request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", _REQUEST_S),
    "request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", _REQUEST_S),
    "request_prompt_tokens": ("Number of prefill tokens processed.", _TOKENS),
    "request_generation_tokens": ("Number of generation tokens processed.", _TOKENS),
}

FINISH_REASONS = ("stop", "length", "abort", "error")


class Metrics:
    """Counts what the server did; `page` shows the totals."""

    def __init__(self, engine: Engine, model_name: str, gpu_uuids: list[str], now_ns: Callable[[], int]) -> None:
        self.engine, self.now_ns = engine, now_ns
        self.labels = {"model_name": model_name, "engine": "0"}
        self.gpu_uuids = gpu_uuids
        self.totals = Totals()
        self.prefix_queries = self.prefix_hits = 0
        speculation = engine.scheduler.options.speculation
        self.accepted_at = [] if speculation is None else [0] * speculation.tokens
        """Accepted draft tokens by position; empty without a draft model."""
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def observe(self, name: str, value: float) -> None:
        self.histograms[name].observe(value)

    def step(self, step: Step) -> None:
        """Count a step that has ended."""
        self.totals.add(step)
        self.observe("iteration_tokens_total", step.tokens)
        if self.engine.scheduler.options.prefix_caching:
            for seq, _ in step.prefills:
                if seq.started_ns == step.start_ns:
                    self.prefix_queries += seq.input_tokens
                    self.prefix_hits += seq.cached_tokens
        if step.drafted is not None:
            self.accepted_at = [sum(pair) for pair in zip(self.accepted_at, step.drafted.accepted, strict=True)]

    def page(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        scheduler = self.engine.scheduler
        kv_cache_share = scheduler.pool.used / scheduler.pool.blocks
        for name, text, value in (
            ("num_requests_running", "Number of requests in model execution batches.", len(scheduler.running)),
            ("num_requests_waiting", "Number of requests waiting to be processed.", len(scheduler.waiting)),
            ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", kv_cache_share),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", f"{text} Simulated.", labels=[*self.labels])
            gauge.add_metric([*self.labels.values()], value)
            yield gauge
        yield from self._counters()
        if self.accepted_at:
            yield from self._draft_counters()
        for name, (text, _) in HISTOGRAMS.items():
            histogram = self.histograms[name]
            buckets = [(bound, count) for bound, count, _ in histogram.buckets()]
            family = HistogramMetricFamily(f"vllm:{name}", f"{text} Simulated.", labels=[*self.labels])
            family.add_metric([*self.labels.values()], buckets, histogram.sum)
            yield family

    def _counters(self) -> Iterator[Metric]:
        totals = self.totals
        rows = (
            ("prompt_tokens", "Number of prefill tokens processed.", totals.prompt_tokens),
            ("prompt_tokens_cached", "Number of cached prompt tokens.", totals.cached_tokens),
            ("generation_tokens", "Number of generation tokens processed.", totals.generation_tokens),
            ("num_preemptions", "Cumulative number of preemption from the engine.", totals.preemptions),
            ("prefix_cache_queries", "Prefix cache queries, in number of queried tokens.", self.prefix_queries),
            ("prefix_cache_hits", "Prefix cache hits, in number of cached tokens.", self.prefix_hits),
        )
        for name, text, value in rows:
            yield self._counter(name, text, value)
        success = CounterMetricFamily(
            "vllm:request_success",
            "Count of successfully processed requests. Simulated.",
            labels=[*self.labels, "finished_reason"],
        )
        for reason, count in self.finished.items():
            success.add_metric([*self.labels.values(), reason], count)
        yield success
        energy = CounterMetricFamily(
            "loadgen_simulated_gpu_energy_joules",
            "Simulated GPU energy counter. No real GPU is read.",
            labels=["gpu", "uuid"],
        )
        shown = self.engine.gpu.counter.shown(self.now_ns())
        for i, sample in enumerate(each_gpu([shown], len(self.gpu_uuids))):
            energy.add_metric([str(i), self.gpu_uuids[i]], j_from_mj(mj_from_j(sample.joules)))
        yield energy

    def _draft_counters(self) -> Iterator[Metric]:
        """Yield the counters of speculative decoding, which vLLM has only with a draft model."""
        totals = self.totals
        yield self._counter("spec_decode_num_drafts", "Number of spec decoding drafts.", totals.drafts)
        yield self._counter("spec_decode_num_draft_tokens", "Number of draft tokens.", totals.draft_tokens)
        yield self._counter("spec_decode_num_accepted_tokens", "Number of accepted tokens.", totals.accepted_tokens)
        by_position = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens per draft position. Simulated.",
            labels=[*self.labels, "position"],
        )
        for position, accepted in enumerate(self.accepted_at):
            by_position.add_metric([*self.labels.values(), str(position)], accepted)
        yield by_position

    def _counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(f"vllm:{name}", f"{text} Simulated.", labels=[*self.labels])
        family.add_metric([*self.labels.values()], value)
        return family

"""Reads an engine's own counters from its Prometheus page: its work for all clients, ours among them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from loadgen.clock import monotonic_ns
from loadgen.errors import MeterError
from loadgen.http_get import PageClient

if TYPE_CHECKING:
    from loadgen.telemetry.engine_sample import EngineSample

METRIC_NAMES = {
    "vllm:iteration_tokens_total_count": "iterations",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:prompt_tokens_cached_total": "cached_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_preemptions_total": "preemptions",
    "tgi_request_input_length_sum": "prompt_tokens",
    "tgi_request_generated_tokens_sum": "generation_tokens",
    "tgi_batch_current_size": "running",
    "tgi_queue_size": "waiting",
    "transformers:iterations_total": "iterations",
    "transformers:prompt_tokens_total": "prompt_tokens",
    "transformers:generation_tokens_total": "generation_tokens",
    "transformers:num_requests_running": "running",
    "transformers:num_requests_waiting": "waiting",
    "llamacpp:prompt_tokens_total": "prompt_tokens",
    "llamacpp:tokens_predicted_total": "generation_tokens",
    "llamacpp:n_decode_total": "iterations",
    "llamacpp:requests_processing": "running",
    "llamacpp:requests_deferred": "waiting",
}
"""Metric on the page -> name in a sample. Series of one name (several engines behind one page) are added."""

_LINE = re.compile(
    rb"\n(" + b"|".join(re.escape(name.encode()) for name in METRIC_NAMES) + rb")(?:\{[^}\n]*\})? ([-+0-9.eE]+)"
)
"""The pattern begins with a literal newline, which is searched for three times as fast as `^`."""


def parse_page(page: bytes) -> dict[str, float]:
    """Return name -> value for the known metrics on the page.

    Scans for their lines alone: prometheus_client's parser takes longer, and the page of an engine is long.
    """
    values: dict[str, float] = {}
    for metric, value in _LINE.findall(b"\n" + page):
        name = METRIC_NAMES[metric.decode()]
        values[name] = values.get(name, 0.0) + float(value)
    return values


class EnginePoller:
    """A thread that reads the page every `period_s` and passes on its values. A read that fails leaves a gap.

    `t_ns` of a sample is the middle of the request that fetched the page.
    """

    def __init__(self, root_url: str, on_sample: Callable[[EngineSample], None], *, period_s: float = 0.5) -> None:
        self._connection = PageClient(root_url, None, monotonic_ns)
        self._on_sample = on_sample
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2 * self._period_s + 2)

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self.read_now()

    def read_now(self) -> None:
        """Read one page and pass it on if it has any known metric. Blocks."""
        try:
            response = self._connection.get("/metrics")
        except MeterError:
            return
        finally:
            self._connection.close()  # llama.cpp gives a thread of its few to each connection, idle ones too
        if response.status == 200 and (values := parse_page(response.body)):
            self._on_sample({"t_ns": (response.sent_ns + response.received_ns) // 2, **values})

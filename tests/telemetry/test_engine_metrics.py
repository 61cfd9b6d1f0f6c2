"""An engine's page: which lines count, and what becomes of pages that do not come."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from loadgen.telemetry.engine_metrics import EnginePoller, parse_page
from loadgen.telemetry.engine_sample import EngineSample


@pytest.mark.parametrize(
    ("page", "values"),
    [
        (b'vllm:generation_tokens_total{engine="0"} 5.0', {"generation_tokens": 5.0}),
        (b"# HELP vllm:generation_tokens_total Of 1\nvllm:generation_tokens_total_created 1.7e9\n", {}),
        (b'vllm:num_requests_running{engine="0"} 2\nvllm:num_requests_running{engine="1"} 3\n', {"running": 5.0}),
        (b"tgi_batch_current_size 7\ntgi_queue_size 1e1\n", {"running": 7.0, "waiting": 10.0}),
        (b"up 1\n", {}),
        (b"", {}),
    ],
)
def test_lines_that_are_known_count_and_equal_names_are_added(page: bytes, values: dict[str, float]) -> None:
    assert parse_page(page) == values


@pytest.mark.parametrize(
    ("page", "values"),
    [
        (
            b"""# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{le="1.0",model_name="m"} 3.0
vllm:iteration_tokens_total_count{model_name="m"} 40.0
vllm:iteration_tokens_total_sum{model_name="m"} 999.0
vllm:prompt_tokens_total{model_name="m"} 1e+06
vllm:prompt_tokens_cached_total{model_name="m"} 5.0
vllm:generation_tokens_total{model_name="m"} 7.5
vllm:num_requests_running{model_name="m"} 2.0
vllm:num_requests_waiting{model_name="m"} 1.0
vllm:num_preemptions_total{model_name="m"} 4.0
""",
            {"iterations": 40.0, "prompt_tokens": 1e6, "cached_tokens": 5.0, "generation_tokens": 7.5, "running": 2.0,
             "waiting": 1.0, "preemptions": 4.0},
        ),
        (
            b"""tgi_request_input_length_sum 10
tgi_request_input_length_count 3
tgi_request_generated_tokens_sum 20
tgi_batch_current_size 2
tgi_queue_size 1
""",
            {"prompt_tokens": 10.0, "generation_tokens": 20.0, "running": 2.0, "waiting": 1.0},
        ),
        (
            b"""transformers:iterations_total 6
transformers:prompt_tokens_total 10
transformers:generation_tokens_total 20
transformers:num_requests_running 2
transformers:num_requests_waiting 1
""",
            {"iterations": 6.0, "prompt_tokens": 10.0, "generation_tokens": 20.0, "running": 2.0, "waiting": 1.0},
        ),
        (
            b"""llamacpp:prompt_tokens_total 10
llamacpp:tokens_predicted_total 20
llamacpp:n_decode_total 6
llamacpp:requests_processing 2
llamacpp:requests_deferred 1
""",
            {"prompt_tokens": 10.0, "generation_tokens": 20.0, "iterations": 6.0, "running": 2.0, "waiting": 1.0},
        ),
    ],
    ids=["vllm", "tgi", "transformers", "llamacpp"],
)  # fmt: skip
def test_each_engines_names_become_the_same(page: bytes, values: dict[str, float]) -> None:
    assert parse_page(page) == values


@contextmanager
def server(statuses: list[int]) -> Iterator[str]:
    """Answers with these statuses in turn."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"tgi_queue_size 3\n"
            self.send_response(statuses.pop(0))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_page_that_does_not_come_is_a_gap() -> None:
    seen: list[EngineSample] = []
    with server([200, 200, 500, 200]) as url:
        poller = EnginePoller(url + "/", seen.append)
        for _ in range(4):
            poller.read_now()
    poller.read_now()
    assert [sample["waiting"] for sample in seen] == [3.0] * 3
    assert seen[0]["t_ns"] < seen[1]["t_ns"] < seen[2]["t_ns"]


def test_the_middle_of_a_request_is_the_time_of_its_sample() -> None:
    seen: list[EngineSample] = []
    clock = iter((1000, 3001))
    with server([200]) as url:
        poller = EnginePoller(url, seen.append)
        poller._connection._client._clock = lambda: next(clock)
        poller.read_now()
    assert seen == [{"t_ns": 2000, "waiting": 3.0}]


def test_the_thread_reads_until_it_is_stopped() -> None:
    seen: list[EngineSample] = []
    third = threading.Event()

    def take(sample: EngineSample) -> None:
        seen.append(sample)
        if len(seen) == 3:
            third.set()

    with server([200] * 10_000) as url:
        poller = EnginePoller(url, take, period_s=0.01)
        poller.start()
        assert third.wait(30)
        poller.stop()
        reads = len(seen)
        assert not poller._thread.is_alive()
        poller.read_now()
        assert len(seen) == reads + 1, "a last read after the thread's is the caller's"


def test_a_stopped_poller_is_waited_for_as_long_as_a_read_may_take() -> None:
    waits: list[float] = []
    poller = EnginePoller("http://localhost:1", lambda _: None)
    poller._thread = SimpleNamespace(join=lambda timeout: waits.append(timeout))  # type: ignore[assignment]
    poller.stop()
    assert waits == [3.0], "two periods of half a second, and the 2 s that a page may take"

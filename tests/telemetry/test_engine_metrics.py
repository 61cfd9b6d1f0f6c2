"""Polling an engine's page: where it is looked for, and what becomes of pages that do not come."""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import pytest

from loadgen import http_get
from loadgen.telemetry.engine_metrics import EnginePoller, EngineState
from loadgen.telemetry.engine_sample import EngineSample
from support.fake_api import BurstServer

PROMETHEUS = b"tgi_queue_size 3\n"


@contextmanager
def server(answers: Mapping[str, tuple[int, bytes]], asked: list[str] | None = None, port: int = 0) -> Iterator[str]:
    """Answers paths with status and body; other paths with 404. `asked` gets every path."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            status, body = answers.get(self.path, (404, b"not here"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with BurstServer(("127.0.0.1", port), Page) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_page_that_does_not_come_is_a_gap() -> None:
    seen: list[EngineSample] = []
    answers = {"/metrics": (200, PROMETHEUS)}
    with server(answers) as url:
        poller = EnginePoller(url + "/", seen.append)
        for status in (200, 200, 500, 200):
            answers["/metrics"] = (status, PROMETHEUS)
            poller.read_now()
    poller.read_now()
    assert [sample["waiting"] for sample in seen] == [3.0] * 3
    assert seen[0]["t_ns"] < seen[1]["t_ns"] < seen[2]["t_ns"]


def test_the_middle_of_a_request_is_the_time_of_its_sample() -> None:
    seen: list[EngineSample] = []
    clock = iter((1000, 3001))
    with server({"/prometheus/metrics": (200, PROMETHEUS)}) as url:
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

    with server({"/metrics": (200, PROMETHEUS)}) as url:
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


JSON = b'[{"iter": 1, "numActiveRequests": 1}]'


@pytest.mark.parametrize(
    ("answers", "owner", "asked", "engine", "path", "reason"),
    [
        # TensorRT-LLM: its /metrics hands out statistics that are gone once read
        ({"/prometheus/metrics": (200, b"trtllm_num_requests_running 1\n"), "/metrics": (200, JSON)}, None,
         ["/prometheus/metrics"] * 3, "TensorRT-LLM", "/prometheus/metrics", None),
        ({"/metrics": (200, JSON)}, "tensorrt_llm", ["/prometheus/metrics"], None, None,
         "no metrics page is understood (/prometheus/metrics: status 404)"),
        ({"/metrics": (200, JSON)}, None, ["/prometheus/metrics", "/metrics", "/v1/metrics"], None, None,
         "no metrics page is understood (/prometheus/metrics: status 404; /metrics: JSON, not Prometheus text; "
         "/v1/metrics: status 404)"),
        # NIM
        ({"/v1/metrics": (200, b"num_requests_running 1\n")}, None,
         ["/prometheus/metrics", "/metrics", *["/v1/metrics"] * 3], "NIM", "/v1/metrics", None),
        # llama.cpp without --metrics
        ({"/metrics": (501, b"{}")}, "llamacpp", ["/prometheus/metrics", "/metrics", "/v1/metrics"], None, None,
         "no metrics page is understood (/prometheus/metrics: status 404; /metrics: status 501; "
         "/v1/metrics: status 404)"),
        # a gateway: a page of its own, and another one for every path that it does not know
        ({"/prometheus/metrics": (200, b"<!doctype html>"), "/metrics": (200, b"litellm_requests 3\n"),
          "/v1/metrics": (401, b"")}, None, ["/prometheus/metrics", "/metrics", "/v1/metrics"], None, None,
         "no metrics page is understood (/prometheus/metrics: HTML, not Prometheus text; "
         "/metrics: no name of an engine that is known; /v1/metrics: status 401)"),
        # an engine that has counted nothing yet (SGLang), and one that is still loading (llama.cpp)
        ({"/metrics": (200, b"")}, None, ["/prometheus/metrics", "/metrics", "/v1/metrics", "/metrics", "/metrics"],
         None, None, None),
        ({"/metrics": (503, b"{}")}, None, ["/prometheus/metrics", "/metrics", "/v1/metrics", "/metrics", "/metrics"],
         None, None, None),
    ],
    ids=["trtllm", "trtllm by its owner", "trtllm without its page", "nim", "llamacpp", "gateway", "empty", "loading"],
)  # fmt: skip
def test_a_page_that_is_not_understood_is_asked_for_no_more(
    answers: dict[str, tuple[int, bytes]], owner: str | None, asked: list[str],
    engine: str | None, path: str | None, reason: str | None,
) -> None:  # fmt: skip
    paths: list[str] = []
    with server(answers, paths) as url:
        poller = EnginePoller(url, lambda _: None, owner=owner)
        for _ in range(3):
            poller.read_now()
    assert paths == asked
    assert poller.state.answered_ns is not None
    assert (poller.state.engine, poller.state.path, poller.state.reason) == (engine, path, reason)


def test_a_server_that_is_away_has_not_answered_and_is_asked_again() -> None:
    seen: list[EngineSample] = []
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    poller = EnginePoller(f"http://127.0.0.1:{port}", seen.append)
    poller.read_now()
    assert poller.state == EngineState()
    with server({"/metrics": (200, PROMETHEUS)}, port=port):
        poller.read_now()
    assert (len(seen), poller.state.engine) == (1, "TGI")


def test_a_page_that_never_came_in_time_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-LLM's /metrics waits for statistics, and every request takes some away."""
    monkeypatch.setattr(http_get, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        poller = EnginePoller(f"http://127.0.0.1:{silent.getsockname()[1]}", lambda _: None, owner="tensorrt_llm")
        poller.read_now()
        assert poller.state.reason is None
        poller.read_now()
        assert poller.state.reason == "no metrics page is understood (/prometheus/metrics: no answer in time)"


def test_a_watched_server_without_a_page_still_shows_that_it_lives_and_is_tried_again_after_it_was_away() -> None:
    paths: list[str] = []
    seen: list[EngineSample] = []
    with server({"/metrics": (200, JSON)}, paths) as url:
        poller = EnginePoller(url, seen.append, watch=True)
        for _ in range(2):
            poller.read_now()
        assert paths[3:] == ["/v1/models"] * 2
        assert poller.state.reason is not None
    poller.read_now()
    assert poller.state.reason is None
    with server({"/metrics": (200, PROMETHEUS)}, port=int(url.rsplit(":", 1)[1])):
        poller.read_now()
    assert (len(seen), poller.state.path) == (1, "/metrics")

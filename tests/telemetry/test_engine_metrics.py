"""An engine's page: which lines count, and what becomes of pages that do not come."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from loadgen.telemetry.engine_metrics import EnginePoller, EngineSample, parse_page


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
    assert [sample.values for sample in seen] == [{"waiting": 3.0}] * 3
    assert seen[0].t_ns < seen[1].t_ns < seen[2].t_ns

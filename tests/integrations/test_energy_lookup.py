"""Looking up joules from a thread: each request has one outcome, whatever the sidecar answers or does not."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from loadgen.clock import monotonic_ns
from loadgen.http_get import PageClient
from loadgen.integrations.energy_lookup import EnergyLookup, RequestEnergy
from support.served_in_thread import serving

SETTLED: dict[str, Any] = {
    "state": "settled", "id": "a", "joules": 3.5, "se_joules": 0.1, "prefill_joules": 1.5, "decode_joules": 2.0,
    "measured_joules": 3.5, "model": "m", "engine": "localhost:8000", "input_tokens": 7, "output_tokens": 3,
    "cached_tokens": None, "settled_unix_ns": 100, "workload": "chat", "labels": {"team": "a"},
}  # fmt: skip

Answer = tuple[int, bytes]


def settled(**changes: Any) -> Answer:
    return 200, json.dumps(SETTLED | changes).encode()


@contextmanager
def sidecar(*answers: Answer) -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a server that gives these answers in turn, the last for ever, and the paths it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = answers[min(len(paths), len(answers) - 1)]
            paths.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}", paths


def lookup_at(url: str, **options: Any) -> EnergyLookup:
    quick = {"first_s": 0.0, "pause_s": 0.01, "unknown_s": 0.05, "unsettled_s": 0.2}
    return EnergyLookup({url: PageClient(url, None, monotonic_ns)}, **(quick | options))


def outcome(url: str, request_id: str = "a", **options: Any) -> tuple[list[RequestEnergy | None], dict[str, int]]:
    """Return what was delivered of one request, and the counts."""
    lookup, delivered = lookup_at(url, **options), []
    assert lookup.add(url, request_id, delivered.append)
    assert lookup.wait(20)
    return delivered, {name: count for name, count in lookup.counts.items() if count}


def test_a_request_is_asked_for_until_it_has_settled() -> None:
    with sidecar((404, b"{}"), (202, b"{}"), (202, b"{}"), settled()) as (url, paths):
        (energy,), counts = outcome(url, "a/b c", unknown_s=60, unsettled_s=60)
    assert energy is not None and (energy.joules, energy.se_joules, energy.output_tokens) == (3.5, 0.1, 3)
    assert (counts, paths) == ({"settled": 1}, ["/requests/a%2Fb%20c"] * 4)


def test_the_joules_of_a_request_that_was_not_measured_whole_stay_unknown() -> None:
    unknown = dict.fromkeys(("joules", "se_joules", "prefill_joules", "decode_joules"))
    with sidecar(settled(**unknown)) as (url, _):
        (energy,), counts = outcome(url)
    assert energy is not None and (energy.joules, energy.measured_joules) == (None, 3.5)
    assert counts == {"partial": 1}


@pytest.mark.parametrize(
    "answer",
    [
        (200, b""), (200, b"[]"), (200, b"\xff"), (200, b"{}"), (200, b"[" * 100_000), settled(joules=-1),
        settled(joules=1e300), settled(joules="3"), settled(joules=True), settled(model="x" * 300),
        settled(output_tokens=-1), settled(settled_unix_ns=None),
        (200, json.dumps(SETTLED).replace("3.5", "NaN").encode()), settled(settled_unix_ns=2**64),
        (200, b'{"x":' + b"[" * 100_000),
    ],
    ids=range(15),
)  # fmt: skip
def test_an_answer_that_is_none_is_counted_and_its_joules_are_unknown(answer: Answer) -> None:
    with sidecar(answer) as (url, paths):
        assert outcome(url) == ([None], {"malformed": 1})
        assert len(paths) == 1


@pytest.mark.parametrize("status", [202, 404, 400, 401, 500, 302])
def test_a_request_that_never_settles_is_given_up(status: int) -> None:
    with sidecar((status, b"no")) as (url, _):
        assert outcome(url) == ([None], {"unknown": 1})


def test_without_a_sidecar_all_is_given_up_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        lookup, delivered = lookup_at(url), []
        for number in range(50):
            lookup.add(url, f"r{number}", delivered.append)
        assert lookup.wait(20)
    assert (delivered, lookup.counts["unknown"]) == ([None] * 50, 50)
    assert len(caplog.messages) == 1 and "Connection refused" in caplog.text


def test_the_password_of_a_sidecar_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with sidecar((401, b"")) as (url, _):
        outcome(url.replace("//", "//user:SECRET@"))
    assert "answered 401" in caplog.text and "SECRET" not in caplog.text


def test_a_sidecar_that_comes_back_is_asked_again() -> None:
    with sidecar((500, b""), (500, b""), settled()) as (url, _):
        (energy,), counts = outcome(url, unsettled_s=60)
    assert energy is not None and counts == {"settled": 1}


def test_what_is_too_much_is_dropped_and_add_never_waits() -> None:
    release = threading.Event()

    def deliver(_: RequestEnergy | None) -> None:
        release.wait(20)

    with sidecar(settled()) as (url, _):
        lookup = lookup_at(url, max_waiting=3)
        assert [lookup.add(url, f"r{number}", deliver) for number in range(5)] == [True] * 3 + [False] * 2
        assert not lookup.wait(0)
        release.set()
        assert lookup.wait(20)
        assert lookup.counts == {"settled": 3, "dropped": 2}
        assert lookup.add(url, "again", deliver), "there is room again"
        assert lookup.wait(20)


@pytest.mark.parametrize("request_id", ["", "x" * 129, "a\nb", "\x1b[2J", "\ud800"])
def test_what_is_no_id_is_not_asked_for(request_id: str) -> None:
    lookup = lookup_at("http://127.0.0.1:9")
    assert not lookup.add("http://127.0.0.1:9", request_id, print)
    assert (lookup.wait(0), lookup.counts) == (True, {"malformed": 1})


def test_an_error_of_the_receiver_does_not_stop_the_next() -> None:
    def broken(_: RequestEnergy | None) -> None:
        raise RuntimeError("of the user")

    delivered: list[RequestEnergy | None] = []
    receivers: list[Callable[[RequestEnergy | None], None]] = [broken, broken, delivered.append]
    with sidecar(settled()) as (url, _):
        lookup = lookup_at(url)
        for number, receiver in enumerate(receivers):
            lookup.add(url, f"r{number}", receiver)
        assert lookup.wait(20)
    assert (len(delivered), lookup.counts) == (1, {"settled": 3, "undelivered": 2})

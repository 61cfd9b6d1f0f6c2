"""The locustfile in locust's own processes, against the simulated server: locust patches sockets, so never in ours."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.servers.launcher import free_port, served
from loadgen.units import NS_PER_MS
from loadgen.workload import schedule
from loadgen.workload.token_bins import TokenBin, TokenBins
from loadgen.workload.trace import read_trace

if find_spec("locust") is None:
    pytest.skip("needs locust", allow_module_level=True)

from loadgen.locust.web import ANSWER, ENERGY, FIRST_TOKEN, LATE, NEXT_TOKENS, NO_SIDECAR

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "traces" / "chat.jsonl"
KEY = "sk-locust-secret-5f1c"
LISTENER = """
import json, os
from locust import events
out = open({path!r} + "." + str(os.getpid()), "w")
def write(response, **_):
    print(json.dumps([response.index, response.scheduled_ns, response.error]), file=out, flush=True)
events.request.add_listener(write)
"""


def start(*options: str, files: tuple[Path, ...] = (), key: str | None = KEY) -> "subprocess.Popen[str]":
    """Locust in a folder that is not ours, so that only the locustfile's own path leads to loadgen."""
    names = ",".join(map(str, (ROOT / "loadgen" / "locustfile.py", *files)))
    ours = ("LOCUST_", "LOADGEN_", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.Popen(
        [sys.executable, "-m", "locust", "-f", names, *options],
        cwd="/", env=env | ({"OPENAI_API_KEY": key} if key else {}), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def locust(
    *options: str, enough: Callable[[], bool] | None = None, files: tuple[Path, ...] = (), key: str | None = KEY
) -> tuple[int, str]:
    """Run a test to its end, or end it once `enough` holds. Return (exit status, output)."""
    process = start("--headless", "--only-summary", *options, files=files, key=key)
    if enough:
        until(lambda: process.poll() is not None or enough())
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=50)
    return process.returncode, output


def bins(folder: Path, name: str, input_tokens: int, output_tokens: int) -> str:
    """Write token bins with short lengths, so that a test is short; return the file's path."""
    input_range, output_range = (input_tokens - 5, input_tokens + 5), (output_tokens - 2, output_tokens + 2)
    lengths = TokenBin(
        input_range=input_range, output_range=output_range, count=1, mean_input=input_tokens, mean_output=output_tokens
    )
    made = TokenBins(
        name=name, provenance={}, edges="stated", input_edges=input_range, output_edges=output_range, bins=(lengths,)
    )
    path = folder / f"{name}.json"
    path.write_bytes(msgspec.json.encode(made))
    return str(path)


def short_answers(folder: Path) -> tuple[str, ...]:
    """Return the options with which both kinds of users ask for answers that take a second at most."""
    return ("--chat-bins", bins(folder, "chat", 300, 50), "--code-bins", bins(folder, "code", 800, 15))


@contextmanager
def running(*options: str) -> Iterator["subprocess.Popen[str]"]:
    process = start(*options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A simulated server that wants the key; its root URL."""
    with served("sim", environment={"LOADGEN_SERVE_API_KEY": KEY}) as url:
        yield url.removesuffix("/v1")


@pytest.fixture
def sidecar(server: str) -> Iterator[str]:
    """One of its own for each test: what another test aborted is settled late."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "loadgen", "sidecar", "--engine-url", server, "--energy", server]
    command += ["--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: fetch(f"http://127.0.0.1:{port}/healthz"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def fetch(url: str) -> str:
    """Empty when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def until(check: Callable[[], Any]) -> Any:
    for _ in range(300):
        if found := check():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come to that in 30 s")


def oracle(server: str) -> list[dict[str, Any]]:
    """Return the server's own account of its requests, without those of probes."""
    requests = [json.loads(line) for line in fetch(server + "/oracle/requests").splitlines()]
    return [request for request in requests if not request["request_id"].startswith("loadgen-")]


def table(prefix: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Locust's table by (type, name)."""
    with Path(f"{prefix}_stats.csv").open() as file:
        return {(row["Type"], row["Name"]): row for row in csv.DictReader(file)}


def test_users_ask_in_a_closed_loop_and_joules_come_back(server: str, sidecar: str, tmp_path: Path) -> None:
    earlier = len(oracle(server))
    status, said = locust(
        "-u", "6", "-r", "6", "--stop-timeout", "30", "--host", server, "--sidecar", sidecar,
        "--csv", str(tmp_path / "run"), *short_answers(tmp_path), enough=lambda: len(oracle(server)) > earlier + 60,
    )  # fmt: skip
    assert status == 0, said
    truth = oracle(server)[earlier:]
    rows = table(tmp_path / "run")
    asked = {kind: int(rows[kind, ANSWER]["Request Count"]) for kind in ("chat", "code")}
    assert min(asked.values()) > 0 and sum(asked.values()) == len(truth)
    assert int(rows["", "Aggregated"]["Request Count"]) == len(truth), "rows beside answers are not in the total"
    for kind, count in asked.items():
        assert int(rows[kind, FIRST_TOKEN]["Request Count"]) == count
        first, answer = (float(rows[kind, name]["Average Response Time"]) for name in (FIRST_TOKEN, ANSWER))
        assert 0 < first < answer and float(rows[kind, NEXT_TOKENS]["Average Response Time"]) > 0
        assert (kind, LATE) not in rows, "who asks when it likes is never late"
        assert int(rows[kind, ENERGY]["Request Count"]) == count, said
    tokens = sum(asked[kind] * float(rows[kind, ANSWER]["Average Content Size"]) for kind in asked)
    assert tokens == pytest.approx(sum(line["output_tokens"] for line in truth))
    joules = sum(asked[kind] * float(rows[kind, ENERGY]["Average Content Size"]) for kind in asked)
    assert joules == pytest.approx(sum(line["joules"] for line in truth), rel=0.05)
    assert len(re.findall(r"[0-9.]+ J/request, [0-9.]+ J/output token \(simulated", said)) == 2, said
    assert KEY not in said and all(KEY not in file.read_text() for file in tmp_path.iterdir())


def test_three_workers_send_the_trace_each_request_once_on_one_schedule(server: str, tmp_path: Path) -> None:
    trace, listener = tmp_path / "trace.jsonl", tmp_path / "listener.py"
    with TRACE.open() as whole:
        requests = [json.loads(line) for line in islice(whole, 60)]
    short = [
        request | {"output_length": min(request["output_length"], 5 + i % 7)} for i, request in enumerate(requests)
    ]
    trace.write_text("".join(json.dumps(request) + "\n" for request in short))
    listener.write_text(LISTENER.format(path=str(tmp_path / "sent")))
    earlier, port = len(oracle(server)), free_port("127.0.0.1")
    workers = [start("--worker", "--master-port", str(port), files=(listener,)) for _ in range(3)]
    status, said = locust(
        "--master", "--master-bind-port", str(port), "--expect-workers", "3",
        "-u", "3", "-r", "3", "--host", server, "--trace", str(trace), "--rps", "40", "--num-requests", "60",
        "--seed", "4", "--csv", str(tmp_path / "run"),
    )  # fmt: skip
    heard = [worker.communicate(timeout=20)[0] for worker in workers]
    assert status == 0, said + "".join(heard)
    planned = schedule.build_schedule(read_trace(trace), seed=4, rps=40, num_requests=60)
    assert "60 of 60 scheduled requests sent, 0 failed" in said and planned.sha256[:12] in said

    served_lines = oracle(server)[earlier:]
    runs, indices = zip(*(line["request_id"].rsplit("-", 1) for line in served_lines), strict=True)
    assert len(set(runs)) == 1
    assert sorted(map(int, indices)) == list(range(60)), "each request once"
    for index, line in zip(map(int, indices), served_lines, strict=True):
        one = planned.requests[index]
        assert line["output_tokens"] == one.output_tokens
        assert line["input_tokens"] == one.input_tokens or one.input_tokens < 20, "the template alone takes some"

    sent = {file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in tmp_path.glob("sent.*")}
    shares = [[index for index, _, _ in lines] for lines in sent.values() if lines]
    assert sorted(sorted(share) for share in shares) == [list(range(i, 60, 3)) for i in range(3)]
    instants = {index: scheduled_ns for lines in sent.values() for index, scheduled_ns, _ in lines}
    for one in planned.requests:
        assert abs(instants[one.index] - instants[0] - one.offset_ns) < NS_PER_MS, "one start for all"
    rows = table(tmp_path / "run")
    assert {name for _, name in rows} == {ANSWER, FIRST_TOKEN, NEXT_TOKENS, LATE, "Aggregated"}
    assert KEY not in said + "".join(heard)


REASONS = {
    "truncated: ended after N chunks with no finish reason or [DONE]",
    "server: simulated fault: error_event",
    "http: 503 Service Unavailable: simulated fault: http_503",
}
BROKEN = {
    "truncated: ConnectionResetError: [Errno N] Connection reset by peer",
    "truncated: ConnectionError: the server ended the connection",
}


def failures(prefix: Path) -> dict[str, int]:
    """Return the number of failures by reason, as locust has written them so far."""
    path = Path(f"{prefix}_failures.csv")
    if not path.exists():
        return {}
    with path.open() as file:
        return {row["Error"]: int(row["Occurrences"] or 0) for row in csv.DictReader(file)}


def test_failures_are_counted_by_reason_in_one_line(tmp_path: Path) -> None:
    prefix = tmp_path / "run"

    def attempt(server: str) -> tuple[int, str] | None:
        """Run until each kind of failure has come; None where the probes before the test failed, by the same faults."""
        status, said = locust("CodeUser", "-u", "8", "-r", "8", "--host", server, "--csv", str(prefix),
                              "--code-bins", bins(tmp_path, "code", 60, 8), key=None,
                              enough=lambda: set(failures(prefix)) > REASONS)  # fmt: skip
        return None if status == 2 else (status, said)

    kinds = ("truncate", "disconnect", "error_event", "http_503")
    with served("sim", *(word for kind in kinds for word in ("--fault", kind + ":0.05"))) as url:
        status, said = until(lambda: attempt(url.removesuffix("/v1")))
    assert status == 1, said
    counts = failures(prefix)
    assert REASONS <= set(counts) <= REASONS | BROKEN and set(counts) & BROKEN, counts
    row = table(prefix)["code", ANSWER]
    assert int(row["Failure Count"]) == sum(counts.values()) < int(row["Request Count"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-u", "2", "--host", "http://127.0.0.1:1"), "no server at http://127.0.0.1:1/v1"),
        (("-u", "2"), "where is the server? add --host"),
        (("TraceReplay", "-u", "1", "--host", "http://127.0.0.1:1"), "TraceReplay needs a trace"),
        (("-u", "1", "--host", "{server}", "--trace", "/no/such.jsonl"), "/no/such.jsonl"),
    ],
)
def test_a_world_that_is_not_as_asked_ends_the_test_with_one_line(
    server: str, options: tuple[str, ...], words: str
) -> None:
    status, said = locust(*(option.format(server=server) for option in options))
    assert status == 2, said
    errors = [line for line in said.splitlines() if "/ERROR/" in line]
    assert len(errors) == 1 and words in errors[0], said
    assert "Traceback" not in said


def test_a_wrong_key_is_told_and_not_repeated(server: str) -> None:
    status, said = locust("-u", "1", "--host", server, key="sk-another-secret-77")
    assert status == 2 and "refuses this API key" in said and "sk-another" not in said


def tab(url: str, key: str) -> list[dict[str, str]]:
    """Rows of one of our tabs, as locust's page gets them; none before the page is there."""
    page = fetch(url + "/stats/requests")
    return next((t["data"] for t in json.loads(page)["extended_stats"] if t["key"] == key), []) if page else []


def test_without_a_sidecar_the_tab_says_so_and_has_no_joules(server: str) -> None:
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    away = ("--sidecar", f"http://127.0.0.1:{free_port('127.0.0.1')}")
    for options, words in (((), NO_SIDECAR), (away, "does not answer")):
        with running("--web-port", str(port), "--autostart", "-u", "2", "--host", server,
                     *options):  # fmt: skip
            until(lambda: tab(url, "tokens"))
            rows = tab(url, "energy")
            assert len(rows) == 1 and set(rows[0]) == {"account"} and words in rows[0]["account"]
            assert words in json.loads(fetch(url + "/loadgen/panel"))["problem"]
            assert words in fetch(url + "/loadgen/energy.csv")


def accepts(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@pytest.mark.parametrize(
    ("options", "everywhere"), [((), False), (("--web-host", "*", "--master-bind-host", "*"), True)], ids=["bare", "*"]
)
def test_page_and_master_listen_on_loopback_unless_asked_elsewhere(options: tuple[str, ...], everywhere: bool) -> None:
    """All interfaces would include 127.0.0.2."""
    page, master = free_port("127.0.0.1"), free_port("127.0.0.1")
    with running("--master", "--web-port", str(page), "--master-bind-port", str(master), *options):
        until(lambda: fetch(f"http://127.0.0.1:{page}/"))
        assert {accepts("127.0.0.1", page), accepts("127.0.0.1", master)} == {True}
        assert {accepts("127.0.0.2", page), accepts("127.0.0.2", master)} == {everywhere}


LISTENERS = """
import sys
from locust.argument_parser import get_parser
from loadgen.locust.options import add_options
parser = get_parser()
add_options(parser)
options = parser.parse_args(sys.argv[1:])
print(options.web_host, options.master_bind_host)
"""


@pytest.mark.parametrize(
    ("options", "environment", "hosts"),
    [
        ((), {}, "127.0.0.1 127.0.0.1"),
        (("--web-host", "10.0.0.1"), {}, "10.0.0.1 127.0.0.1"),
        ((), {"LOCUST_WEB_HOST": "10.0.0.1", "LOCUST_MASTER_BIND_HOST": "*"}, "10.0.0.1 *"),
    ],
    ids=["bare", "option", "environment"],
)
def test_an_explicit_listener_wins(options: tuple[str, ...], environment: dict[str, str], hosts: str) -> None:
    command = [sys.executable, "-c", LISTENERS, *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hosts


def test_a_browser_shows_the_tabs_and_the_charts(server: str, sidecar: str, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium")
    url = f"http://127.0.0.1:{(port := free_port('127.0.0.1'))}"

    def page(key: str) -> str:
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]
        done = subprocess.run([*command, f"{url}/?tab={key}"], capture_output=True, text=True, timeout=40, check=True)
        return done.stdout

    with running("--web-port", str(port), "--autostart", "-u", "4", "-r", "4",
                 "--host", server, "--sidecar", sidecar, *short_answers(tmp_path)):  # fmt: skip
        until(lambda: any(row.get("per_request") for row in tab(url, "energy")))
        energy = until(lambda: (shown := page("energy")).count("<svg viewBox") == 4 and shown)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", energy)
    assert {"chat", "code", "idle", "unattributed", "power now (simulated)"} <= set(cells)
    assert any(re.fullmatch(r"[0-9.,]+ W", cell) for cell in cells)
    assert "Simulated: a model" in energy
    assert {"Per request", "Per output token"} <= set(re.findall(r"<th[^>]*>([^<]*)</th>", energy))

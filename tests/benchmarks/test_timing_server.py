"""The timing server in C: every token is written once, and the client has the right record for each of its faults.

Its log is held to the contract of both timing servers in tests/run/test_timing_server.py.
"""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.instrument import faults, timing_server
from loadgen.client.client import Client
from loadgen.record import RequestRecord

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc"), reason="timing_server.c needs Linux and a C compiler"
)

TTFT_MS, ITL_MS, TOKENS = 4, 1, 8
PACED = ("--ttft-ms", str(TTFT_MS), "--itl-ms", str(ITL_MS), "--stall-ms", "50")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return timing_server.build(tmp_path_factory.mktemp("timing_server"))


def body(path: str, tokens: int = TOKENS) -> bytes:
    asked = {"messages": [{"role": "user", "content": 'a "max_tokens": 99 b'}]} if "chat" in path else {"prompt": "a"}
    options = {"max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({"model": "truth"} | asked | options).encode()


async def ask(url: str, path: str, count: int, headers: dict[str, str] | None = None) -> list[RequestRecord]:
    async with Client(f"{url}/v1", headers=headers, timeout_s=20) as client:
        return await asyncio.gather(
            *(
                client.post(path, body(path), index=i, workload="w", scheduled_ns=0, request_id=f"r-{i}")
                for i in range(count)
            )
        )


@pytest.mark.parametrize("burst", [("--burst",), ("--burst-write", "3"), ("--tokens-per-event", "3")])
def test_every_token_is_written_once_however_they_are_packed(
    binary: Path, tmp_path: Path, burst: tuple[str, ...]
) -> None:
    with timing_server.started(binary, tmp_path / "log", None, *PACED, *burst) as url:
        records = asyncio.run(ask(url, "/chat/completions", 20))
    log = timing_server.read(tmp_path / "log")
    assert [int(row["tokens"]) for row in log.requests] == [TOKENS] * 20
    assert {len(record.chunk_ns) for record in records} == {int(row["events"]) for row in log.requests}
    assert all(record.ok and record.output_tokens == TOKENS for record in records)


@pytest.mark.parametrize("burst", [(), ("--burst",)], ids=["paced", "burst"])
@pytest.mark.parametrize("fault", timing_server.FAULTS)
def test_a_request_with_a_fault_has_the_record_that_fits_it(
    binary: Path, tmp_path: Path, fault: str, burst: tuple[str, ...]
) -> None:
    with timing_server.started(binary, tmp_path / "log", None, *PACED, *burst) as url:
        records = asyncio.run(ask(url, "/chat/completions", 6, {"x-fault": fault}))
    rows = {bytes(row["request_id"]): row for row in timing_server.read(tmp_path / "log").requests}
    assert all(faults.faults_of(row) == {fault} for row in rows.values())
    assert [faults.complaints(record, rows[f"r-{record.index}".encode()]) for record in records] == [[]] * 6


def test_all_faults_at_once_leave_one_record_of_the_right_kind_each(binary: Path, tmp_path: Path) -> None:
    mixed = [option for name in timing_server.FAULTS for option in ("--fault", f"{name}=0.1")]
    with timing_server.started(binary, tmp_path / "log", None, *PACED, *mixed) as url:
        records = asyncio.run(ask(url, "/completions", 300))
    rows = {bytes(row["request_id"]): row for row in timing_server.read(tmp_path / "log").requests}
    assert len({record.error for record in records}) == 5
    assert [line for record in records for line in faults.complaints(record, rows[f"r-{record.index}".encode()])] == []


def test_the_same_seed_gives_the_same_faults_and_another_seed_others(binary: Path, tmp_path: Path) -> None:
    def flags(seed: int) -> list[int]:
        with timing_server.started(
            binary, tmp_path / "log", None, "--burst", "--fault", "500=0.5", "--seed", str(seed)
        ) as u:
            asyncio.run(ask(u, "/completions", 40))
        return [int(flag) for flag in timing_server.read(tmp_path / "log").requests["flags"]]

    assert flags(1) == flags(1) != flags(2)


@pytest.fixture
def plain(binary: Path, tmp_path: Path) -> Iterator[str]:
    with timing_server.started(binary, tmp_path / "log", None, "--burst") as url:
        yield url


def test_curl_sees_an_ordinary_server(plain: str) -> None:
    curl = shutil.which("curl")
    if not curl:
        pytest.skip("needs curl")

    def curl_output(*options: str) -> str:
        return subprocess.run([curl, "-sS", *options], capture_output=True, text=True, check=True, timeout=10).stdout

    assert curl_output(f"{plain}/health") == "{}"
    assert json.loads(curl_output(f"{plain}/v1/models"))["data"][0]["id"] == "truth"
    whole = json.loads(curl_output(f"{plain}/v1/completions?fault=", "-d", '{"max_tokens": 3}'))
    assert whole["usage"]["completion_tokens"] == 3 == len(whole["choices"][0]["text"].split())
    assert curl_output("-o", "-", "-w", "%{http_code}", f"{plain}/v1/completions?fault=429", "-d", "{}").endswith("429")
    assert curl_output("-w", "%{http_code}", f"{plain}/nowhere").endswith("404")


@pytest.mark.parametrize(
    ("injected", "kinds"),
    [
        (set(), {None}),
        ({"stall", "split", "crlf"}, {None}),
        ({"badjson"}, {"protocol"}),
        ({"close"}, {"truncated"}),
        ({"reset", "badjson"}, {"truncated", "protocol"}),
        ({"errchunk", "close"}, {"server"}),
        ({"429", "errchunk", "badjson"}, {"http"}),
    ],
)
def test_an_error_status_precedes_an_error_event_and_that_a_cut_stream(
    injected: set[str], kinds: set[str | None]
) -> None:
    assert faults.expected(injected) == kinds


def test_the_server_in_c_has_every_option_of_the_one_in_python() -> None:
    command = [sys.executable, "-m", "loadgen.run.timing_server", "--help"]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"--([a-z-]+)", usage)) - {"help"}
    assert options == {"port", "ttft-ms", "itl-ms", "model", "log", "hash-bodies"}
    assert options <= set(re.findall(r'\{ "([a-z-]+)", [01], 0,', timing_server.SOURCE.read_text()))

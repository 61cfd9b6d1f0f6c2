"""A real sidecar is killed while it writes a ledger: what it showed as settled is in the ledger, once."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from loadgen.results.bill import bill_of
from loadgen.results.read_ledger import LedgerFile, ledger_files
from loadgen.simulator.app import ServerOptions, running_simulator

KILLS = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def sidecar(engine: str, port: int, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    command = ["-m", "loadgen", "sidecar", "--engine-url", engine, "--port", str(port), "--ledger", str(folder),
               "--allowed-lateness", "1"]  # fmt: skip
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"sidecar: ")
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def send(session: aiohttp.ClientSession, engine: str, name: str) -> None:
    body = {"model": "llama-3.1-8b", "prompt": "Say it", "max_tokens": 20, "ignore_eos": True}
    async with session.post(engine + "/v1/completions", json=body, headers={"X-Request-Id": name}) as response:
        assert response.status == 200
        await response.read()


async def settled(session: aiohttp.ClientSession, url: str, sent: list[str]) -> set[str]:
    """Return the requests that the sidecar shows as settled."""
    shown = set()
    for name in sent:
        async with session.get(f"{url}/requests/{name}") as response:
            if response.status == 200:
                shown.add((await response.json())["id"])
    return shown


async def sent_and_killed(folder: Path) -> tuple[list[str], set[str]]:
    """Send requests, and kill the sidecar as soon as it shows one as settled, several times; the last time, end it."""
    port = free_port()
    options = ServerOptions(port=0, otlp_traces_endpoint=f"http://127.0.0.1:{port}/v1/traces")
    sent, shown = list[str](), set[str]()
    async with running_simulator(options) as (_, engine), aiohttp.ClientSession() as session:
        for life in range(KILLS + 1):
            async with sidecar(engine, port, folder) as process:
                here = list[str]()
                while not (new := await settled(session, f"http://127.0.0.1:{port}", here)):
                    here.append(f"life{life}-{len(here)}")
                    await send(session, engine, here[-1])
                sent, shown = sent + here, shown | new
                process.send_signal(signal.SIGKILL if life < KILLS else signal.SIGTERM)
                await process.wait()
    return sent, shown


def test_a_killed_sidecars_ledger_has_all_that_it_showed_as_settled_once_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    sent, shown = asyncio.run(sent_and_killed(tmp_path))
    ids = [r.id for path in ledger_files(tmp_path) for b, _ in LedgerFile(path).batches() for r in b.requests]
    ours = [name for name in ids if name.startswith("life")]
    assert {name.partition("-")[0] for name in shown} == {f"life{life}" for life in range(KILLS + 1)}
    assert shown <= set(ours) <= set(sent)
    assert len(ours) == len(set(ours))
    assert len(ledger_files(tmp_path)) == KILLS + 1
    bill = bill_of(tmp_path)
    assert bill.counter_mj > 0
    assert sum(group.requests for group in bill.groups.values()) == len(ids)

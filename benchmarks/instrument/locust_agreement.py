"""Check that the locust users measure the same time to first token as `loadgen replay`'s own client, at 20 users.

    python -m benchmarks.instrument.locust_agreement [--users 20] [--seconds 20] [--rounds 3]

Two closed loops with the same lengths and prompts alternate on one simulated server. The server reports when each first
token was due (`vllm:time_to_first_token_seconds`): what a client measures beyond that comes from the client and the
network. The server's times differ between rounds as the batches do; the excess does not depend on them. The exit status
is 1 when the excesses differ by more than 5 ms.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import urllib.request
from itertools import count
from pathlib import Path
from statistics import mean, quantiles
from typing import NamedTuple

import numpy as np
import uvloop

from loadgen.client.client import Client
from loadgen.client.request_body import message_maker
from loadgen.client.server_probe import ServerProbe
from loadgen.clock import monotonic_ns
from loadgen.locust.probe_process import Question, ask
from loadgen.locust.workload import fitting_bins, lengths
from loadgen.record import PATHS
from loadgen.servers.launcher import served
from loadgen.units import NS_PER_MS, NS_PER_S
from loadgen.workload.prompts import PromptKind
from loadgen.workload.schedule import ScheduledRequest

ROOT = Path(__file__).parents[2]
BINS: dict[PromptKind, str] = {"chat": "azure-2023-chat", "code": "azure-2023-code"}
LISTENER = """
from locust import events
out = open({path!r}, "w")
def write(response, **_):
    if response.ok and response.ttft_ns:
        print(response.ttft_ns, file=out, flush=True)
events.request.add_listener(write)
"""


class Round(NamedTuple):
    client_ms: list[float]
    server_ms: float
    """Mean TTFT that the server reports."""

    @property
    def excess_ms(self) -> float:
        return mean(self.client_ms) - self.server_ms


def server_ttft(root_url: str) -> tuple[float, float]:
    """Return (sum in seconds, count) of the server's TTFT histogram so far."""
    page = urllib.request.urlopen(root_url + "/metrics").read().decode()
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if "time_to_first_token_seconds_" in line)
    values = {name: float(value) for name, value in lines.items() if "_bucket" not in name}
    return (
        sum(value for name, value in values.items() if "_sum" in name),
        sum(value for name, value in values.items() if "_count" in name),
    )


async def closed_loop(reply: ServerProbe, users: int, seconds: float) -> list[int]:
    """Return the TTFTs of loadgen's own client; its user k sends the requests of locust's user k."""
    kinds: list[PromptKind] = ["chat", "code"]
    bins = {kind: fitting_bins(BINS[kind], reply.server.max_model_len) for kind in kinds}
    make_message = message_maker(0, reply.vocabularies, "chat", reply.server.model, reply.server.dialect, extra_body={})
    indices, ttfts_ns = count(), []
    end_ns = monotonic_ns() + round(seconds * NS_PER_S)

    async def user(client: Client, number: int) -> None:
        kind = kinds[number % 2]
        pairs = lengths(bins[kind], reply.server.max_model_len, np.random.default_rng([0, 0, number]))
        while monotonic_ns() < end_ns:
            input_tokens, output_tokens = next(pairs)
            request = ScheduledRequest(index=next(indices), offset_ns=0, workload=kind, input_tokens=input_tokens,
                                       output_tokens=output_tokens)  # fmt: skip
            record = await client.post(PATHS["chat"], make_message(request).body, index=request.index,
                                       workload=kind, scheduled_ns=0, request_id=f"own-{request.index}")  # fmt: skip
            if record.ok and record.ttft_ns:
                ttfts_ns.append(record.ttft_ns)

    async with Client(reply.server.base_url, timeout_s=60) as client:
        await asyncio.gather(*(user(client, number) for number in range(users)))
    return ttfts_ns


def own(root_url: str, users: int, seconds: float) -> list[int]:
    reply = ask(Question(base_url=root_url + "/v1", model=None, endpoint="chat", kinds=frozenset(BINS)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        return loop.run(closed_loop(reply, users, seconds))


def locust(root_url: str, users: int, seconds: float) -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        written, listener = Path(folder) / "ttft", Path(folder) / "listener.py"
        listener.write_text(LISTENER.format(path=str(written)))
        command = [sys.executable, "-m", "locust", "-f", f"{ROOT}/loadgen/locustfile.py,{listener}", "--headless",
                   "-u", str(users), "-r", str(users), "-t", f"{seconds:.0f}", "--stop-timeout", "60",
                   "--host", root_url, "--only-summary", "--loglevel", "ERROR"]  # fmt: skip
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        return [int(line) for line in written.read_text().split()]


def measure(client: str, root_url: str, users: int, seconds: float) -> Round:
    start = server_ttft(root_url)
    ttfts_ns = {"loadgen": own, "locust": locust}[client](root_url, users, seconds)
    end = server_ttft(root_url)
    return Round([ns / NS_PER_MS for ns in ttfts_ns], 1000 * (end[0] - start[0]) / (end[1] - start[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    excess: dict[str, list[float]] = {"loadgen": [], "locust": []}
    print("client    requests   TTFT mean     p50     p90   by the server   excess   (ms)")
    with served("sim") as url:
        for _ in range(options.rounds):
            for client, values in excess.items():
                measured = measure(client, url.removesuffix("/v1"), options.users, options.seconds)
                tenths = quantiles(measured.client_ms, n=10)
                values.append(measured.excess_ms)
                times = f"{mean(measured.client_ms):11.2f} {tenths[4]:7.1f} {tenths[8]:7.1f} {measured.server_ms:15.2f}"
                print(f"{client:8} {len(measured.client_ms):9} {times} {measured.excess_ms:8.2f}", flush=True)
    difference = mean(excess["locust"]) - mean(excess["loadgen"])
    print(f"\nlocust measures {difference:+.2f} ms against loadgen's own client (mean of {options.rounds} rounds)")
    sys.exit(abs(difference) > 5)


if __name__ == "__main__":
    main()

"""Measure what a prompt of 100,000 tokens costs loadgen, which makes it, and the simulated server, which reads it.

    python -m benchmarks.instrument.long_prompts                      about 2 minutes
    python -m benchmarks.instrument.long_prompts --tokens 150000 --sessions 2

A session's first prompt has --tokens tokens in blocks of 64 or 512, and every later turn 1,000 more behind the same
blocks. CPU time is shown: of a body the median, of the server the mean of a request with an answer of ten tokens, from
parsing to the last event. Linux only.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import process_time
from typing import NamedTuple
from urllib.request import Request, urlopen

import msgspec

from loadgen.client.openai_api import Dialect
from loadgen.client.request_body import MessageMaker, message_maker
from loadgen.workload.prompts import estimate_vocabulary
from loadgen.workload.schedule import ScheduledRequest

MODEL = "llama-3.1-8b"
TEMPLATE_TOKENS = 8
"""Tokens that the simulated chat template adds."""
MORE_TOKENS = 1000
ANSWER_TOKENS = 10
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """Milliseconds of first prompts and of later turns."""

    first: list[float]
    later: list[float]

    def add(self, turn: int, seconds: float) -> None:
        (self.later if turn else self.first).append(1000 * seconds)


def prompt(session: int, turn: int, tokens: int, block_tokens: int) -> ScheduledRequest:
    length = tokens + turn * MORE_TOKENS
    ids = range(session * 10**6, session * 10**6 + length // block_tokens)
    return ScheduledRequest(
        index=session * 1000 + turn, offset_ns=0, workload="chat", input_tokens=length, output_tokens=ANSWER_TOKENS,
        prefix_ids=tuple(ids), block_size=block_tokens,
    )  # fmt: skip


def maker() -> MessageMaker:
    vocabulary = replace(estimate_vocabulary("chat", 0.25, TEMPLATE_TOKENS), exact=True)
    return message_maker(1, {"chat": vocabulary}, "chat", MODEL, Dialect(), {})


@contextmanager
def server(context: int) -> Iterator[tuple[str, int]]:
    """Run a simulated server; yield its URL and its process id."""
    options = ["--port", "0", "--prefix-caching", "--exit-with-parent", "--max-model-len", str(context)]
    command = [sys.executable, "-m", "loadgen", "serve", "sim", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[2], process.pid
        finally:
            process.terminate()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def ask(url: str, body: bytes) -> None:
    with urlopen(Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})) as page:
        assert page.read().rstrip().endswith(b"[DONE]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    print(f"{'':44} {'first prompt':>13} {'later turn':>11}")
    for block_tokens in (64, 512):
        body, served, make = Cost([], []), Cost([], []), maker()
        size = 0
        with server(options.tokens + 1000 * options.turns + 100) as (url, pid):
            for session in range(options.sessions):
                for turn in range(options.turns):
                    request = prompt(session, turn, options.tokens, block_tokens)
                    start_s = process_time()
                    made = make(request).body
                    body.add(turn, process_time() - start_s)
                    size, start_s = len(made), cpu_s(pid)
                    ask(url, made)
                    served.add(turn, cpu_s(pid) - start_s)
            with urlopen(url.removesuffix("/v1") + "/oracle/requests") as page:
                lines = [msgspec.json.decode(line) for line in page]
        check(lines, options.tokens, options.turns)
        rows = {
            f"a body of {size / 1e6:.2f} MB": [f"{median(cost):.1f}" for cost in body],
            "the server": [f"{sum(cost) / len(cost):.0f}" for cost in served],
        }
        for what, (first, later) in rows.items():
            print(f"blocks of {block_tokens}: {what}, CPU ms".ljust(44) + f"{first:>13} {later:>11}", flush=True)


def check(lines: list[dict[str, int]], tokens: int, turns: int) -> None:
    """Hold every prompt's tokens and hits against those that were due."""
    for number, line in enumerate(lines):
        length = tokens + number % turns * MORE_TOKENS
        assert line["input_tokens"] == length, (line, length)
        assert (line["cached_tokens"] > length - MORE_TOKENS - 600) == (number % turns > 0), line


if __name__ == "__main__":
    main()

"""Probe a server in a subprocess, because asyncio and gevent cannot share a process.

`python -m loadgen.locust.probe_process` reads a Question from standard input and writes the ServerProbe, both JSON.
With exit status 2 it writes the reason instead. What it says while it waits goes to standard error, as it happens.
The API key comes from $OPENAI_API_KEY alone, so that it is on no command line.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec

from loadgen.client.client import Client
from loadgen.client.server_probe import ServerProbe, probe
from loadgen.errors import LoadgenError
from loadgen.record import Endpoint
from loadgen.workload.prompts import PromptKind


class Question(msgspec.Struct, frozen=True, kw_only=True):
    base_url: str
    model: str | None
    endpoint: Endpoint
    kinds: frozenset[PromptKind]
    tokenizer: str | None = None
    timeout_s: float = 60.0


def ask(question: Question) -> ServerProbe:
    """Run the probe in a subprocess. Raises LoadgenError with the reason that it printed."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "loadgen.locust.probe_process"],
        input=msgspec.json.encode(question),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode:
        reason = done.stdout.decode(errors="replace").strip() if done.returncode == 2 else ""
        raise LoadgenError(reason or f"the probe of the server ended with exit status {done.returncode}")
    return msgspec.json.decode(done.stdout, type=ServerProbe)


async def _answer(question: Question) -> ServerProbe:
    key = os.environ.get("OPENAI_API_KEY")
    async with Client(question.base_url, api_key=key, timeout_s=question.timeout_s) as client:
        tokenizer = Path(question.tokenizer) if question.tokenizer else None
        return await probe(client, question.endpoint, question.kinds, model=question.model, tokenizer=tokenizer)


def main() -> None:
    if not (text := sys.stdin.buffer.read()):  # locust ended before it asked
        sys.exit(1)
    question = msgspec.json.decode(text, type=Question)
    try:
        reply = asyncio.run(_answer(question))
    except LoadgenError as err:
        print(err)
        sys.exit(2)
    sys.stdout.buffer.write(msgspec.json.encode(reply))


if __name__ == "__main__":
    main()

"""Start a server that belongs to this run, wait until it answers, and end it with the run."""

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from loadgen.errors import LoadgenError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0


@contextmanager
def served(name: str, *options: str) -> Iterator[str]:
    """Runs `loadgen serve NAME` on a free port for the time of the block; gives its base URL.

    Its own process group: a Ctrl-C at the terminal is ours to handle, the server must live until the run has drained.
    """
    command = [sys.executable, "-m", "loadgen", "serve", name, "--port", "0", "--exit-with-parent", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0) as process:
        try:
            yield _wait_for_url(process, name)
        finally:
            _end(process)


def _wait_for_url(process: "subprocess.Popen[bytes]", name: str) -> str:
    """The URL in the server's first line that has one."""
    assert process.stdout is not None
    said = b""
    deadline = monotonic() + START_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - monotonic()) > 0:
            if not selector.select(left):
                break
            piece = os.read(process.stdout.fileno(), 4096)
            said += piece
            for line in said.splitlines(keepends=True):
                if line.endswith(b"\n") and b"http://" in line:
                    return "http://" + line.split(b"http://", 1)[1].split()[0].decode()
            if not piece:
                break
    last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    raise LoadgenError(f"the server `loadgen serve {name}` did not start: {last[0]}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()

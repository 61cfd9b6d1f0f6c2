"""The timing-true server of the benchmarks: built, pinned to a core, and its log read back.

Any C file will do that takes --port, --log, --quiet, --burst, --burst-write N, --ttft-ms X and --itl-ms X, and whose
log is an array of `LOG`.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import numpy as np
from numpy.typing import NDArray

LOG = np.dtype(
    [("seq", "u8")]
    + [(name, "i8") for name in ("t_accept", "t_rx", "t_read", "t_read_real", "t_int_first", "t_first")]
    + [(name, "i8") for name in ("t_int_last", "t_last", "t_end", "late_sum", "late_max")]
    + [(name, "u4") for name in ("tok_req", "ev_plan", "ev_sent", "tok_sent", "flags", "status")]
    + [(name, "u4") for name in ("conn", "req_on_conn", "body", "eagain")]
    + [("xrid", "S64")]
)
"""One request. Times are ns of CLOCK_MONOTONIC; `t_rx` is the kernel's stamp of the request's last segment."""

FAULTS = (
    "close", "reset", "stall", "500", "503", "429", "badjson", "crlf", "nospace", "comment", "split", "nousage",
    "nodone", "errchunk", "emptydelta",
)  # fmt: skip
"""Bit i of `flags` says that fault i was injected."""


def build(source: Path, folder: Path) -> Path:
    binary = folder / "truthserver"
    subprocess.run(["gcc", "-O2", "-o", str(binary), str(source), "-lm"], check=True)
    return binary


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def pinned(core: int | None, command: Sequence[str]) -> list[str]:
    return [*(["taskset", "-c", str(core)] if core is not None else []), *command]


@contextmanager
def truthserver(binary: Path, log: Path, core: int | None, *options: str) -> Iterator[str]:
    """Runs it for the time of the block; gives its root URL. The log is complete after the block."""
    port = free_port()
    command = [str(binary), "--port", str(port), "--log", str(log), "--quiet", *options]
    server = subprocess.Popen(pinned(core, command), stdout=sys.stderr)
    try:
        _wait(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)


def _wait(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = monotonic() + 5
    while monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            sleep(0.02)
    raise SystemExit(f"the server did not start: {server.args}")


def read(log: Path) -> NDArray[np.void]:
    """The load's own requests in order of arrival: probes and warm-up are left out."""
    every = np.sort(np.fromfile(log, dtype=LOG), order="seq")
    probes = np.char.startswith(every["xrid"], b"loadgen-")
    return every[~probes]


def arrivals_s(log: NDArray[np.void]) -> NDArray[np.float64]:
    """When each request came, in order, as offsets from the first."""
    at = np.sort(np.where(log["t_rx"] > 0, log["t_rx"], log["t_read"]))
    return (at - at[0]) / 1e9


def spread_over_cores() -> tuple[int | None, int | None]:
    """(server's core, client's core), or no pinning on a machine of one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)

"""Build the server of known timing (`timing_server.c`), pin it to a core, and read its log."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCE = Path(__file__).with_name("timing_server.c")
REQUEST = np.dtype(
    [("seq", "u8")]
    + [(name, "i8") for name in ("arrived_ns", "read_ns", "due_ns", "late_max_ns", "ended_ns")]
    + [("first_write", "u8")]
    + [(name, "u4") for name in ("events", "tokens", "asked", "flags", "status", "connection")]
    + [("request_id", "S64")]
)
"""Layout of `struct record` in timing_server.c, which describes the fields."""
FAULTS = (
    "close", "reset", "stall", "500", "503", "429", "badjson", "crlf", "nospace", "comment", "split", "nousage",
    "nodone", "errchunk", "emptydelta", "donealone", "doneearly", "abort", "choiceerr", "eventerr", "empty", "open",
    "parts", "surrogate", "zerousage", "textless",
)  # fmt: skip
"""Bit i of `flags` is set when fault i was injected."""
ANY_FAULT = (1 << len(FAULTS)) - 1


@dataclass(frozen=True)
class Log:
    requests: NDArray[np.void]
    """Rows of dtype `REQUEST`, in order of arrival."""
    writes_ns: NDArray[np.int64]
    bodies: list[str] | None = None
    """SHA-256 of each request's body, in hex, if the server was started with --hash-bodies."""

    def writes_of(self, request: np.void) -> NDArray[np.int64]:
        """Return the time at which each token event of a request was written."""
        first_write = int(request["first_write"])
        return self.writes_ns[first_write : first_write + int(request["events"])]

    def arrivals_s(self) -> NDArray[np.float64]:
        """Return the arrival times in order, in seconds after the first."""
        arrived_ns = np.sort(self.requests["arrived_ns"])
        return (arrived_ns - arrived_ns[0]) / 1e9

    def only(self, kept: NDArray[np.bool_]) -> "Log":
        bodies = self.bodies and [body for body, keeps in zip(self.bodies, kept, strict=True) if keeps]
        return Log(self.requests[kept], self.writes_ns, bodies)


def build(folder: Path) -> Path:
    binary = folder / "timing_server"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(binary), str(SOURCE)], check=True)
    return binary


def pinned(core: int | None, command: Sequence[str]) -> list[str]:
    return [*(["taskset", "-c", str(core)] if core is not None else []), *command]


@contextmanager
def started(server: Path | Sequence[str], log: Path, core: int | None, *options: str) -> Iterator[str]:
    """Run a timing server, the binary or a command, during the block; yield its root URL. The log is complete after the
    block."""
    own = [str(server)] if isinstance(server, Path) else server
    command = pinned(core, [*own, "--log", str(log), *options])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=_end_with_parent)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().removeprefix("timing server: ").strip().removesuffix("/v1")
        if not url:
            raise SystemExit(f"the server did not start: {' '.join(command)}")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdout.close()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def read(log: Path, prefix: bytes = b"") -> Log:
    """Read the requests whose id has the prefix; loadgen's probes and warm-up are left out."""
    requests = np.fromfile(log, dtype=REQUEST)
    order = np.argsort(requests["seq"])
    ids = requests["request_id"][order]
    own = order[np.char.startswith(ids, prefix) & ~np.char.startswith(ids, b"loadgen-")]
    hashes = Path(f"{log}.sha256")
    bodies = None
    if hashes.exists():
        data = hashes.read_bytes()
        bodies = [data[32 * i : 32 * i + 32].hex() for i in own.tolist()]
    return Log(requests[own], np.fromfile(f"{log}.writes", dtype=np.int64), bodies)


def spread_over_cores() -> tuple[int | None, int | None]:
    """Return (server's core, client's core), or (None, None) on a machine with one core."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)

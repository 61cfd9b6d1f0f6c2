"""The server of known timing (`timing_server.c`): built, pinned to a core, and its log read back."""

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
"""`struct record` of timing_server.c, which explains it."""
FAULTS = (
    "close", "reset", "stall", "500", "503", "429", "badjson", "crlf", "nospace", "comment", "split", "nousage",
    "nodone", "errchunk", "emptydelta",
)  # fmt: skip
"""Bit i of `flags` says that fault i was injected."""
ANY_FAULT = (1 << len(FAULTS)) - 1


@dataclass(frozen=True)
class Log:
    requests: NDArray[np.void]
    """Of `REQUEST`, in order of arrival."""
    writes_ns: NDArray[np.int64]

    def writes_of(self, request: np.void) -> NDArray[np.int64]:
        """When each of its token events was written."""
        first = int(request["first_write"])
        return self.writes_ns[first : first + int(request["events"])]

    def first_write_ns(self) -> NDArray[np.int64]:
        """Of every request; those without a token must have been left out."""
        return self.writes_ns[self.requests["first_write"].astype(np.int64)]

    def arrivals_s(self) -> NDArray[np.float64]:
        """When each request came, in order, as offsets from the first."""
        at = np.sort(self.requests["arrived_ns"])
        return (at - at[0]) / 1e9

    def only(self, kept: NDArray[np.bool_]) -> "Log":
        return Log(self.requests[kept], self.writes_ns)


def build(folder: Path) -> Path:
    binary = folder / "timing_server"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(binary), str(SOURCE)], check=True)
    return binary


def pinned(core: int | None, command: Sequence[str]) -> list[str]:
    return [*(["taskset", "-c", str(core)] if core is not None else []), *command]


@contextmanager
def started(server: Path | Sequence[str], log: Path, core: int | None, *options: str) -> Iterator[str]:
    """Runs a timing server, the binary or a command, for the time of the block; gives its root URL. The log is complete
    after the block."""
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
    """The load's own requests, those whose id has the prefix: loadgen's probes and warm-up are left out."""
    every = np.sort(np.fromfile(log, dtype=REQUEST), order="seq")
    ids = every["request_id"]
    own = np.char.startswith(ids, prefix) & ~np.char.startswith(ids, b"loadgen-")
    return Log(every[own], np.fromfile(f"{log}.writes", dtype=np.int64))


def spread_over_cores() -> tuple[int | None, int | None]:
    """(server's core, client's core), or no pinning on a machine of one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[1]) if len(cores) > 1 else (None, None)

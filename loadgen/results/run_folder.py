"""A run is a folder: write it as things happen, read it back whole, whatever ended the run."""

import gzip
import heapq
import math
import os
import shutil
import tempfile
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any, BinaryIO, Self, TypeVar

import msgspec
from msgspec.structs import force_setattr

from loadgen.attribution.shapley import RunAttribution
from loadgen.clock import Anchor
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.errors import LoadgenError
from loadgen.record import RequestRecord
from loadgen.results.summary import Summary
from loadgen.workload.schedule import ArrivalSpec, Schedule, ScheduledRequest, encode_schedule

T = TypeVar("T")


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """run.json: what was asked, of what, on what, and how it ended."""

    run_id: str
    loadgen_version: str
    config: dict[str, Any]
    """The options of the run, secrets left out."""
    seed: int
    requested_rps: float | None
    schedule_sha256: str
    asked: list[ArrivalSpec] = []
    """How requests were to come, stream by stream."""
    anchor: Anchor
    host: dict[str, Any]
    versions: dict[str, str]
    server: dict[str, Any]
    """base_url, model, engine, simulated."""
    domains: list[EnergyDomain]
    energy_reasons: list[str] = []
    """Why there is no energy source, when there is none."""
    energy_notes: list[str] = []
    """What the meter says of itself: gain, averaging, which GPUs."""
    start_ns: int | None = None
    """The instant that schedule offsets count from."""
    end_ns: int | None = None
    stopped_by: str | None = None
    """"completed", "interrupted" or "aborted"; None while it runs, or when it was killed."""
    instrument: dict[str, Any] = {}


@dataclass(frozen=True)
class RunResult:
    """A run folder in memory: the argument of every view."""

    info: RunInfo
    schedule: list[ScheduledRequest]
    records: list[RequestRecord]
    """One per scheduled request, by index."""
    energy: list[EnergySample]
    engine: list[dict[str, Any]]
    attribution: RunAttribution | None
    """None without energy, or before `analyse`; so is summary."""
    summary: Summary | None


class RunWriter:
    """Appends whole lines to a run folder. Threads may share one writer."""

    def __init__(self, path: Path, info: RunInfo, schedule: Schedule, *, overwrite: bool = False) -> None:
        """Makes the folder and writes everything that is known before the first byte is sent."""
        _make_folder(path, overwrite)
        self.path = path
        self._lock = threading.Lock()
        self._encode = msgspec.json.Encoder().encode
        try:
            write_atomic(path / "schedule.jsonl", encode_schedule(schedule.requests))
            self.write_info(info)
            self._files = {name: _append_to(path / f"{name}.jsonl") for name in ("records", "energy", "engine")}
        except OSError as err:
            raise _cannot_write(path, err) from err

    @classmethod
    def part(cls, path: Path, number: int) -> Self:
        """Writes the records of one process among several, until `merge_parts`. All else has one writer."""
        part = cls.__new__(cls)
        part.path, part._lock, part._encode = path, threading.Lock(), msgspec.json.Encoder().encode
        try:
            part._files = {"records": _append_to(_part(path, number))}
        except OSError as err:
            raise _cannot_write(path, err) from err
        return part

    def write_info(self, info: RunInfo) -> None:
        write_atomic(self.path / "run.json", msgspec.json.format(msgspec.json.encode(info)) + b"\n")

    def record(self, record: RequestRecord) -> None:
        self._write("records", self._encode(record) + b"\n")

    def energy(self, samples: Iterable[EnergySample]) -> None:
        self._append("energy", samples)

    def engine(self, sample: dict[str, Any]) -> None:
        self._append("engine", [sample])

    def flush(self) -> None:
        """Hands every line to the kernel. Call it at least once a second: that is all that a `kill -9` can lose."""
        try:
            with self._lock:
                for file in self._files.values():
                    file.flush()
        except OSError as err:
            raise _cannot_write(self.path, err) from err

    def close(self) -> None:
        try:
            self.flush()
        finally:
            for file in self._files.values():
                with suppress(OSError):  # what could not be flushed cannot be closed; that was reported
                    file.close()

    def _append(self, name: str, lines: Iterable[Any]) -> None:
        self._write(name, b"".join(self._encode(line) + b"\n" for line in lines))

    def _write(self, name: str, data: bytes) -> None:
        try:
            with self._lock:
                self._files[name].write(data)
        except OSError as err:
            raise _cannot_write(self.path, err) from err


def write_atomic(path: Path, data: bytes) -> None:
    """All of `data` at `path`, or what was there before."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _make_folder(path: Path, overwrite: bool) -> None:
    """A folder for the run. An earlier run goes only when `overwrite` asks; what is not a run never goes."""
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if not (path / "run.json").is_file():
                raise LoadgenError(f"--out {path} exists and is not a run folder; choose another")
            if not overwrite:
                raise LoadgenError(f"--out {path} already holds a run; choose another folder, or add --overwrite")
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise _cannot_write(path, err) from err


def _part(path: Path, number: int) -> Path:
    return path / f"records.{number}.jsonl"


def _parts(path: Path) -> list[Path]:
    return sorted(path.glob("records.*.jsonl"))


def recorded_in_part(path: Path, number: int) -> set[int]:
    """Indices of the requests that process `number` has written a record of."""
    return {record.index for record in _read_lines(_part(path, number), _Ended)}


class _Ended(msgspec.Struct):
    """What merging has to know of a record."""

    index: int
    finished_ns: int | None = None


_decode_ended = msgspec.json.Decoder(_Ended).decode


def _ended_ns(line: bytes) -> float:
    finished_ns = _decode_ended(line).finished_ns
    return math.inf if finished_ns is None else finished_ns


def merge_parts(path: Path) -> None:
    """One records.jsonl of all that is there, in the order in which things ended, as each process heard of them. The
    parts stay until it is whole."""
    if not (parts := _parts(path)):
        return
    whole = path / ".records.jsonl"
    try:
        with whole.open("wb") as file, ExitStack() as stack:
            each = [stack.enter_context(part.open("rb")) for part in (path / "records.jsonl", *parts)]
            lines: Iterator[bytes] = heapq.merge(*map(_whole_lines, each), key=_ended_ns)
            file.writelines(lines)
        whole.replace(path / "records.jsonl")
        for part in parts:
            part.unlink()
    except OSError as err:
        whole.unlink(missing_ok=True)
        raise _cannot_write(path, err) from err


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    return (line for line in file if line.endswith(b"\n"))


def _append_to(path: Path) -> BinaryIO:
    return path.open("ab", buffering=1 << 20)


def _cannot_write(path: Path, err: OSError) -> LoadgenError:
    return LoadgenError(f"cannot write the run folder {path}: {err.strerror or err}")


def read_run(path: Path, schedule: Sequence[ScheduledRequest] | None = None) -> RunResult:
    """What was recorded in `path`; what can be derived from it is left to `analyse`. `schedule`: when it is at hand.

    A run that was killed reads as far as it got: half a last line is left out, and a request without a record gets one
    that says so.
    """
    info = _read_json(path / "run.json", RunInfo)
    if schedule is None:
        schedule = list(map(_with_shared_text, _read_lines(path / "schedule.jsonl", ScheduledRequest)))
    files = [path / "records.jsonl", *_parts(path)]
    records = {record.index: _compact(record) for file in files for record in _read_lines(file, RequestRecord)}
    return RunResult(
        info=info,
        schedule=list(schedule),
        records=[records.get(request.index) or _lost(request, info) for request in schedule],
        energy=list(_read_lines(path / "energy.jsonl", EnergySample)),
        engine=list(_read_lines(path / "engine.jsonl", dict)),
        attribution=None,
        summary=None,
    )


def write_analysis(path: Path, attribution: RunAttribution | None, summary: Summary, page: str) -> None:
    """attribution.jsonl, summary.json and report.html."""
    try:
        if attribution is not None:
            lines = b"".join(msgspec.json.encode(share) + b"\n" for share in attribution.requests)
            write_atomic(path / "attribution.jsonl", lines)
        write_atomic(path / "summary.json", msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
        write_atomic(path / "report.html", page.encode())
    except OSError as err:
        raise _cannot_write(path, err) from err


def _lost(request: ScheduledRequest, info: RunInfo) -> RequestRecord:
    return RequestRecord(
        index=request.index,
        workload=request.workload,
        scheduled_ns=(info.start_ns or 0) + request.offset_ns,
        error="cancelled",
        detail="no record: the client was killed",
    )


def _with_shared_text(request: ScheduledRequest) -> ScheduledRequest:
    """One text for all requests that say the same: a run of a million has to fit."""
    force_setattr(request, "workload", intern(request.workload))
    return request


def _compact(record: RequestRecord) -> RequestRecord:
    """Chunk times of 8 bytes each, and no text or number twice."""
    force_setattr(record, "workload", intern(record.workload))
    if record.finish_reason:
        force_setattr(record, "finish_reason", intern(record.finish_reason))
    force_setattr(record, "chunk_ns", array("q", record.chunk_ns))
    return record


def _read_json(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as err:
        raise LoadgenError(f"{path.parent} is not a run folder: it has no {path.name}") from err
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path}: {err}") from err


def _read_lines(path: Path, kind: type[T]) -> Iterator[T]:
    """Every whole line, gzipped or not; nothing when the file is not there."""
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        return
    decode = msgspec.json.Decoder(kind).decode
    with path.open("rb") if path.exists() else gzip.open(packed, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as err:
                raise LoadgenError(f"{path}:{number}: {err}") from err

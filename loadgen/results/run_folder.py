"""A run is a folder: written while the run happens, and readable afterwards however the run ended."""

from __future__ import annotations

import gzip
import shlex
import shutil
import threading
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import msgspec

from loadgen.clock import Anchor
from loadgen.energy.named_engine import NamedEngine
from loadgen.energy.series import EnergyDomain, EnergySample, EnergySeries, series_by_domain
from loadgen.errors import LoadgenError
from loadgen.files import replacing, write_atomic
from loadgen.record import Kind, RequestRecord
from loadgen.telemetry.engine_sample import PROMPT_COUNTERS, summed_samples
from loadgen.telemetry.engine_span import EngineSpan
from loadgen.workload.schedule import ArrivalSpec, Schedule, ScheduledRequest, schedule_lines

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RequestEnergy, RunAttribution
    from loadgen.client.answer import Answer
    from loadgen.results.session_accounts import SessionAccount
    from loadgen.results.summary import Summary
    from loadgen.telemetry.engine_sample import EngineSample

_Line = TypeVar("_Line")

SCHEMA_VERSION = "1.0"
"""Version of the formats of a run folder's and a study's files. MINOR grows with a new field. MAJOR grows when a field
goes away, changes its name, its unit or its meaning."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """run.json: what was requested, of which server, on which machine, and how the run ended."""

    schema_version: str | None = None
    """Version of this file's format and of the other files that were recorded; null in an older version's folder."""
    run_id: str
    """Random identity of the run."""
    loadgen_version: str
    """Version of loadgen that made the run."""
    command: list[str] = []
    """The words of the command line that made the run, without secrets. Empty in the folder of an older version, and
    where a study or a program made it."""
    config: dict[str, Any]
    """The options of the run, without secrets."""
    seed: int
    """Seed of arrivals, drawn lengths and prompts."""
    requested_rps: float | None
    """Planned mean of requests per second; None for a single request and for a closed loop."""
    schedule_sha256: str
    """SHA-256 of the bytes of schedule.jsonl."""
    asked: list[ArrivalSpec] = []
    """The requested arrival process of each stream."""
    anchor: Anchor
    """One instant on two clocks: Unix time and the monotonic clock of all other instants, both in nanoseconds."""
    host: dict[str, Any]
    """Host name, system, processors and Python of the client."""
    versions: dict[str, str]
    """Versions of the libraries that the timing depends on."""
    server: dict[str, Any]
    """base_url, model, engine, simulated."""
    engines: list[NamedEngine] = []
    """Engines behind the server, where --engine names them."""
    domains: list[EnergyDomain]
    """Counters whose energy was read. Empty without a meter."""
    energy_reasons: list[str] = []
    """Reasons for having no energy source, or why `auto` passed better ones over."""
    energy_notes: list[str] = []
    """The meter's description of itself: gain, averaging, which GPUs."""
    start_ns: int | None = None
    """The instant that schedule offsets count from."""
    end_ns: int | None = None
    """Instant at which recording ended; None while the run lasts, or when it was killed."""
    stopped_by: str | None = None
    """"completed", "interrupted", "aborted", or "decided" where a search had seen enough; None while the run lasts, or
    when it was killed."""
    instrument: dict[str, Any] = {}
    """Cost and lateness of the client, and what its meter reports of itself."""

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of run.json as plain values."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made


@dataclass(frozen=True)
class RunResult:
    """A run folder in memory: the argument of every view."""

    info: RunInfo
    schedule: list[ScheduledRequest]
    records: list[RequestRecord]
    """One per scheduled request, by index."""
    energy: list[EnergySample]
    engine: list[dict[str, Any]]
    """Samples of the engine's counters; of several engines, their sums."""
    attribution: RunAttribution | None
    """Energy of each request; None without energy, or before `analyse_run`."""
    summary: Summary | None
    """Numbers of summary.json; None before `analyse_run`."""
    spans: Sequence[EngineSpan] = ()
    """Requests of all clients, by the engine's spans; empty when they were not recorded."""
    sessions: Sequence[SessionAccount] = ()
    """Accounts of the sessions; empty where no session has several requests, or before `analyse_run`."""
    engines: Mapping[str, Sequence[EngineSample]] = field(default_factory=dict)
    """Samples of each engine's counters by its name, where there are several."""
    warmed: Sequence[ScheduledRequest] = ()
    """Requests whose prompts were sent before the run, so that its sessions found their history in the cache."""

    @property
    def shares(self) -> dict[int, RequestEnergy]:
        """Return the energy of each request by its index; empty without energy, or before `analyse_run`."""
        return {share.index: share for share in self.attribution.requests} if self.attribution else {}

    @cached_property
    def series(self) -> dict[str, EnergySeries]:
        """Energy over time of each domain that gave any."""
        return series_by_domain(self.energy, self.info.domains)


# ---------------------------------------------------------------- writing


class LineWriter:
    """Appends whole lines to files of one run folder. Threads may share one writer."""

    def __init__(self, folder: Path, **files: Path) -> None:
        """Open `files` for appending, each under the name of its lines."""
        self.path = folder
        self._lock = threading.Lock()
        self._closed = False
        self._encode = msgspec.json.Encoder().encode
        try:
            if answers := files.get("answers"):
                answers.touch(0o600)  # what people asked may be in it
            self._files = {name: _open_to_append(path) for name, path in files.items()}
        except OSError as err:
            raise cannot_write(folder, err) from err

    def record(self, record: RequestRecord) -> None:
        self._write("records", self._encode(record) + b"\n")

    def answer(self, answer: Answer) -> None:
        self._write("answers", self._encode(answer) + b"\n")

    def flush(self) -> None:
        """Hand every line to the kernel. Call it at least once a second: a `kill -9` loses what came since."""
        try:
            with self._lock:
                for file in self._files.values():
                    file.flush()
        except OSError as err:
            raise cannot_write(self.path, err) from err

    def close(self) -> None:
        """Flush and close the files. What a thread of a failed run still brings is dropped."""
        try:
            self.flush()
        finally:
            with self._lock:
                self._closed = True
                for file in self._files.values():
                    with suppress(OSError):  # a file that cannot be flushed cannot be closed; flush() reported it
                        file.close()

    def _write(self, name: str, data: bytes) -> None:
        try:
            with self._lock:
                if not self._closed:
                    self._files[name].write(data)
        except OSError as err:
            raise cannot_write(self.path, err) from err


class RunWriter(LineWriter):
    """Writes a run folder while the run happens."""

    def __init__(
        self,
        path: Path,
        info: RunInfo,
        schedule: Schedule,
        *,
        overwrite: bool = False,
        words: Path | None = None,
        answers: bool = False,
        spans: bool = False,
    ) -> None:
        """Make the folder and write everything that is known before the first byte is sent.

        Only with `overwrite` is an earlier run removed, and a folder that is no run never is. `words` is the file of
        the requests' words, if the folder is to keep it; with `answers` it keeps those too, with `spans` the engine's.
        """
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                if not (path / "run.json").is_file():
                    raise LoadgenError(f"--out {path} exists and is not a run folder; choose another")
                if not overwrite:
                    raise LoadgenError(f"--out {path} already holds a run; choose another folder, or add --overwrite")
                shutil.rmtree(path)
            path.mkdir(parents=True, exist_ok=True)
            with replacing(path / "schedule.jsonl") as file:
                file.writelines(schedule_lines(schedule.requests))
            if schedule.warmed:
                with replacing(path / "warmed.jsonl") as file:
                    file.writelines(schedule_lines(schedule.warmed))
            if words is not None:
                kept = path / "bodies.jsonl"
                kept.touch(0o600)  # it may hold headers that authenticate
                shutil.copyfile(words, kept)
            write_json(path / "run.json", info)
        except OSError as err:
            raise cannot_write(path, err) from err
        names = ("records", "energy", "engine", *(["answers"] if answers else []), *(["spans"] if spans else []))
        super().__init__(path, **{name: path / f"{name}.jsonl" for name in names})

    def write_info(self, info: RunInfo) -> None:
        """Rewrite run.json, all of it or nothing."""
        try:
            write_json(self.path / "run.json", info)
        except OSError as err:
            raise cannot_write(self.path, err) from err

    def energy(self, samples: Iterable[EnergySample]) -> None:
        self._write("energy", b"".join(self._encode(sample) + b"\n" for sample in samples))

    def engine(self, sample: EngineSample, name: str | None = None) -> None:
        """Keep a sample of the engine; of the one with this name, where there are several."""
        self._write("engine", self._encode(sample if name is None else {**sample, "engine": name}) + b"\n")

    def spans(self, spans: Iterable[EngineSpan]) -> None:
        self._write("spans", b"".join(self._encode(span) + b"\n" for span in spans))


def write_analysis(path: Path, result: RunResult, page: str) -> None:
    """Write attribution.jsonl, sessions.jsonl, summary.json and report.html; the first two where there are any."""
    assert result.summary is not None
    encode_lines = msgspec.json.Encoder().encode_lines
    try:
        if result.attribution is not None:
            write_atomic(path / "attribution.jsonl", encode_lines(result.attribution.requests))
        if result.sessions:
            write_atomic(path / "sessions.jsonl", encode_lines(result.sessions))
        write_json(path / "summary.json", result.summary)
        write_atomic(path / "report.html", page.encode())
    except OSError as err:
        raise cannot_write(path, err) from err


@contextmanager
def analysable_later(path: Path) -> Iterator[None]:
    """Let a KeyboardInterrupt of the block state the command that analyses the requests recorded in `path`."""
    try:
        yield
    except KeyboardInterrupt:
        records = [path / "records.jsonl", *part_paths(path)]
        if (path / "report.html").exists() or not any(file.exists() and file.stat().st_size for file in records):
            raise
        command = shlex.join(["loadgen", "report", str(path)])
        raise KeyboardInterrupt(f"interrupted before the run was analysed; `{command}` does it") from None


def write_json(path: Path, value: msgspec.Struct) -> None:
    """Write `value` as indented JSON, all of it or nothing."""
    write_atomic(path, msgspec.json.format(msgspec.json.encode(value)) + b"\n")


def cannot_write(path: Path, err: OSError) -> LoadgenError:
    return LoadgenError(f"cannot write the run folder {path}: {err.strerror or err}")


def _open_to_append(path: Path) -> BinaryIO:
    return path.open("ab", buffering=1 << 20)


# ---------------------------------------------------------------- reading


def read_run(path: Path, schedule: Sequence[ScheduledRequest] | None = None) -> RunResult:
    """Read what was recorded in `path`; `analyse_run` derives the rest. `schedule` saves reading it from the folder.

    A run that was killed reads as far as it was written: half a last line is left out, and a request without a record
    gets one that says so. Equal texts are shared and chunk times take 8 bytes each: a run of a million has to fit.
    """
    try:
        info = msgspec.json.decode((path / "run.json").read_bytes(), type=RunInfo)
    except (FileNotFoundError, NotADirectoryError) as err:
        of_several = {"search.json": "probes", "study.json": "runs"}
        places = [f"; those in {path / name} are" for file, name in of_several.items() if (path / file).is_file()]
        raise LoadgenError(f"{path} is not a run folder: it has no run.json{''.join(places)}") from err
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path / 'run.json'}: {err}") from err
    check_format(path / "run.json", info.schema_version, info.loadgen_version)
    if schedule is None:
        schedule = [
            msgspec.structs.replace(request, workload=intern(request.workload))
            for request in read_lines(path / "schedule.jsonl", ScheduledRequest)
        ]
    files = [path / "records.jsonl", *part_paths(path)]
    if not any(file.exists() or _packed(file).exists() for file in files):
        raise LoadgenError(f"{path} has no records.jsonl: without the records of its requests a run cannot be analysed")
    if not schedule:
        raise LoadgenError(f"{path} has no schedule.jsonl, or nothing in it: its records are of unknown requests")
    kinds: dict[tuple[tuple[Kind, int], ...], tuple[tuple[Kind, int], ...]] = {}
    records = {
        record.index: msgspec.structs.replace(
            record,
            workload=intern(record.workload),
            finish_reason=record.finish_reason and intern(record.finish_reason),
            chunk_ns=array("q", record.chunk_ns),
            kinds=None if record.kinds is None else kinds.setdefault(key := tuple(record.kinds), key),
        )
        for file in files
        for record in read_lines(file, RequestRecord)
    }
    if info.start_ns is None:  # the client was killed before it wrote it
        info = msgspec.structs.replace(info, start_ns=_start_of(schedule, records))
    energy = list(read_lines(path / "energy.jsonl", EnergySample))
    samples = list(read_lines(path / "engine.jsonl", dict))
    engines: dict[str, list[EngineSample]] = {engine.name: [] for engine in info.engines}
    for sample in samples:
        if (own := engines.get(sample.get("engine", ""))) is not None:
            own.append(sample)
    instants = [*(record.finished_ns or 0 for record in records.values()), *(sample.t_ns for sample in energy[-1:])]
    in_flight = _in_flight_at_the_kill(info, schedule, records, max(instants, default=0))
    start_ns, killed = info.start_ns or 0, "no record: the client was killed"
    return RunResult(
        info=info,
        schedule=list(schedule),
        records=[
            records.get(request.index)
            or RequestRecord.unanswered(
                request, start_ns, "cancelled" if request.index in in_flight else "not_sent", killed
            )
            for request in schedule
        ],
        energy=energy,
        engine=_whole_counters(info.engines, engines) if engines else samples,
        attribution=None,
        summary=None,
        spans=list(read_lines(path / "spans.jsonl", EngineSpan)),
        engines=engines,
        warmed=list(read_lines(path / "warmed.jsonl", ScheduledRequest)),
    )


def _whole_counters(
    engines: Sequence[NamedEngine], samples: Mapping[str, Sequence[EngineSample]]
) -> list[dict[str, float]]:
    """Return the counters of all engines together. A prompt that is computed at one engine and answered at another
    counts at the first; its answer at the second."""
    counted_at_the_other = {
        "prefill": ("generation_tokens",),
        "decode": PROMPT_COUNTERS,
        None: (),
    }
    return summed_samples(
        [
            [
                {name: 0.0 if name in counted_at_the_other[engine.role] else value for name, value in sample.items()}
                for sample in samples[engine.name]
            ]
            for engine in engines
        ]
    )


def check_format(file: Path, version: str | None, loadgen_version: str | None) -> None:
    """Raise LoadgenError for a format that this version of loadgen does not read: it reads those of its own MAJOR and
    before."""
    major = (version or "0").partition(".")[0]
    if not (major.isascii() and major.isdecimal() and int(major) <= int(SCHEMA_VERSION.partition(".")[0])):
        raise LoadgenError(
            f"{file} has format {version}, written by loadgen {loadgen_version}; this version reads {SCHEMA_VERSION} "
            "and older: update loadgen"
        )


def _start_of(schedule: Iterable[ScheduledRequest], records: Mapping[int, RequestRecord]) -> int | None:
    """Return the instant that the schedule counts from, by a first turn with a record; None without any."""
    firsts = (request for request in schedule if not request.parents and request.index in records)
    return next((records[request.index].scheduled_ns - request.offset_ns for request in firsts), None)


def _in_flight_at_the_kill(
    info: RunInfo, schedule: Sequence[ScheduledRequest], records: Mapping[int, RequestRecord], last_ns: int
) -> set[int]:
    """Return the requests without a record that had been sent when the client was killed, as far as it can be known.

    They were due by `last_ns`, the last instant on record; a later turn is due after the answers that it waits for, and
    after those of another session however they ended.
    Behind a concurrency limit they are the earliest of those, as many as the limit.
    """
    session_of = {request.index: request.session_id for request in schedule}
    due: list[int] = []
    for request in schedule:
        before = [(session_of.get(parent), records.get(parent)) for parent in request.parents]
        over = [record for session, record in before if record and (record.ok or session != request.session_id)]
        ends_ns = [record.finished_ns for record in over if record.finished_ns is not None]
        due_ns = max([(info.start_ns or 0) + request.offset_ns, *(end_ns + request.think_ns for end_ns in ends_ns)])
        if request.index not in records and len(over) == len(before) and due_ns <= last_ns:
            due.append(request.index)
    return set(due[: info.config.get("max_concurrency")])


def part_paths(folder: Path, name: str = "records") -> list[Path]:
    """Files `name` of single processes that were not merged yet."""
    return sorted(folder.glob(f"{name}.*.jsonl"))


def _packed(path: Path) -> Path:
    return path.with_name(path.name + ".gz")


def read_lines(path: Path, kind: type[_Line]) -> Iterator[_Line]:
    """Decode every whole line, gzipped or not; nothing when the file does not exist."""
    packed = _packed(path)
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

"""Streams: named workloads that run together, each with its own source, rate and sessions."""

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.errors import LoadgenError
from loadgen.files import data_dir
from loadgen.record import SLO_METRICS
from loadgen.workload.length_source import shipped_sources, source_path
from loadgen.workload.schedule import (
    Arrival,
    Scale,
    SessionStart,
    Timing,
)
from loadgen.workload.tags import tags_fault
from loadgen.workload.token_bins import is_bins


class Stream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of a file of streams."""

    trace: str | None = None
    """Path of a trace, of lengths or of words; or the name of a shipped one."""
    bins: str | None = None
    """Token bins: a name in profiles/workloads, or a path."""
    input: int | str | None = None
    output: int | str | None = None
    """Laws of the lengths of prompts and answers, see `length_laws`: give both, or a trace, or bins."""
    model: str | None = None
    """The model that is requested. Default: the run's. A trace's own comes first."""
    rps: float | None = None
    """Mean requests/s. Default: the trace's own."""
    weight: float | None = None
    """Share of the run's rate, in proportion to the weights of the others; in place of `rps`."""
    arrival: Arrival | None = None
    """Arrival process of requests, or of sessions if there are any. Default: the trace's own, or poisson for bins."""
    burstiness: float = 1.0
    scale: Scale = "compress"
    shape: str | None = None
    """Rate that changes: see `arrivals.points_of`."""
    seed: int | None = None
    """Seed of the stream. Default: the run's."""
    goodput: dict[str, float] = {}
    """Limits in ms: ttft, tpot, e2el."""
    turns: float | Literal["trace"] | None = None
    """Mean turns of sessions threaded through the source's lengths; or the sessions of the trace; None: no sessions,
    but for conversations with words of their own."""
    think: str | None = None
    """Seconds between an answer and the next turn: constant:MEAN, exponential:MEAN, lognormal:MEAN:SIGMA, or "trace",
    the time between the timestamps. Default for sessions of the trace: none."""
    files: int | None = None
    """Number of files that prompts begin with; None: prompts begin with no file."""
    popularity: float = 1.0
    """Zipf's exponent: the k-th file is used in proportion to k ** -popularity. 0: all files equally."""
    tags: dict[str, str] = {}
    """Tags of its requests. A trace's own come first."""
    shared: float = 0.8
    """Share of a prompt that is the beginning of its file; the remainder is unique."""
    timing: Timing | None = None
    """Instants of the requests of sessions that are graphs. Default: their think times after the answers before."""
    speedup: float = 1.0
    """Number by which the times of such a recording are divided."""
    sessions_rate: float | None = None
    """Mean sessions/s, which come as a Poisson process by default; in place of `rps`."""
    concurrent_sessions: int | None = None
    """Sessions that are alive at a time, each followed by another when it is over; in place of arrivals."""
    session_start: SessionStart = "beginning"
    """Start of sessions that are graphs; middle: at a random turn, with the prompt before it in the server's cache. Of
    concurrent sessions, the first ones start there."""


Streams = dict[str, Stream]

OF_SESSIONS = ("timing", "speedup", "sessions_rate", "concurrent_sessions", "session_start")
"""Options of sessions whose requests state what they come after."""


# -- from files and flags ---------------------------------------------------------------------------------------------


def shipped_streams() -> Path:
    """Return the file of the streams that are known by name: a conversation and a code generation."""
    return data_dir("traces") / "mix.toml"


def read_streams(path: Path) -> Streams:
    """Read every stream of a TOML file. Paths in it are relative to its folder. Raises LoadgenError."""
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text())
        streams = {name: msgspec.convert(table, Stream) for name, table in tables.items()}
    except OSError as err:
        raise LoadgenError(f"cannot read {path}: {err.strerror or err}") from err
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as err:
        raise LoadgenError(f"{path}: not a file of streams: {err}") from err
    if not streams:
        raise LoadgenError(f"{path}: no streams in it: expected a table [NAME] for each")
    for name, stream in streams.items():
        if fault := stream_fault(stream):
            raise LoadgenError(f"{path}: stream {name}: {fault}")
    resolved: Streams = {}
    for name, stream in streams.items():
        trace = stream.trace
        if trace and ((path.parent / trace).is_file() or trace not in shipped_sources()):
            trace = str(path.parent / trace)
        bins = path.parent / stream.bins if stream.bins else None
        local_bins = str(bins) if bins and bins.is_file() else stream.bins
        resolved[name] = msgspec.structs.replace(stream, trace=trace, bins=local_bins)
    return resolved


def stream_fault(stream: Stream) -> str | None:
    """Return what makes the table invalid, None if nothing does."""
    positive = {"rps": stream.rps, "weight": stream.weight, "burstiness": stream.burstiness, "files": stream.files,
                "speedup": stream.speedup, "sessions_rate": stream.sessions_rate,
                "concurrent_sessions": stream.concurrent_sessions}  # fmt: skip
    for name, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            return f"{name} {value}: expected a number above 0"
    if fault := tags_fault(stream.tags):
        return fault
    if (stream.input is None) != (stream.output is None):
        return "input and output: expected both of them"
    if (stream.trace, stream.bins, stream.input).count(None) != 2:
        return "expected one of a trace, bins, or input and output"
    rates = (stream.rps, stream.shape, stream.weight, stream.sessions_rate, stream.concurrent_sessions)
    if rates.count(None) < len(rates) - 1:
        return "rps, weight, shape, sessions_rate and concurrent_sessions: expected one of them"
    if isinstance(stream.turns, float | int) and not (math.isfinite(stream.turns) and stream.turns >= 1):
        return f"turns {stream.turns}: expected a mean of 1 or more"
    if stream.turns == "trace" and stream.trace is None:
        return 'turns = "trace": bins and laws have no sessions; say a mean number of turns'
    if isinstance(stream.turns, float | int) and stream.think is None:
        return 'turns without think: say how long a user thinks, such as think = "lognormal:10:1" (seconds)'
    if stream.turns is not None and stream.files is not None:
        return "turns and files: expected one of them"
    if stream.trace is None and stream.arrival == "trace":
        return 'arrival = "trace": bins and laws have no arrivals of their own'
    if not 0 <= stream.shared <= 1 or not 0 <= stream.popularity < math.inf:
        return "expected shared from 0 to 1, and popularity of 0 or more"
    if invalid := [f"{name}: {limit:g}" for name, limit in stream.goodput.items()
                 if name not in SLO_METRICS or not limit > 0]:  # fmt: skip
        return f"goodput {', '.join(invalid)}: expected milliseconds above 0 for ttft, tpot or e2el"
    return None


def chosen_streams(texts: Sequence[str], file: Path | None) -> Streams:
    """Return the streams that `--stream` selects, each as NAME, NAME:RATE or NAME=SOURCE:RATE.

    A name is looked up in `file` (by default the shipped streams), then among the workload profiles; a source is a
    trace file, a file of bins, or a workload profile. Without a selection, all streams of `file` are returned.
    """
    named = read_streams(file or shipped_streams())
    if not texts:
        return named
    streams: Streams = {}
    for text in texts:
        name, stream = _parse_choice(text, named)
        if name in streams:
            raise LoadgenError(f"--stream {text}: there are two streams called {name!r}; give one another NAME=")
        streams[name] = stream
    return streams


def _parse_choice(text: str, named: Streams) -> tuple[str, Stream]:
    """Return the name and the stream of one NAME, NAME:RATE or NAME=SOURCE:RATE."""
    label, colon, rate = text.rpartition(":")
    rps: float | None = None
    if not colon:
        label = rate
    else:
        try:
            rps = float(rate)
        except ValueError:
            rps = math.nan
        if not (math.isfinite(rps) and rps > 0):
            raise LoadgenError(
                f"--stream {text}: {rate!r} is not a rate in requests/s; write NAME:RATE or NAME=PATH:RATE"
            )
    name, equals, source = label.partition("=")
    stream = named.get(name) if not equals else None
    if stream is None:
        source = source or name
        try:
            path = source_path(source)
        except LoadgenError as err:
            raise LoadgenError(f"--stream {text}: {err}; streams: {', '.join(named)}") from err
        stream = Stream(bins=source) if is_bins(path) else Stream(trace=source)
        name = Path(name).name.split(".")[0]
    if rps is not None:
        stream = msgspec.structs.replace(stream, rps=rps, shape=None, weight=None)
    return name, stream


def share_rate(streams: Streams, rps: float | None) -> Streams:
    """Return the streams with the rates that their weights give them of `rps`, the run's; without it, as they are."""
    weighted = [name for name, stream in streams.items() if stream.weight is not None]
    if rps is None:
        if weighted:
            raise LoadgenError(f"stream {weighted[0]} has a weight, its share of the run's rate: give that with --rps")
        return streams
    if len(weighted) < len(streams):
        name = next(name for name in streams if name not in weighted)
        raise LoadgenError(f"--rps is shared out by weight, and stream {name} has none; or give each stream its rate")
    total = sum(stream.weight or 0.0 for stream in streams.values())
    return {
        name: msgspec.structs.replace(stream, rps=rps * (stream.weight or 0.0) / total, weight=None)
        for name, stream in streams.items()
    }


def option(field: str) -> str:
    """Return the option of `loadgen replay` for a field of a stream."""
    return f"--{field.replace('_', '-')}"

"""The schedule that the options of `loadgen replay` describe."""

from pathlib import Path
from typing import Any

import click
import msgspec

from loadgen.cli.log import say
from loadgen.errors import LoadgenError
from loadgen.files import sha256_of
from loadgen.workload.length_source import source_path
from loadgen.workload.schedule import Schedule
from loadgen.workload.sources import open_source
from loadgen.workload.streams import chosen_streams, schedule_streams, schedule_trace, share_rate
from loadgen.workload.words import WordsFile


def planned_schedule(
    trace: Path | None,
    streams: tuple[str, ...],
    laws: tuple[str | None, str | None] | None,
    arrivals: dict[str, Any],
    limits: dict[str, Any],
    how: dict[str, Any],
    words: WordsFile,
    model: str | None,
) -> tuple[Schedule, dict[str, Any]]:
    """Return the schedule of a trace, of made-up prompts or of streams, and how it was made. Raises LoadgenError.

    laws: of the lengths of made-up prompts. how: shape, stop and think.
    """
    path = source_path(str(trace)) if trace else None
    if streams or (path and path.suffix == ".toml"):
        return _schedule_streams(path, streams, limits, arrivals["rps"], how["stop"], words)
    source = open_source(path, laws, words, arrivals, limits, model)
    schedule = schedule_trace(source, **arrivals, **limits, **how)
    if trace and arrivals["arrival"] == "trace" and schedule.arrival != "trace":
        say(f"{trace} has no timestamps: its requests come as a Poisson process")
    plan = {"trace": str(trace or source.name)} | (dict(zip(("input", "output"), laws, strict=True)) if laws else {})
    made = arrivals | {"arrival": schedule.arrival, "trace_sha256": sha256_of(path) if path else None}
    return schedule, plan | made | limits | {"shape": how["shape"], "think": how["think"]}


def _schedule_streams(
    file: Path | None,
    names: tuple[str, ...],
    limits: dict[str, Any],
    rps: float | None,
    stop: Any,
    words: WordsFile,
) -> tuple[Schedule, dict[str, Any]]:
    """Return the schedule of several streams, and how it was made. LoadgenError for an option that each stream has."""
    context = click.get_current_context()
    for name in ("arrival", "burstiness", "scale", "shape", "think", "input_law", "output_law"):
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            option = name.removesuffix("_law")
            raise LoadgenError(f"--{option} is for one trace; each stream has its own in the TOML file")
    if file and file.suffix != ".toml":
        raise LoadgenError(f"{file} and --stream: give a trace, or streams; a trace is a stream as NAME={file}:RATE")
    streams = share_rate(chosen_streams(names, file), rps)
    stated = {
        name: {field: value for field, value in msgspec.to_builtins(stream).items() if value is not None}
        for name, stream in streams.items()
    }
    plan: dict[str, Any] = {"trace": "+".join(streams), "streams": stated}
    if file and not names:
        plan |= {"trace": str(file), "trace_sha256": sha256_of(file)}
    return schedule_streams(streams, **limits, stop=stop, words=words), plan

"""The streams of `loadgen replay --stream`, and of a TOML file of streams."""

from pathlib import Path
from typing import Any

import click
import msgspec

from loadgen.errors import LoadgenError
from loadgen.workload.schedule import Schedule
from loadgen.workload.streams import chosen_streams, schedule_streams, share_rate
from loadgen.workload.words import WordsFile


def schedule_chosen_streams(
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
    plan = {"trace": str(file) if file and not names else "+".join(streams), "streams": stated}
    return schedule_streams(streams, **limits, stop=stop, words=words), plan

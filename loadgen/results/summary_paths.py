"""Numbers of summary.json by their paths, such as `ttft_s.p99` or `by_workload.chat.tokens.output`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from statistics import fmean
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec

from loadgen.record import ErrorKind
from loadgen.results.summary import Summary, WorkloadSummary

Side = Sequence[Summary]
"""The summaries of one side of a comparison: of one run, or of its repeats."""

PARTS = ("by_workload", "by_model", "by_tag")
"""Fields of a summary that hold the numbers of a part of its requests, by name."""


def known_paths(summaries: Sequence[Summary]) -> list[str]:
    """Return every path to a number in summary.json, with the workloads of these runs."""
    names = {part: sorted({name for summary in summaries for name in getattr(summary, part)}) for part in PARTS}
    return list(_leaves(Summary, names))


def _leaves(kind: Any, names: Mapping[str, Sequence[str]], prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        if field.name == "run":  # seed and processors are no results
            continue
        path = prefix + field.name
        options = get_args(field.type) if get_origin(field.type) in (Union, UnionType) else (field.type,)
        for option in options:
            if option in (int, float):
                yield path
            elif field.name == "by_error":
                yield from (f"{path}.{error}" for error in get_args(ErrorKind))
            elif field.name in PARTS:
                for name in names[field.name]:
                    yield from _leaves(WorkloadSummary, names, f"{path}.{name}.")
            elif isinstance(option, type) and issubclass(option, msgspec.Struct):
                yield from _leaves(option, names, f"{path}.")


def mean_at(side: Side, path: str) -> float | None:
    """Return the mean of the number at a path over repeats; None when one of them does not know it."""
    values = [value_at(summary, path) for summary in side]
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def value_at(summary: Summary, path: str) -> float | None:
    """Return the number at a known path; None when it or a parent is absent. An error kind that did not occur is 0."""
    if ".by_error." in f".{path}":
        parent, _, kind = path.rpartition(".")
        errors = _lookup(summary, parent)
        return None if errors is None else float(errors.get(kind, 0))
    value = _lookup(summary, path)
    return None if value is None else float(value)


def _lookup(summary: Summary, path: str) -> Any:
    value: Any = summary
    part, _, inner = path.partition(".")
    if part in PARTS:
        # A name may hold dots: the longest one that fits is meant.
        parts = getattr(summary, part)
        fitting = [name for name in parts if inner.startswith(f"{name}.")]
        if not fitting:
            return None
        name = max(fitting, key=len)
        value, path = parts[name], inner.removeprefix(f"{name}.")
    return reduce(lambda parent, field: getattr(parent, field, None), path.split("."), value)

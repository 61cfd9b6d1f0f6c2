"""Records and answers of one run that several processes wrote: each its own part, merged when all have ended."""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import msgspec

from loadgen.results.run_folder import LineWriter, cannot_write, part_paths, read_lines


class PartWriter(LineWriter):
    """Writes the records and answers of one process of several, until `merge_parts`. Everything else has one writer."""

    def __init__(self, folder: Path, number: int, *, answers: bool = False) -> None:
        names = ("records", "answers") if answers else ("records",)
        super().__init__(folder, **{name: folder / f"{name}.{number}.jsonl" for name in names})


class _Ending(msgspec.Struct):
    """The fields of a record that merging needs."""

    index: int
    finished_ns: int | None = None


def recorded_in_part(folder: Path, number: int) -> set[int]:
    """Return the indices of the requests that process `number` has written a record of."""
    return {ending.index for ending in read_lines(folder / f"records.{number}.jsonl", _Ending)}


def merge_parts(folder: Path) -> None:
    """Merge records.jsonl and all parts into one records.jsonl, ordered by `finished_ns`; unknown ones last. Answers
    follow one another, process by process.

    Each part is in that order but for ties and requests without an end, so this is a merge, not a sort. The parts stay
    until the merged file is complete.
    """
    decode = msgspec.json.Decoder(_Ending).decode

    def finished_ns(line: bytes) -> float:
        finished = decode(line).finished_ns
        return math.inf if finished is None else finished

    _merge(folder, "records", lambda sources: heapq.merge(*sources, key=finished_ns))
    _merge(folder, "answers", chain.from_iterable)


def _merge(folder: Path, name: str, merge: Callable[[list[Iterator[bytes]]], Iterable[bytes]]) -> None:
    """Replace NAME.jsonl and its parts by one file; `merge` orders their lines."""
    if not (parts := part_paths(folder, name)):
        return
    merged = folder / f".{name}.jsonl"
    try:
        with ExitStack() as stack:
            sources = [stack.enter_context(part.open("rb")) for part in (folder / f"{name}.jsonl", *parts)]
            merged.touch(parts[0].stat().st_mode & 0o777)
            file = stack.enter_context(merged.open("wb"))
            file.writelines(merge([(line for line in source if line.endswith(b"\n")) for source in sources]))
        merged.replace(folder / f"{name}.jsonl")
        for part in parts:
            part.unlink()
    except OSError as err:
        merged.unlink(missing_ok=True)
        raise cannot_write(folder, err) from err

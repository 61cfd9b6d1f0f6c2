"""Records of one run that several processes wrote: each its own part, merged when all have ended."""

import heapq
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec

from loadgen.results.run_folder import LineWriter, cannot_write, part_paths, read_lines


class PartWriter(LineWriter):
    """Writes the records of one process of several, until `merge_parts`. Everything else has one writer."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, records=_part_path(folder, number))


class _Ending(msgspec.Struct):
    """The fields of a record that merging needs."""

    index: int
    finished_ns: int | None = None


def recorded_in_part(folder: Path, number: int) -> set[int]:
    """Return the indices of the requests that process `number` has written a record of."""
    return {ending.index for ending in read_lines(_part_path(folder, number), _Ending)}


def merge_parts(folder: Path) -> None:
    """Merge records.jsonl and all parts into one records.jsonl, ordered by `finished_ns`; unknown ones last.

    Each part is in that order but for ties and requests without an end, so this is a merge, not a sort. The parts stay
    until the merged file is complete.
    """
    if not (parts := part_paths(folder)):
        return
    decode = msgspec.json.Decoder(_Ending).decode

    def finished_ns(line: bytes) -> float:
        finished = decode(line).finished_ns
        return math.inf if finished is None else finished

    merged = folder / ".records.jsonl"
    try:
        with merged.open("wb") as file, ExitStack() as stack:
            sources = [stack.enter_context(part.open("rb")) for part in (folder / "records.jsonl", *parts)]
            whole_lines = [(line for line in source if line.endswith(b"\n")) for source in sources]
            lines: Iterator[bytes] = heapq.merge(*whole_lines, key=finished_ns)
            file.writelines(lines)
        merged.replace(folder / "records.jsonl")
        for part in parts:
            part.unlink()
    except OSError as err:
        merged.unlink(missing_ok=True)
        raise cannot_write(folder, err) from err


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"records.{number}.jsonl"

"""Parts of several processes become one file, whatever interrupted the merge."""

import itertools
from pathlib import Path

import msgspec
import pytest

from loadgen.record import RequestRecord
from loadgen.results.merge import PartWriter, merge_parts, recorded_in_part
from loadgen.results.run_folder import part_paths, read_lines


def record(index: int, finished_ns: int | None) -> RequestRecord:
    return RequestRecord(index=index, workload="w", scheduled_ns=index, finished_ns=finished_ns)


def write_part(folder: Path, number: int, *records: RequestRecord) -> None:
    writer = PartWriter(folder, number)
    for line in records:
        writer.record(line)
    writer.close()


def merged(folder: Path) -> list[int]:
    return [line.index for line in read_lines(folder / "records.jsonl", RequestRecord)]


@pytest.mark.parametrize("order", [*itertools.permutations((1, 2, 3))])
def test_merged_records_are_in_the_order_of_their_ends(tmp_path: Path, order: tuple[int, ...]) -> None:
    parts = {1: (record(0, 10), record(3, 40)), 2: (record(1, 20), record(4, 50)), 3: (record(2, 30), record(5, None))}
    (tmp_path / "records.jsonl").write_bytes(msgspec.json.encode(record(9, 35)) + b"\n")
    for number in order:
        write_part(tmp_path, number, *parts[number])
    merge_parts(tmp_path)
    assert merged(tmp_path) == [0, 1, 2, 9, 3, 4, 5]
    assert part_paths(tmp_path) == []


def test_a_request_that_ended_at_zero_comes_before_one_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    write_part(tmp_path, 1, record(0, None))
    write_part(tmp_path, 2, record(1, 0))
    merge_parts(tmp_path)
    assert merged(tmp_path) == [1, 0]


def test_half_a_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    write_part(tmp_path, 1, record(0, 10), record(1, 20))
    (path,) = part_paths(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    assert recorded_in_part(tmp_path, 1) == {0}
    merge_parts(tmp_path)
    assert merged(tmp_path) == [0]


def test_without_parts_nothing_is_touched(tmp_path: Path) -> None:
    merge_parts(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_knows_the_indices_of_its_records(tmp_path: Path) -> None:
    write_part(tmp_path, 2, record(3, 10), record(5, None))
    assert recorded_in_part(tmp_path, 2) == {3, 5}
    assert recorded_in_part(tmp_path, 1) == set()


def test_parts_stay_when_the_merge_fails(tmp_path: Path) -> None:
    write_part(tmp_path, 1, record(0, 10))  # and no records.jsonl to merge it with
    with pytest.raises(Exception, match="cannot write the run folder"):
        merge_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["records.1.jsonl"]

"""A run folder survives what runs do not: it reads as far as it was written."""

import dataclasses
import errno
import gzip
import os
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from loadgen.attribution.shapley import RequestEnergy
from loadgen.clock import Anchor
from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.errors import LoadgenError
from loadgen.record import ErrorKind, RequestRecord
from loadgen.results import run_folder
from loadgen.workload.schedule import Schedule, ScheduledRequest
from support import sample_runs

PLAN = Schedule(
    tuple(
        ScheduledRequest(index=i, offset_ns=i * 1000, workload="chat", input_tokens=5, output_tokens=2)
        for i in range(3)
    ),
    "trace",
    4.0,
    0,
)
INFO = run_folder.RunInfo(
    run_id="abc",
    loadgen_version="0",
    config={"trace": "t"},
    seed=0,
    requested_rps=4.0,
    schedule_sha256=PLAN.sha256,
    anchor=Anchor(1, 2),
    host={},
    versions={},
    server={"model": "m"},
    domains=[EnergyDomain(name="gpu:0", source="simulated", period_s=0.1)],
    start_ns=100,
)


def record(index: int) -> RequestRecord:
    return RequestRecord(index=index, workload="chat", scheduled_ns=100 + index * 1000, sent_ns=101, chunk_ns=[5, 6])


def with_lists(records: list[RequestRecord]) -> list[RequestRecord]:
    """Chunk times are read into something smaller."""
    return [replace(record, chunk_ns=list(record.chunk_ns)) for record in records]


def write(path: Path, records: list[int], *, overwrite: bool = False) -> None:
    writer = run_folder.RunWriter(path, INFO, PLAN, overwrite=overwrite)
    for index in records:
        writer.record(record(index))
    writer.energy([EnergySample(7, "gpu:0", 1.234), EnergySample(8, "gpu:0", 2.5)])
    writer.engine({"t_ns": 7, "iterations": 3.0})
    writer.close()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "run", [2, 0, 1])
    result = run_folder.read_run(tmp_path / "run")
    assert result.info == INFO
    assert result.schedule == list(PLAN.requests)
    assert with_lists(result.records) == [record(0), record(1), record(2)], "by index, whatever order they ended in"
    assert result.energy == [EnergySample(7, "gpu:0", 1.234), EnergySample(8, "gpu:0", 2.5)]
    assert result.engine == [{"t_ns": 7, "iterations": 3.0}]
    assert result.attribution is None


def test_the_schedule_is_on_disk_before_anything_happens(tmp_path: Path) -> None:
    with closing(run_folder.RunWriter(tmp_path / "run", INFO, PLAN)):
        result = run_folder.read_run(tmp_path / "run")
    assert result.schedule == list(PLAN.requests)
    assert result.info.stopped_by is None


def test_the_folder_keeps_the_words_of_its_requests_as_they_are(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_bytes(b'{"prompt":"\xff"}\n')
    with closing(run_folder.RunWriter(tmp_path / "run", INFO, PLAN, words=words)):
        assert (tmp_path / "run" / "bodies.jsonl").read_bytes() == words.read_bytes()


def test_gzipped_lines_are_read_too(tmp_path: Path) -> None:
    write(tmp_path / "run", [0, 1, 2])
    before = run_folder.read_run(tmp_path / "run")
    for plain in (tmp_path / "run").glob("*.jsonl"):
        plain.with_name(plain.name + ".gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    assert run_folder.read_run(tmp_path / "run") == before


def test_a_killed_run_reads_as_far_as_it_got(tmp_path: Path) -> None:
    write(tmp_path / "run", [0, 1])
    lines = (tmp_path / "run" / "records.jsonl").read_bytes()
    (tmp_path / "run" / "records.jsonl").write_bytes(lines[:-9])
    records = run_folder.read_run(tmp_path / "run").records
    assert [r.error for r in records] == [None, "not_sent", "not_sent"]
    assert records[1].detail == "no record: the client was killed"
    assert records[1].scheduled_ns == 1100


@pytest.mark.parametrize(
    ("killed_ns", "cap", "errors"),
    [
        (1050, None, [None, "not_sent", "not_sent"]),
        (1100, None, [None, "cancelled", "not_sent"]),
        (9000, None, [None, "cancelled", "cancelled"]),
        (9000, 1, [None, "cancelled", "not_sent"]),
    ],
)
def test_a_killed_runs_requests_were_in_flight_if_they_were_due_before_its_last_sign_of_life(
    tmp_path: Path, killed_ns: int, cap: int | None, errors: list[str | None]
) -> None:
    info = replace(INFO, config={"max_concurrency": cap})
    with closing(run_folder.RunWriter(tmp_path / "run", info, PLAN)) as writer:
        writer.record(record(0))
        writer.energy([EnergySample(killed_ns, "gpu:0", 1.0)])
    records = run_folder.read_run(tmp_path / "run").records
    assert [r.error for r in records] == errors
    assert {r.detail for r in records[1:]} == {"no record: the client was killed"}


@pytest.mark.parametrize(("error", "later"), [(None, "cancelled"), ("timeout", "not_sent")])
def test_a_later_turn_was_sent_if_the_turn_before_it_was_answered(
    tmp_path: Path, error: ErrorKind | None, later: str
) -> None:
    turn = replace(PLAN.requests[1], after=0, think_ns=300)
    session = dataclasses.replace(PLAN, requests=(PLAN.requests[0], turn))
    first = replace(record(0), finished_ns=1200, error=error)
    for killed_ns, expected in ((1499, "not_sent"), (1500, later)):
        path = tmp_path / str(killed_ns)
        with closing(run_folder.RunWriter(path, INFO, session)) as writer:
            writer.record(first)
            writer.energy([EnergySample(killed_ns, "gpu:0", 1.0)])
        assert run_folder.read_run(path).records[1].error == expected


@pytest.mark.parametrize(("sessions", "later"), [(("a", "b"), "cancelled"), (("a", "a"), "not_sent")])
def test_a_session_was_sent_after_one_before_it_that_failed(
    tmp_path: Path, sessions: tuple[str, str], later: str
) -> None:
    requests = [replace(PLAN.requests[i], session_id=sessions[i]) for i in range(2)]
    plan = dataclasses.replace(PLAN, requests=(requests[0], replace(requests[1], after=0, think_ns=300)))
    with closing(run_folder.RunWriter(tmp_path / "run", INFO, plan)) as writer:
        writer.record(replace(record(0), finished_ns=1200, error="timeout"))
        writer.energy([EnergySample(1500, "gpu:0", 1.0)])
    assert run_folder.read_run(tmp_path / "run").records[1].error == later


def test_the_prompts_that_were_sent_before_the_run_are_kept(tmp_path: Path) -> None:
    for warmed in ((), (replace(PLAN.requests[0], prefix_ids=(1, 2)),)):
        path = tmp_path / f"{len(warmed)}"
        with closing(run_folder.RunWriter(path, INFO, dataclasses.replace(PLAN, warmed=warmed))) as writer:
            writer.record(record(0))
        assert tuple(run_folder.read_run(path).warmed) == warmed
        assert (path / "warmed.jsonl").exists() == bool(warmed)


def test_a_killed_run_began_when_its_records_say(tmp_path: Path) -> None:
    write(tmp_path / "run", [1])
    path = tmp_path / "run" / "run.json"
    path.write_bytes(
        msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | {"start_ns": None, "stopped_by": None})
    )
    result = run_folder.read_run(tmp_path / "run")
    assert result.info.start_ns == INFO.start_ns
    assert [r.scheduled_ns for r in result.records] == [100, 1100, 2100]


@pytest.mark.parametrize("left", [None, b""])
def test_records_without_their_schedule_are_no_run(tmp_path: Path, left: bytes | None) -> None:
    write(tmp_path / "run", [0])
    schedule = tmp_path / "run" / "schedule.jsonl"
    schedule.unlink() if left is None else schedule.write_bytes(left)
    with pytest.raises(LoadgenError, match="no schedule"):
        run_folder.read_run(tmp_path / "run")


def test_flushed_lines_are_in_the_kernel(tmp_path: Path) -> None:
    with closing(run_folder.RunWriter(tmp_path / "run", INFO, PLAN)) as writer:
        writer.record(record(0))
        assert (tmp_path / "run" / "records.jsonl").read_bytes() == b""
        writer.flush()
        assert with_lists(run_folder.read_run(tmp_path / "run").records[:1]) == [record(0)]


def test_a_line_that_comes_after_the_end_is_dropped(tmp_path: Path) -> None:
    with closing(run_folder.RunWriter(tmp_path / "run", INFO, PLAN)) as writer:
        writer.engine({"t_ns": 1})
    writer.engine({"t_ns": 2})
    assert (tmp_path / "run" / "engine.jsonl").read_bytes() == b'{"t_ns":1}\n'


def test_an_earlier_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    write(tmp_path / "run", [0])
    with pytest.raises(LoadgenError, match="already holds a run"):
        write(tmp_path / "run", [1])
    write(tmp_path / "run", [1], overwrite=True)
    assert [r.ok for r in run_folder.read_run(tmp_path / "run").records] == [False, True, False]


def test_a_folder_that_is_no_run_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(LoadgenError, match="not a run folder"):
        write(tmp_path, [0], overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoadgenError, match="not a run folder"):
        write(tmp_path / "file", [0])


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes the bytes and fails when they reach it, as a full disk does."""
    open_to_append = run_folder._open_to_append
    monkeypatch.setattr(run_folder, "_open_to_append", lambda _: open_to_append(Path("/dev/full")))
    writer = run_folder.RunWriter(tmp_path / "run", INFO, PLAN)
    writer.record(record(0))
    with pytest.raises(LoadgenError, match=r"cannot write the run folder .*: No space left"):
        writer.flush()
    with pytest.raises(LoadgenError, match="No space left"):
        writer.close()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.json", "{", "run.json"),
        ("records.jsonl", '{"index": "x"}\n', "records.jsonl:1"),
        ("energy.jsonl", '{"t_ns":1,"domain":"g","joules":1}\nnonsense\n', "energy.jsonl:2"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, says: str) -> None:
    write(tmp_path / "run", [0])
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(LoadgenError, match=says):
        run_folder.read_run(tmp_path / "run")


def test_the_analysis_is_three_files_beside_the_records(tmp_path: Path) -> None:
    result = sample_runs.run(5)
    assert result.attribution is not None and result.summary is not None
    run_folder.write_analysis(tmp_path, result, "<p>J\u2044token</p>")
    lines = (tmp_path / "attribution.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=RequestEnergy) for line in lines] == result.attribution.requests
    text = (tmp_path / "summary.json").read_bytes()
    assert msgspec.json.decode(text) == msgspec.to_builtins(result.summary)
    assert text.startswith(b'{\n  "') and text.endswith(b"}\n")
    assert (tmp_path / "report.html").read_text() == "<p>J\u2044token</p>"


@pytest.mark.parametrize(
    ("records", "report", "says"),
    [
        (3, False, "interrupted before the run was analysed; `loadgen report 'RUN'` does it"),
        (3, True, ""),
        (0, False, ""),
    ],
    ids=["recorded", "analysed", "empty"],
)
def test_an_interrupt_before_the_analysis_states_the_command_that_makes_it(
    tmp_path: Path, records: int, report: bool, says: str
) -> None:
    path = tmp_path / "a run"
    write(path, [*range(records)])
    if report:
        (path / "report.html").touch()
    with pytest.raises(KeyboardInterrupt) as raised, run_folder.analysable_later(path):
        raise KeyboardInterrupt
    assert str(raised.value) == says.replace("RUN", str(path))


def test_without_energy_no_line_of_attribution_is_written(tmp_path: Path) -> None:
    run_folder.write_analysis(tmp_path, sample_runs.without_energy(), "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "summary.json"]


def test_an_analysis_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    result = sample_runs.run(1)
    assert result.summary is not None
    with pytest.raises(LoadgenError, match=r"^cannot write the run folder .*: No such file or directory$"):
        run_folder.write_analysis(tmp_path / "gone", result, "")


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="is not a run folder"):
        run_folder.read_run(tmp_path)


@pytest.mark.parametrize(
    ("version", "is_readable"),
    [(None, True), ("0.9", True), ("1.0", True), ("1.99", True), ("2.0", False), ("10.0", False), ("x", False)],
)
def test_a_folder_of_a_newer_major_format_is_refused(tmp_path: Path, version: str | None, is_readable: bool) -> None:
    write(tmp_path / "run", [0])
    info = replace(INFO, schema_version=version, loadgen_version="9.9.9")
    run_folder.write_json(tmp_path / "run" / "run.json", info)
    if is_readable:
        assert run_folder.read_run(tmp_path / "run").info.schema_version == version
    else:
        with pytest.raises(LoadgenError, match=r"written by loadgen 9\.9\.9; this version reads 1\.0 and older"):
            run_folder.read_run(tmp_path / "run")


def test_a_disk_that_is_full_at_the_end_of_a_run_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.json stays as it was: it is replaced as a whole or not at all."""

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with closing(run_folder.RunWriter(tmp_path / "run", INFO, PLAN)) as writer:
        monkeypatch.setattr(run_folder, "write_atomic", full)
        with pytest.raises(LoadgenError, match=r"^cannot write the run folder .*: No space left on device$"):
            writer.write_info(replace(INFO, stopped_by="completed"))
    assert run_folder.read_run(tmp_path / "run").info == INFO

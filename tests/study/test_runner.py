"""A study: every run of its matrix once, whatever stops it in between."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from loadgen.cli.study import study as command
from loadgen.energy import gpu_state
from loadgen.errors import LoadgenError
from loadgen.study import runner as studies
from loadgen.study.spec import (
    Overrides,
    Server,
    Study,
    StudyRun,
    Workload,
    even_sample,
    plan_runs,
    read_study,
    schedule_of,
    start_key,
)
from loadgen.workload.arrivals import index_of_dispersion
from loadgen.workload.schedule import Arrival
from loadgen.workload.trace import read_trace

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "studies").glob("*.toml"))

SMALL = """
title = "Small"
seed = 3
batches = [1, 4]
rounds = 2
repeats = 2
warmup = 0
idle_s = 0.2
baseline = "one"
goodput = { tpot = 20 }
[servers.one]
recipe = "sim"
knobs = { max_num_seqs = 1, counter_period_ms = 5 }
[servers.many]
recipe = "sim"
knobs = { max_num_seqs = 64, counter_period_ms = 5 }
[workloads.short]
input = 32
output = 8
[idealized]
hardware = "h200"
model = "llama-3.1-8b"
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


def make(**given: object) -> Study:
    fields = {
        "title": "t",
        "servers": {"a": Server(recipe="sim"), "b": Server(recipe="vllm", knobs={"max_num_seqs": "{batch}"})},
        "workloads": {"w": Workload(input=8, output=2), "v": Workload(input=16, output=2)},
        "models": ["m", "n"],
        "batches": [1, 2, 4],
        "repeats": 3,
        **given,
    }
    return Study(**fields)  # type: ignore[arg-type]


def test_the_plan_has_every_cell_of_the_matrix_once_in_each_repeat() -> None:
    cells = plan_runs(make())
    assert len(cells) == len(set(cells)) == len({cell.name for cell in cells}) == 2 * 2 * 2 * 3 * 3
    assert set(Counter(cell.repeat for cell in cells).values()) == {24}
    assert [cell.repeat for cell in cells] == sorted(cell.repeat for cell in cells)


def test_the_order_is_random_and_the_seed_decides_it() -> None:
    assert plan_runs(make(seed=1)) == plan_runs(make(seed=1)) != plan_runs(make(seed=2))
    first, second = ([(c.server, c.model, c.batch) for c in plan_runs(make()) if c.repeat == r] for r in (0, 1))
    assert first != second


def test_runs_that_one_start_can_serve_come_together() -> None:
    study = make()
    for repeat in range(3):
        keys = [start_key(study, cell) for cell in plan_runs(study) if cell.repeat == repeat]
        changes = sum(a != b for a, b in pairwise(keys))
        assert changes == len(set(keys)) - 1
        assert len(set(keys)) == 2 + 2 * 3, "one start a model for a, one a model and batch for b"


def test_a_closed_loop_is_whole_rounds_of_the_batch() -> None:
    schedule = schedule_of(make(rounds=3, min_requests=10), StudyRun("a", "m", "w", 4, None, 0), Path())
    assert len(schedule.requests) == 12
    assert {request.offset_ns for request in schedule.requests} == {0}
    assert {(request.input_tokens, request.output_tokens) for request in schedule.requests} == {(8, 2)}


def test_an_open_loop_draws_its_instants_anew_in_each_repeat_and_as_many_of_them() -> None:
    study = make(batches=[], rates=[5.0], duration_s=20)
    first, second = (schedule_of(study, StudyRun("a", "m", "w", None, 5.0, repeat), Path()) for repeat in (0, 1))
    assert first.sha256 != second.sha256
    assert len(first.requests) == len(second.requests) == 100
    assert first.requests[0].offset_ns > 0 and first.requests[-1].offset_ns < 20e9


def test_servers_get_the_same_load_and_no_two_loads_the_same_prompts() -> None:
    """Prompts follow from the schedule's seed: an equal one would be found in a prefix cache."""
    study = make(batches=[2], rates=[5.0, 6.0], duration_s=4)
    cells = [cell for cell in plan_runs(study) if cell.model == "m"]
    seeds = {(c.workload, c.batch, c.rps, c.repeat): schedule_of(study, c, Path()).seed for c in cells}
    assert len(set(seeds.values())) == len(seeds) == len(cells) / 2, "a and b share theirs"


@pytest.mark.parametrize(
    ("arrival", "dispersion"), [("constant", (0, 0.2)), ("poisson", (0.5, 1.6)), ("gamma", (2, 9))]
)
def test_a_workload_may_say_how_it_arrives(arrival: Arrival, dispersion: tuple[float, float]) -> None:
    """Variance / mean of the counts in seconds; for gamma, 1 / burstiness in the long run."""
    workload = Workload(input=8, output=2, arrival=arrival, burstiness=0.25)
    study = make(workloads={"w": workload}, batches=[], rates=[10.0], duration_s=200)
    schedule = schedule_of(study, StudyRun("a", "m", "w", None, 10.0, 0), Path())
    found = index_of_dispersion(np.array([r.offset_ns / 1e9 for r in schedule.requests]), 1.0)
    assert found is not None and dispersion[0] <= found <= dispersion[1]


@pytest.mark.parametrize("count", [40, 160, 2000, 3000])
def test_a_few_requests_of_a_trace_are_as_long_as_all_of_them(count: int) -> None:
    trace = read_trace(ROOT / "traces/chat.jsonl")
    sample = even_sample(trace, count, 7)
    whole, part = (fmean(r.output_tokens for r in one.requests) for one in (trace, sample))
    assert len(sample.requests) == count
    assert part == pytest.approx(whole, rel=0.02)
    assert max(Counter(sample.requests).values()) <= max(Counter(trace.requests).values()) * -(-count // 2000)
    assert sample != even_sample(trace, count, 8), "their order is drawn"


def test_streams_share_the_rate_as_their_file_says_and_keep_what_their_prompts_share() -> None:
    """mix.toml: chat 3/s in sessions, code 1/s about files."""
    study = make(workloads={"s": Workload(trace="traces/mix.toml")}, batches=[], rates=[40.0], duration_s=60)
    schedule = schedule_of(study, StudyRun("a", "m", "s", None, 40.0, 0), ROOT)
    code = [request for request in schedule.requests if request.workload == "code"]
    assert {request.workload for request in schedule.requests} == {"chat", "code"}
    assert len(code) == pytest.approx(600, rel=0.3)
    assert all(request.text_id is not None for request in code)
    assert any(request.after is not None for request in schedule.requests)


def test_loads_are_the_workloads_own_else_the_studys_and_a_server_takes_some() -> None:
    servers = {"all": Server(recipe="sim"), "some": Server(recipe="sim", workloads=["own"], batches=[], rates=[8.0])}
    workloads = {
        "own": Workload(input=8, output=2, batches=[2], rates=[4.0, 8.0]),
        "studys": Workload(input=8, output=2),
    }
    study = make(servers=servers, workloads=workloads, models=["m"], batches=[1], rates=[16.0], repeats=1)
    found = {(c.server, c.workload, c.batch, c.rps) for c in plan_runs(study)}
    assert found == {
        *(("all", "own", batch, rps) for batch, rps in ((2, None), (None, 4.0), (None, 8.0))),
        *(("all", "studys", batch, rps) for batch, rps in ((1, None), (None, 16.0))),
        ("some", "own", None, 8.0),
    }


def test_without_restart_a_server_starts_once_and_its_repeats_follow_one_another() -> None:
    study = make(restart=False)
    cells = plan_runs(study)
    keys = [start_key(study, cell) for cell in cells]
    assert sum(a != b for a, b in pairwise(keys)) == len(set(keys)) - 1
    for key in set(keys):
        repeats = [cell.repeat for cell in cells if start_key(study, cell) == key]
        assert repeats == sorted(repeats), "what an interruption leaves are whole repeats"
    assert set(cells) == set(plan_runs(make()))


def test_what_belongs_to_the_machine_is_given_beside_the_file(small: Path) -> None:
    given = Overrides(models=["mine"], knobs={"max_num_seqs": "7"}, python="/engine/python")
    study = read_study(small, given)
    assert {cell.model for cell in plan_runs(study)} == {"mine"}
    for server in study.servers.values():
        assert (server.knobs["max_num_seqs"], server.python) == ("7", "/engine/python")
        assert server.knobs["counter_period_ms"] == 5, "other knobs stay"
    with pytest.raises(LoadgenError, match="sim has no knob 'speed'"):
        read_study(small, Overrides(knobs={"speed": "1"}))


@pytest.mark.parametrize("file", SHIPPED, ids=[file.stem for file in SHIPPED])
def test_every_shipped_study_can_be_planned(file: Path) -> None:
    cells = plan_runs(read_study(file))
    assert cells
    assert len({cell.name for cell in cells}) == len(cells)
    schedule_of(read_study(file), cells[0], file.parent)


WRONG = [
    ("unknown knob", SMALL.replace("max_num_seqs = 1,", "speed = 1,"), "sim has no knob 'speed'"),
    ("unknown recipe", SMALL.replace('"sim"', '"nonesuch"'), "no server called 'nonesuch'"),
    (
        "no such baseline",
        SMALL.replace('baseline = "one"', 'baseline = "two"'),
        "'two' is none of its servers: one, many",
    ),
    ("nothing to send", SMALL.replace("input = 32", ""), "workload short needs either a trace, or input and output"),
    ("no such workload", SMALL.replace("[workloads", 'workloads = ["long"]\n[workloads'), "many: no workload 'long'"),
    ("no load", SMALL.replace("batches = [1, 4]", ""), "server one has nothing to do"),
    (
        "streams in batches",
        SMALL.replace("input = 32\noutput = 8", 'trace = "traces/mix.toml"'),
        "workload short: streams come at rates",
    ),
    (
        "streams have arrivals",
        SMALL.replace("input = 32\noutput = 8", 'trace = "m.toml"\nbatches = []\nrates = [1]\narrival = "constant"'),
        "each stream of m.toml has an arrival of its own",
    ),
    ("misspelt", SMALL.replace("repeats", "repetas"), "not a study: .*repetas"),
    ("not TOML", "title =", "not a study"),
]


@pytest.mark.parametrize(("said", "text", "error"), WRONG, ids=[row[0] for row in WRONG])
def test_a_wrong_study_is_refused_before_anything_starts(said: str, text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(LoadgenError, match=error):
        studies.run_study(tmp_path / "s.toml", tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def done(out: Path) -> dict[str, int]:
    """Finished runs -> when."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/cell.json")}


@pytest.mark.timeout(240)
def test_a_killed_study_goes_on_where_it_stopped(small: Path, tmp_path: Path) -> None:
    """2 servers x 2 batches x 2 repeats; kill -9 in the middle of a run; the same command again."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "loadgen", "study", str(small), "--out", str(out)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, process_group=0) as process:
        deadline = time.monotonic() + 120
        while len(done(out)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    before = done(out)
    assert 3 <= len(before) < 8
    assert len(rows_of(out)) <= len(before)
    left = next(cell.name for cell in plan_runs(read_study(small)) if cell.name not in before)
    (out / "runs" / left).mkdir(exist_ok=True)
    (out / "runs" / left / "run.json").unlink(missing_ok=True)  # as it is when killed while the folder was made
    (out / "runs" / left / "schedule.jsonl").write_text("")

    result = CliRunner().invoke(command, [str(small), "--out", str(out)])
    assert result.exit_code == 0, result.output
    after = done(out)
    assert len(after) == 8
    assert {name: when for name, when in after.items() if name in before} == before, "nothing was run twice"

    rows = rows_of(out)
    assert {row["cell"] for row in rows} == set(after)
    assert {row["simulated"] for row in rows} == {"True"}
    least = {
        server: min(float(r["joules_per_output_token"]) for r in rows if (r["server"], r["batch"]) == (server, "4"))
        for server in ("one", "many")
    }
    assert least["many"] < least["one"], "four together share what one pays alone; a busy machine adds to both"
    assert all(float(row["measured_over_idealized"]) > 1 for row in rows)
    page = (out / "report.html").read_text()
    assert "SIMULATED" in page and "less energy" in page and "runs to go" not in page
    outcomes = [json.loads(path.read_text()) for path in out.glob("runs/*/cell.json")]
    assert {outcome["status"] for outcome in outcomes} == {"done"}

    with pytest.raises(LoadgenError, match="begun with another --model"):
        studies.run_study(small, out, print, Overrides(models=["llama-3.1-70b"]))
    small.write_text(SMALL + "\n")
    with pytest.raises(LoadgenError, match=r"another study, or .* changed"):
        studies.run_study(small, out, print)


@pytest.mark.timeout(120)
def test_an_interrupt_leaves_what_is_done_even_of_a_job_in_the_background(small: Path, tmp_path: Path) -> None:
    """A shell without job control starts `command &` with SIGINT ignored; one start serves both repeats."""
    small.write_text(SMALL.replace("repeats = 2", "repeats = 2\nrestart = false"))
    out = tmp_path / "out"
    words = [sys.executable, "-m", "loadgen", "study", str(small), "--out", str(out)]

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, process_group=0, preexec_fn=ignore) as process:
        assert process.stderr is not None
        while b"[3/8" not in (line := process.stderr.readline()):
            assert line, "it ended before"
        os.kill(process.pid, signal.SIGINT)
        assert b"goes on from here" in process.stderr.read()
    assert process.returncode == 130
    found = rows_of(out)
    assert 3 <= len(found) < 8
    assert len({row["server"] for row in found[:3]}) == 1
    assert "runs to go" in (out / "report.html").read_text()


def test_what_breaks_is_tried_again_then_told_and_the_rest_is_run(small: Path, tmp_path: Path) -> None:
    """A server that cannot start costs its own runs only; a later call tries them again."""
    bad = SMALL.replace("[workloads.short]", '[servers.bad]\nrecipe = "sim"\nmodels = ["nonesuch"]\n[workloads.short]')
    bad = bad.replace("repeats = 2", "repeats = 1").replace("batches = [1, 4]", "batches = [4]")
    small.write_text(bad)
    said: list[str] = []
    rows = studies.run_study(small, tmp_path / "out", said.append)
    assert sorted(row.server for row in rows) == ["many", "one"]
    outcome = msgspec.json.decode((tmp_path / "out/runs/bad-nonesuch-short-b4-r0/cell.json").read_bytes())
    assert (outcome["status"], outcome["attempts"]) == ("failed", 2)
    assert "no models profile called 'nonesuch'" in outcome["reasons"][0]
    assert any("once more on a fresh server" in line for line in said)
    assert "bad-nonesuch-short-b4-r0 failed" in (tmp_path / "out/report.html").read_text()


def test_another_gpu_is_refused_or_named(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any server starts. Of the same kind it may be allowed; then every row says which it was."""
    ours, same, unlike = (
        [gpu_state.GpuState(name=name, uuid=f"GPU-{letter * 8}-more", limit_w=700.0)]
        for name, letter in (("H", "a"), ("H", "b"), ("A", "c"))
    )
    small.write_text(SMALL.replace("batches = [1, 4]", "batches = [4]").replace("repeats = 2", "repeats = 1"))
    out = tmp_path / "out"
    monkeypatch.setattr(gpu_state, "states", lambda: ours)
    assert [row.server for row in studies.run_study(small, out, print, only=["one"])] == ["one"], (
        "the other's run is for later"
    )
    said: list[str] = []
    for others, allow, told in ((same, False, "H \\(GPU-bbbbbbbb\\); add --other-gpu"), (unlike, True, "A .*c\\)$")):
        monkeypatch.setattr(gpu_state, "states", lambda now=others: now)
        with pytest.raises(LoadgenError, match=told):
            studies.run_study(small, out, said.append, other_gpu=allow)
    assert said == []
    monkeypatch.setattr(gpu_state, "states", lambda: same)
    rows = studies.run_study(small, out, print, other_gpu=True)
    assert {row.server: row.gpu for row in rows} == {"one": "H (GPU-aaaaaaaa)", "many": "H (GPU-bbbbbbbb)"}
    assert "Not all runs were on the same GPUs" in (out / "report.html").read_text()


def test_only_takes_servers_of_the_study(small: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(small), "--only", "two", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, LoadgenError)
    assert str(result.exception) == "--only two: the study has no such server; it has: one, many"


def test_plan_lists_and_starts_nothing(small: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(small), "--plan", "--out", str(tmp_path / "out")])
    assert len(result.output.split()) == 8
    assert not (tmp_path / "out").exists()

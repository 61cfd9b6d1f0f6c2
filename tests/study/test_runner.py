"""A study: every run of its matrix once, whatever stops it in between."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from loadgen.cli.study import study as command
from loadgen.energy import gpu_state
from loadgen.errors import LoadgenError
from loadgen.files import locked
from loadgen.servers.launcher import served
from loadgen.study import runner as studies
from loadgen.study.folder import StudyState
from loadgen.study.plan import plan_runs
from loadgen.study.spec import Overrides, read_study
from support.small_study import ONE_START, SMALL

ROOT = Path(__file__).parents[2]


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def done(out: Path) -> dict[str, int]:
    """Finished runs -> when."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/cell.json")}


@pytest.mark.timeout(240)
def test_a_killed_study_goes_on_where_it_stopped(small: Path, tmp_path: Path) -> None:
    """2 servers x 3 repeats; kill -9 in the middle of a run; the same command again."""
    small.write_text(ONE_START)
    out = tmp_path / "out"
    words = [sys.executable, "-m", "loadgen", "study", str(small), "--out", str(out)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, process_group=0) as process:
        deadline = time.monotonic() + 120
        while len(done(out)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    before = done(out)
    assert 2 <= len(before) < 6
    assert len(rows_of(out)) <= len(before)
    left = next(cell.name for cell in plan_runs(read_study(small)) if cell.name not in before)
    (out / "runs" / left).mkdir(exist_ok=True)
    (out / "runs" / left / "run.json").unlink(missing_ok=True)  # as it is when killed while the folder was made
    (out / "runs" / left / "schedule.jsonl").write_text("")

    result = CliRunner().invoke(command, [str(small), "--out", str(out)])
    assert result.exit_code == 0, result.output
    after = done(out)
    assert len(after) == 6
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
    small.write_text(ONE_START + "\n")
    with pytest.raises(LoadgenError, match=r"another study, or .* changed"):
        studies.run_study(small, out, print)


@pytest.mark.timeout(120)
def test_an_interrupt_leaves_what_is_done_even_of_a_job_in_the_background(small: Path, tmp_path: Path) -> None:
    """A shell without job control starts `command &` with SIGINT ignored; one start serves all repeats."""
    small.write_text(ONE_START)
    out = tmp_path / "out"
    words = [sys.executable, "-m", "loadgen", "study", str(small), "--out", str(out)]

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, process_group=0, preexec_fn=ignore) as process:
        assert process.stderr is not None
        while b"[2/6" not in (line := process.stderr.readline()):
            assert line, "it ended before"
        os.kill(process.pid, signal.SIGINT)
        assert b"goes on from here" in process.stderr.read()
    assert process.returncode == 130
    found = rows_of(out)
    assert 2 <= len(found) < 6
    assert len({row["server"] for row in found[:2]}) == 1
    assert "runs to go" in (out / "report.html").read_text()


def test_what_breaks_is_tried_again_then_told_and_the_rest_is_run(small: Path, tmp_path: Path) -> None:
    """A server that cannot start costs its own runs only; a later call tries them again."""
    bad = SMALL.replace("[workloads.short]", '[servers.bad]\nrecipe = "sim"\nmodels = ["nonesuch"]\n[workloads.short]')
    bad = bad.replace("repeats = 3", "repeats = 1")
    small.write_text(bad)
    said: list[str] = []
    rows, failed, _ = studies.run_study(small, tmp_path / "out", said.append)
    assert sorted(row.server for row in rows) == ["many", "one"]
    assert failed == ["bad-nonesuch-short-b4-r0"]
    outcome = msgspec.json.decode((tmp_path / "out/runs/bad-nonesuch-short-b4-r0/cell.json").read_bytes())
    assert (outcome["status"], outcome["attempts"]) == ("failed", 2)
    assert "no models profile called 'nonesuch'" in outcome["reasons"][0]
    assert any("once more on a fresh server" in line for line in said)
    assert "bad-nonesuch-short-b4-r0 failed" in (tmp_path / "out/report.html").read_text()


def test_an_overloaded_rate_stays_in_the_study_with_its_failures(small: Path, tmp_path: Path) -> None:
    """Half of the requests are refused: a study with limits states them as misses, one without makes it again."""
    said: list[str] = []
    with served("sim", "--fault", "truncate:0.4") as url:
        open_loop = SMALL.partition("[servers.one]")[0].replace("batches = [4]", "rates = [40]") + (
            f'[servers.one]\nbase_url = "{url}"\n[workloads.short]\ninput = 32\noutput = 8\n'
        )
        small.write_text(open_loop.replace("repeats = 3", "repeats = 1").replace("rounds = 1", "duration_s = 1"))
        rows, failed, _ = studies.run_study(small, tmp_path / "out", said.append)
    (only,) = rows
    assert failed == [] and only.failed > 0
    assert only.goodput_ratio is not None and only.goodput_ratio <= only.completed / only.requests
    assert only.ttft_p99_s is None and only.verdict == "failed"
    assert f"{only.failed} of {only.requests} requests failed" in said[-1]
    assert "requests failed" in (tmp_path / "out/report.html").read_text()


def test_another_gpu_is_refused_or_named(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any server starts. Of the same kind it may be allowed; then every row says which it was."""
    ours, same, unlike = (
        [gpu_state.GpuState(name=name, uuid=f"GPU-{letter * 8}-more", limit_w=700.0)]
        for name, letter in (("H", "a"), ("H", "b"), ("A", "c"))
    )
    small.write_text(SMALL.replace("repeats = 3", "repeats = 1"))
    out = tmp_path / "out"
    monkeypatch.setattr(gpu_state, "states", lambda: ours)
    assert [row.server for row in studies.run_study(small, out, print, only=["one"]).rows] == ["one"], (
        "the other's run is for later"
    )
    said: list[str] = []
    for others, allow, told in ((same, False, "H \\(GPU-bbbbbbbb\\); add --other-gpu"), (unlike, True, "A .*c\\)$")):
        monkeypatch.setattr(gpu_state, "states", lambda now=others: now)
        with pytest.raises(LoadgenError, match=told):
            studies.run_study(small, out, said.append, other_gpu=allow)
    assert said == []
    monkeypatch.setattr(gpu_state, "states", lambda: same)
    rows = studies.run_study(small, out, print, other_gpu=True).rows
    assert {row.server: row.gpu for row in rows} == {"one": "H (GPU-aaaaaaaa)", "many": "H (GPU-bbbbbbbb)"}
    assert "Not all runs were on the same GPUs" in (out / "report.html").read_text()


def test_two_processes_do_not_make_one_study(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    StudyState.open(small, read_study(small), out, Overrides())
    fault = f"another process writes the study's folder {out}: "
    with locked(out, "it"), pytest.raises(LoadgenError, match=fault):
        studies.run_study(small, out, print)


def test_only_takes_servers_of_the_study(small: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(small), "--only", "two", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, LoadgenError)
    assert str(result.exception) == "--only two: the study has no such server; it has: one, many"


def test_plan_lists_and_starts_nothing(small: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(small), "--plan", "--out", str(tmp_path / "out")])
    assert len(result.output.split()) == 6
    assert not (tmp_path / "out").exists()


def test_runs_that_lost_their_results_are_made_again_and_no_others(small: Path, tmp_path: Path) -> None:
    small.write_text(ONE_START)
    out = tmp_path / "out"
    rows = studies.run_study(small, out, print, only=["many"]).rows
    before = done(out)
    for row, lost in zip(rows, ("summary.json", "run.json"), strict=False):
        (out / "runs" / row.cell / lost).unlink()
    again = studies.run_study(small, out, print, only=["many"]).rows
    changed = {name for name, ended in done(out).items() if ended != before[name]}
    assert changed == {row.cell for row in rows[:2]} and len(rows) == 3
    assert {row.cell for row in again} == {row.cell for row in rows} == set(before)


def test_a_run_with_damaged_results_is_named(small: Path, tmp_path: Path) -> None:
    small.write_text(ONE_START.replace("repeats = 3", "repeats = 1"))
    ((row,), _, _) = studies.run_study(small, tmp_path / "out", print, only=["one"])
    (tmp_path / "out/runs" / row.cell / "summary.json").write_text("{")
    with pytest.raises(LoadgenError, match=rf"runs/{row.cell}: run.json or summary.json is damaged"):
        studies.run_study(small, tmp_path / "out", print)


def test_the_options_of_a_run_come_from_its_server_its_load_and_the_study(small: Path, tmp_path: Path) -> None:
    study = read_study(small)
    run = next(run for run in plan_runs(study) if run.server == "many" and run.repeat == 2)
    config = studies.run_config(study, run, tmp_path, "http://127.0.0.1:1")
    assert (config.max_concurrency, config.warmup, config.model, config.endpoint) == (4, 0, None, "completions")
    assert (config.idle_s, config.goodput, config.overwrite) == (0.2, {"tpot": 20}, True)
    assert config.plan is not None
    assert (config.plan["batch"], config.plan["rps"], config.plan["repeat"]) == (4, None, 2)
    assert config.plan["knobs"] == {"max_num_seqs": 64, "counter_period_ms": 5}


def test_the_secrets_among_the_options_of_a_server_are_not_recorded(small: Path, tmp_path: Path) -> None:
    study = read_study(small)
    run = plan_runs(study)[0]
    server = msgspec.structs.replace(study.servers[run.server], engine_options={"api_key": "sk-1", "seed": 3})
    secret = msgspec.structs.replace(study, servers={run.server: server})
    config = studies.run_config(secret, run, tmp_path, "http://127.0.0.1:1")
    assert config.plan is not None
    assert config.plan["knobs"] == {"api_key": "[redacted]", "seed": 3}

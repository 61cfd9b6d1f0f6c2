import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from loadgen.cli import cli
from loadgen.errors import LoadgenError
from loadgen.report import compare, gates
from loadgen.results import run_folder
from loadgen.results.difference import find_differences
from loadgen.results.run_folder import RunResult
from loadgen.results.summary import Summary
from loadgen.results.summary_paths import known_paths, value_at
from loadgen.results.verdict import Check
from loadgen.workload.schedule import Schedule
from support import sample_runs


def summary(**energy: float | None) -> Summary:
    made = sample_runs.single().summary
    assert made is not None
    return msgspec.structs.replace(made, energy=msgspec.structs.replace(made.energy, **energy))


def verdicts(text: str, *summaries: Summary) -> list[bool]:
    gate = gates.parse_gate(text, known_paths(summaries))
    return [verdict.failed for verdict in gates.check_gate(gate, [[one] for one in summaries])]


@pytest.mark.parametrize(
    ("gate", "values", "failed"),
    [
        ("energy.mean_watts>+3%", (100, 103), [False]),
        ("energy.mean_watts>+3%", (100, 103.1), [True]),
        ("energy.mean_watts>=+3%", (100, 103), [True]),
        ("energy.mean_watts<-10%", (100, 89), [True]),
        ("energy.mean_watts<-10%", (100, 91), [False]),
        ("energy.mean_watts>+0%", (100, 100), [False]),
        ("energy.mean_watts > 101.5", (200, 101, 102), [False, True]),
        ("energy.mean_watts > 101.5 W", (200, 101, 102), [False, True]),
        ("energy.mean_watts>0.1kW", (100, 99), [False]),
        ("energy.measured_joules>2J", (1, 2.5), [True]),
        ("energy.measured_joules>2kJ", (1, 2.5), [False]),
        ("energy.mean_watts<1e2", (100, 99), [True]),
        ("energy.mean_watts<=99", (99,), [True]),
        ("energy.mean_watts>5", (None,), [True]),
        ("energy.mean_watts>5", (1, None), [True]),
        ("energy.mean_watts>5", (None, 1), [False]),
        ("energy.mean_watts>+5%", (None, 1), [True]),
        ("energy.mean_watts>+5%", (0, 0), [False]),
        ("requests.by_error.http>0", (1,), [False]),
    ],
)
def test_gates(gate: str, values: tuple[float | None, ...], failed: list[bool]) -> None:
    """The first run is the baseline; a lone run is held against plain numbers. Unknown has not passed."""
    assert verdicts(gate, *(summary(mean_watts=value) for value in values)) == failed


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        ("", "PATH>NUMBER"),
        ("energy.mean_watts", "PATH>NUMBER"),
        ("energy.mean_watts>__import__('os')", "PATH>NUMBER"),
        ("energy.mean_watts>1>2", "PATH>NUMBER"),
        ("energy.mean_watts==1", "PATH>NUMBER"),
        ("energy.mean_watts>nan", "PATH>NUMBER"),
        ("ttft_s.p99>100 ms later", r"a unit \(100ms, 0.1s, 2J, 300W\) or without"),
        ("ttft_s.p99>2J", "ttft_s.p99 takes s, ms, us, µs or no unit, not J; or a change"),
        ("energy.mean_watts>2s", "takes W, kW or no unit, not s"),
        ("goodput.rps>2s", "takes /s or no unit, not s"),
        ("requests.failed>2s", "takes no unit, not s"),
        ("energy.mean_watts>3%", r"write \+3%$"),
        ("goodput.ratio<90%", r"write \+90%, or 0.9 for a share$"),
        ("energy.mean_watts>+3", r"write \+3% for a change, 3 for a value"),
        ("ttft_s.p99>+3ms", r"write \+3% for a change, 3ms for a value"),
        ("energy.mean_wats>3", "close: energy.mean_watts"),
        ("ttft.p99>3", "close: .*ttft_s.p99"),
        ("energy>3", "no number at 'energy'"),
        ("energy.valid>0", "no number at 'energy.valid'"),
        ("by_workload.poetry.ttft_s.p99>1", "no number at"),
        ("energy.mean_watts>+3%", "only one run"),
    ],
)
def test_a_gate_that_means_nothing_is_an_error_in_one_line(gate: str, told: str) -> None:
    with pytest.raises(LoadgenError, match=told) as err:
        verdicts(gate, summary())
    assert "\n" not in str(err.value)


@pytest.mark.parametrize("text", ["0.1", "0.1s", "100ms", "100 ms", "1e5us", "100000µs"])
def test_a_bound_is_the_same_in_every_unit(text: str) -> None:
    assert gates.parse_gate(f"ttft_s.p99>{text}", ["ttft_s.p99"]).bound == pytest.approx(0.1)


def test_every_path_is_a_number_or_unknown() -> None:
    made = sample_runs.run().summary
    assert made is not None
    paths = known_paths([made])
    assert {"by_workload.code.tokens.output", "goodput.rps", "instrument.cpu_s", "lengths.count"} <= set(paths)
    assert all(isinstance(value_at(made, path), float | None) for path in paths)
    assert set(compare.TABLE_METRICS) <= set(paths)


def test_paths_agree_with_summary_json() -> None:
    made = sample_runs.run().summary
    assert made is not None
    written = json.loads(msgspec.json.encode(made))
    for path in known_paths([made]):
        found = written
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        kind_not_met = ".by_error." in path and found is None
        assert value_at(made, path) == (0 if kind_not_met else found), path


def test_a_workload_with_a_dot_in_its_name_is_found() -> None:
    made = sample_runs.run().summary
    assert made is not None
    named = msgspec.structs.replace(made, by_workload={"a": made.by_workload["chat"], "a.b": made.by_workload["code"]})
    assert value_at(named, "by_workload.a.b.ttft_s.p50") == made.by_workload["code"].ttft_s.p50


def test_ratio_and_difference_are_to_the_first_and_unknown_stays_unknown() -> None:
    rows = compare.compare_runs([[summary(mean_watts=w)] for w in (200.0, 250.0, None)], ["energy.mean_watts"])
    assert rows["energy.mean_watts"] == [
        compare.ComparedValue(200.0, 1.0, 0.0),
        compare.ComparedValue(250.0, 1.25, 50.0),
        compare.ComparedValue(None, None, None),
    ]
    zero = compare.compare_runs([[summary(mean_watts=w)] for w in (0.0, 5.0)], ["energy.mean_watts"])
    assert zero["energy.mean_watts"][1] == compare.ComparedValue(5.0, None, 5.0)


def test_the_table_fits_and_warns_of_what_cannot_be_compared() -> None:
    simulated, other = sample_runs.run(), sample_runs.without_energy()
    real = replace(other, info=msgspec.structs.replace(other.info, server={"simulated": False}))
    out = io.StringIO()
    differences = [find_differences(simulated, real)]
    compare.render_comparison([[simulated], [real]], Console(file=out, width=80), (), differences)
    told = out.getvalue()
    assert max(len(line) for line in told.splitlines()) <= 80
    assert "Simulated and measured runs are side by side." in told
    assert "energy: no energy was measured: nvml: libnvidia-ml.so.1" in " ".join(told.split())
    assert "completed · 3.58 requests/s sent, 4.00 requested · FAILED" in told
    row = next(line for line in told.splitlines() if line.startswith("energy.mean_watts"))
    assert row.split()[2:] == ["W", "-", "-", "-", "-"]
    assert "No interval (not known in B): energy.joules_per_request.mean," in " ".join(told.split())


def test_each_later_run_has_a_table_of_its_own_with_stars_where_the_interval_excludes_0() -> None:
    runs = [sample_runs.run(seed=seed) for seed in (1, 2)] + [sample_runs.run(1200, seed=3, rps=8.0)]
    differences = [find_differences(runs[0], run, ("A", letter)) for run, letter in zip(runs[1:], "BC", strict=True)]
    out = io.StringIO()
    compare.render_comparison([[run] for run in runs], Console(file=out, width=80), (), differences)
    told = out.getvalue()
    assert max(len(line) for line in told.splitlines()) <= 80
    assert "B/A" in told and "C−A" in told and "C had different schedules" in " ".join(told.split())
    later = told[told.index("C−A") :].splitlines()
    changed = next(line for line in later if line.startswith("tokens.output_per_s"))
    assert changed.endswith(" *") and "No interval (" in told


def test_a_lone_run_has_a_table_without_differences() -> None:
    out = io.StringIO()
    compare.render_comparison([[sample_runs.run()]], Console(file=out, width=80))
    assert "ttft_s.p99" in out.getvalue() and "B/A" not in out.getvalue()


# ---------------------------------------------------------------- the commands


def written(path: Path, made: RunResult) -> str:
    """`made` as a run folder."""
    writer = run_folder.RunWriter(path, made.info, Schedule(tuple(made.schedule), "trace", 4.0, 7))
    for record in made.records:
        writer.record(record)
    writer.energy(made.energy)
    writer.close()
    return str(path)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    run = sample_runs.run(num_requests=30, failing=0)
    made = {
        "a": run,
        "b": replace(run, energy=run.energy[: len(run.energy) // 2]),
        "dark": replace(run, info=msgspec.structs.replace(run.info, domains=[]), energy=[]),
    }
    return {name: written(tmp_path / name, result) for name, result in made.items()}


@pytest.mark.parametrize(
    ("runs_", "gates", "status"),
    [
        (["a", "b"], [], 0),
        (["a", "b"], ["ttft_s.p99>100"], 0),
        (["a", "b"], ["ttft_s.p99>100", "ttft_s.p99>0"], 1),
        (["a", "dark"], ["energy.joules_per_output_token>+3%"], 1),
    ],
)
def test_compare_exits_1_when_a_gate_fails(
    folders: dict[str, str], runs_: list[str], gates: list[str], status: int
) -> None:
    flags = [word for gate in gates for word in ("--fail-if", gate)]
    assert CliRunner().invoke(cli, ["compare", *(folders[name] for name in runs_), *flags]).exit_code == status


def test_compare_as_json(folders: dict[str, str]) -> None:
    args = ["compare", folders["a"], folders["dark"], "--json", "--fail-if", "energy.mean_watts>1"]
    done = CliRunner().invoke(cli, args)
    told = json.loads(done.stdout)
    assert done.exit_code == 1
    assert told["metrics"]["energy.mean_watts"][1] == {"value": None, "ratio": None, "difference": None}
    assert told["gates"][0]["failed"] is True and told["gates"][0]["value"] is None
    (found,) = told["differences"]
    assert found["paired"] is True
    mean = found["metrics"]["e2e_s.mean"]
    assert mean["interval"] == [mean["difference"] - mean["half_width"], mean["difference"] + mean["half_width"]]
    watts = found["metrics"]["energy.mean_watts"]
    assert (watts["b"], watts["interval"], watts["reason"]) == (None, None, "not known in B")


def test_report_of_a_folder_without_its_records_is_refused_and_keeps_its_summary(folders: dict[str, str]) -> None:
    folder = Path(folders["a"])
    assert CliRunner().invoke(cli, ["report", str(folder)]).exit_code == 0
    (folder / "records.jsonl").unlink()
    before = (folder / "summary.json").read_bytes()
    done = CliRunner().invoke(cli, ["report", str(folder)])
    assert isinstance(done.exception, LoadgenError) and "has no records.jsonl" in str(done.exception)
    assert (folder / "summary.json").read_bytes() == before


def test_report_makes_what_is_derived_anew_and_touches_nothing_that_was_recorded(folders: dict[str, str]) -> None:
    folder = Path(folders["a"])
    derived = {"report.html", "summary.json", "attribution.jsonl"}
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in derived}
    done = CliRunner().invoke(cli, ["report", str(folder)])
    assert done.exit_code == 0 and "Latency" in done.stdout
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after["report.html"].startswith(b"<!doctype html>")
    assert {name: content for name, content in after.items() if name not in derived} == before


def test_report_of_a_run_that_was_killed(tmp_path: Path) -> None:
    made = sample_runs.run(num_requests=30)
    info = msgspec.structs.replace(made.info, end_ns=None, stopped_by=None)
    folder = written(tmp_path / "killed", replace(made, info=info, records=made.records[:20]))
    done = CliRunner().invoke(cli, ["report", folder])
    assert done.exit_code == 0, done.output
    assert "the run did not end by itself" in done.stdout


def test_report_prints_json(folders: dict[str, str]) -> None:
    done = CliRunner().invoke(cli, ["report", folders["a"], "--json"])
    assert json.loads(done.stdout)["run_id"] == "20260314-150926-chat"


def test_report_of_no_run_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(tmp_path / "absent")])
    assert isinstance(done.exception, LoadgenError) and "not a run folder" in str(done.exception)


# ---------------------------------------------------------------- repeats, confident gates, and files for CI


def repeats(path: Path, seeds: Sequence[int], power: float = 1.0) -> str:
    """Write runs 1, 2, ... of these seeds into a folder, with their counters scaled."""
    for place, seed in enumerate(seeds, 1):
        made = sample_runs.run(num_requests=30, failing=0, seed=seed)
        scaled = [msgspec.structs.replace(one, joules=one.joules * power) for one in made.energy]
        info = msgspec.structs.replace(made.info, seed=seed, schedule_sha256=f"{seed}", run_id=f"{path.name}-{place}")
        written(path / str(place), replace(made, info=info, energy=scaled))
    return str(path)


def test_repeats_are_compared_by_their_means_and_paired_by_their_schedules(tmp_path: Path) -> None:
    a, b = repeats(tmp_path / "a", (1, 2, 3)), repeats(tmp_path / "b", (1, 2, 3), power=1.1)
    done = CliRunner().invoke(cli, ["compare", a, b, "--json"])
    found = json.loads(done.stdout)
    (differences,) = found["differences"]
    watts = differences["metrics"]["energy.mean_watts"]
    assert differences["paired"] is True and found["repeats"] == [["a-1", "a-2", "a-3"], ["b-1", "b-2", "b-3"]]
    assert watts["b"] / watts["a"] == pytest.approx(1.1, rel=1e-4)
    assert watts["interval"][0] > 0 and watts["detectable"] > watts["half_width"]


def test_repeats_with_other_schedules_need_leave_and_are_compared_unpaired(tmp_path: Path) -> None:
    a, b = repeats(tmp_path / "a", (1, 2)), repeats(tmp_path / "b", (3, 4))
    refused = CliRunner().invoke(cli, ["compare", a, b])
    assert refused.exit_code == 2 and "B1 was asked for another seed than A1" in refused.stderr
    done = CliRunner().invoke(cli, ["compare", a, b, "--json", "--allow", "different"])
    assert json.loads(done.stdout)["differences"][0]["paired"] is False


def test_a_side_of_one_run_beside_repeats_has_no_interval(tmp_path: Path) -> None:
    a, b = repeats(tmp_path / "a", (1, 2)), repeats(tmp_path / "b", (1,))
    done = CliRunner().invoke(cli, ["compare", a, f"{b}/1", "--json"])
    assert json.loads(done.stdout)["differences"][0]["metrics"]["e2e_s.mean"]["reason"] == "B is one run: repeat it"


@pytest.mark.parametrize(
    ("power", "gate", "plain", "confident"),
    [
        (1.1, "energy.mean_watts>+3%", 1, 1),
        (1.1, "energy.mean_watts<+3%", 0, 0),
        (1.0, "energy.mean_watts>-0.1%", 1, 1),
        (1.0, "energy.mean_watts>=+0%", 1, 0),
        (1.1, "requests.completed>=+0%", 1, 1),
    ],
)
def test_a_confident_gate_fails_only_where_the_whole_interval_is_beyond_the_bound(
    tmp_path: Path, power: float, gate: str, plain: int, confident: int
) -> None:
    """The last number has no interval: a gate that cannot tell has not passed."""
    args = ["compare", repeats(tmp_path / "a", (1, 2, 3)), repeats(tmp_path / "b", (1, 2, 3), power), "--fail-if", gate]
    assert CliRunner().invoke(cli, args).exit_code == plain
    assert CliRunner().invoke(cli, [*args, "--confident"]).exit_code == confident


def test_gates_are_test_cases_of_junit(folders: dict[str, str], tmp_path: Path) -> None:
    gates_ = ["--fail-if", "ttft_s.p99>100", "--fail-if", "ttft_s.p99>0"]
    file = tmp_path / "out.xml"
    CliRunner().invoke(cli, ["compare", folders["a"], folders["b"], *gates_, "--junit", str(file)])
    suite = ElementTree.parse(file).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    assert [case.get("name") for case in suite] == ["ttft_s.p99>100 (B)", "ttft_s.p99>0 (B)"]
    assert "B has" in (suite[1][0].get("message") or "")


def test_a_refusal_is_an_error_of_junit(folders: dict[str, str], tmp_path: Path) -> None:
    other, file = repeats(tmp_path / "other", (9,)), tmp_path / "out.xml"
    assert CliRunner().invoke(cli, ["compare", folders["a"], f"{other}/1", "--junit", str(file)]).exit_code == 2
    assert ElementTree.parse(file).getroot().get("errors") != "0"


def test_markdown_has_the_gates_and_folds_what_is_not_asked_for(folders: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "out.md"
    gate = ["--fail-if", "response_s.p90>0"]
    CliRunner().invoke(cli, ["compare", folders["a"], folders["b"], *gate, "--markdown", str(file)])
    text = file.read_text()
    top, folded = text.split("<details>")
    assert "1 of 1 gates failed" in top and "`response_s.p90`" in top and "`itl_s.mean`" not in top
    assert "`itl_s.mean`" in folded and text.count("<details>") == text.count("</details>") == 1


def test_a_number_that_a_check_touches_is_marked_also_in_a_part_of_the_run() -> None:
    summary = sample_runs.run().summary
    assert summary is not None
    failed = Check(name="energy", status="failed", reason="half of it is missing", rows=["energy"])
    checks = [failed if check.name == "energy" else check for check in summary.verdict.checks]
    verdict = msgspec.structs.replace(summary.verdict, status="failed", checks=checks)
    invalid = replace(sample_runs.run(), summary=msgspec.structs.replace(summary, verdict=verdict))
    compare.render_comparison(
        [[sample_runs.run()], [invalid]],
        Console(file=(out := io.StringIO()), width=120),
        (),
        [find_differences(sample_runs.run(), invalid)],
    )
    marked = {line.split()[0] for line in out.getvalue().splitlines() if " !! " in line}
    energy = {path for path in compare.TABLE_METRICS if path.startswith("energy.")} - {*compare.BOUNDARY_METRICS}
    of_parts = {
        f"{part}.{metric}"
        for part in ("chat", "code")
        for metric in ("joules_per_request.p50", "joules_per_output_token")
    }
    assert energy | of_parts <= marked
    assert marked.isdisjoint(("requests.completed", "schedule_lag_s.p99"))
    assert "!! a failed check does, in any of the runs" in out.getvalue()

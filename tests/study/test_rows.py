"""The row of a run: its derived numbers by hand, and the same row however the study came to it."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from loadgen.clock import Anchor
from loadgen.energy.gpu_state import GpuState
from loadgen.report.write import finish
from loadgen.results.run_folder import RunWriter
from loadgen.results.study_table import Row
from loadgen.results.summary import Boundary, Summary
from loadgen.results.verdict import CHECKS, Check, Status, Verdict
from loadgen.study.plan import StudyRun
from loadgen.study.rows import FinishedRun, RunOutcome, gpu_names, idealized_joules, row_of, unusable
from loadgen.study.spec import Idealized, ServerSpec, Study, WorkloadSpec
from loadgen.workload.schedule import Schedule, ScheduledRequest
from support import sample_runs

STUDY = Study(
    title="t",
    servers={"a": ServerSpec(recipe="sim")},
    workloads={
        "w": WorkloadSpec(input=8, output=2),
        "bursts": WorkloadSpec(input=8, output=2, arrival="gamma", burstiness=0.25),
        "mix": WorkloadSpec(trace="mix.toml"),
    },
)
OPEN = StudyRun("a", "m", "w", None, 4.0, 0)
DONE = RunOutcome(status="done", attempts=1)


def finished(**changes: object) -> FinishedRun:
    result = sample_runs.run(num_requests=20)
    assert result.summary is not None
    return FinishedRun(result.info, msgspec.structs.replace(result.summary, **changes), result.schedule)


def row(run: StudyRun = OPEN, outcome: RunOutcome = DONE, study: Study = STUDY, **changes: object) -> Row:
    return row_of(study, run, outcome, finished(**changes))


def energy(**changes: object) -> dict[str, object]:
    summary: Summary = finished().summary
    return {"energy": msgspec.structs.replace(summary.energy, **changes)}


def test_the_boundary_of_a_run_is_in_its_row() -> None:
    bounds = Boundary(parts=[], total_joules=700.0, co2e_grams=0.07, cost=None)
    made = row(**energy(boundary=bounds))
    assert (made.host_joules, made.total_joules, made.co2e_grams, made.cost) == (None, 700.0, 0.07, None)


def test_energy_per_token_and_request_is_all_that_was_measured() -> None:
    summary = finished().summary
    made = row(**energy(measured_joules=600.0))
    assert summary.tokens.output is not None and summary.goodput is not None
    assert made.joules_per_output_token == 600.0 / summary.tokens.output
    assert made.joules_per_request == 600.0 / summary.requests.completed
    assert made.good_requests_per_joule == summary.goodput.good / 600.0


LIMITS = {"ttft": 500.0}


@pytest.mark.parametrize(
    ("finished", "failures", "completed", "limits", "reason"),
    [
        ("ok", "ok", 9, {}, None),
        ("ok", "warning", 9, {}, None),
        ("ok", "failed", 9, {}, "too many failed"),
        ("ok", "failed", 9, LIMITS, None),
        ("ok", "failed", 0, LIMITS, "too many failed"),
        ("failed", "failed", 9, LIMITS, "the server died"),
    ],
)
def test_failed_requests_are_misses_where_limits_are_stated_and_otherwise_may_be_few(
    finished: Status, failures: Status, completed: int, limits: dict[str, float], reason: str | None
) -> None:
    stated = {"finished": (finished, "the server died"), "failures": (failures, "too many failed")}
    checks = [Check(name=n, status=stated.get(n, ("ok", None))[0], reason=stated.get(n, (0, None))[1]) for n in CHECKS]
    summary = sample_runs.run(num_requests=10).summary
    assert summary is not None
    requests = msgspec.structs.replace(summary.requests, completed=completed, failed=10 - completed)
    summary = msgspec.structs.replace(summary, requests=requests, verdict=Verdict.of(checks))
    study = Study(title="t", servers={}, workloads={}, goodput=limits)
    assert unusable(study, summary) == reason


def test_percentiles_that_failed_requests_reach_are_unknown() -> None:
    ttft_s = msgspec.structs.replace(
        finished().summary.ttft_s, left_out=8, p50_with_failures=0.25, p99_with_failures=None
    )
    made = row(ttft_s=ttft_s)
    assert (made.ttft_p50_s, made.ttft_p99_s) == (0.25, None)
    assert made.e2e_p99_s == finished().summary.e2e_s.p99, "none failed"


def test_each_limit_has_its_share_of_all_requests() -> None:
    summary = finished().summary
    assert summary.goodput is not None
    goodput = msgspec.structs.replace(summary.goodput, met={"ttft": 15, "tpot": 10})
    made = row(goodput=goodput)
    scheduled = summary.requests.scheduled
    assert (made.ttft_met_ratio, made.tpot_met_ratio, made.e2el_met_ratio) == (15 / scheduled, 10 / scheduled, None)
    older = row(goodput=msgspec.structs.replace(goodput, met={}))
    assert (older.ttft_met_ratio, older.goodput_ratio) == (None, goodput.ratio)


def test_a_row_has_the_origin_of_its_run() -> None:
    info = msgspec.structs.replace(
        finished().info,
        anchor=Anchor(1_700_000_000 * 10**9, 5 * 10**9),
        start_ns=8 * 10**9,
        config={"knobs": {"max_num_seqs": 8, "dtype": "auto", "api_key": "sk-1"}},
        server={"model": "m", "engine": "vllm", "engine_version": "0.20.2"},
    )
    made = row_of(STUDY, OPEN, DONE, FinishedRun(info, finished().summary, finished().schedule))
    assert made.started == "2023-11-14T22:13:23+00:00", "three seconds after the anchor"
    assert (made.engine, made.engine_options) == ("vllm 0.20.2", "max_num_seqs=8 dtype=auto api_key=[redacted]")
    assert (made.seed, made.loadgen_version) == (info.seed, info.loadgen_version)
    unknown = msgspec.structs.replace(info, server={"model": "m", "engine": None}, config={})
    made = row_of(STUDY, OPEN, DONE, FinishedRun(unknown, finished().summary, finished().schedule))
    assert (made.engine, made.engine_options) == (None, None)


def test_a_row_has_the_verdict_with_its_reasons() -> None:
    checks = [Check(name=name, status="ok") for name in CHECKS]
    assert (row(verdict=Verdict.of(checks)).verdict, row(verdict=Verdict.of(checks)).remarks) == ("ok", None)
    checks[3:5] = [Check(name=name, status="warning", reason=f"{name} was late") for name in CHECKS[3:5]]
    made = row(verdict=Verdict.of(checks))
    assert (made.verdict, made.remarks) == ("warning", "server was late; client was late")


def test_what_was_not_measured_is_unknown() -> None:
    made = row(**energy(measured_joules=None))
    assert (made.joules_per_output_token, made.joules_per_request, made.good_requests_per_joule) == (None, None, None)
    no_goodput = row(goodput=None)
    assert (no_goodput.goodput_ratio, no_goodput.good_requests_per_joule) == (None, None)
    assert row(**energy(steady=None)).steady_joules_per_output_token is None


@pytest.mark.parametrize(
    ("run", "arrival"),
    [
        (OPEN, "poisson"),
        (replace(OPEN, workload="bursts"), "gamma 0.25"),
        (replace(OPEN, workload="mix"), "streams"),
        (replace(OPEN, batch=4, rps=None), None),
    ],
)
def test_an_open_loop_names_its_arrival_process(run: StudyRun, arrival: str | None) -> None:
    assert row(run).arrival == arrival


def test_the_hottest_gpu_counts_and_each_is_named() -> None:
    gpus = [
        GpuState(name="H", uuid="GPU-aaaaaaaa-1", temperature_c=41.0),
        GpuState(name="H", uuid="GPU-bbbbbbbb-2", temperature_c=55.0),
        GpuState(name="I", uuid="GPU-cccccccc-3", temperature_c=None),
    ]
    made = row(outcome=msgspec.structs.replace(DONE, gpus=gpus))
    assert made.temperature_c == 55.0
    assert made.gpu == gpu_names(gpus) == "H (GPU-aaaaaaaa), H (GPU-bbbbbbbb), I (GPU-cccccccc)"
    assert (row().temperature_c, row().gpu) == (None, None)


def request(input_tokens: int, output_tokens: int) -> ScheduledRequest:
    return ScheduledRequest(index=0, offset_ns=0, workload="w", input_tokens=input_tokens, output_tokens=output_tokens)


def test_idealized_energy_adds_up_over_requests_and_grows_with_their_lengths() -> None:
    study = msgspec.structs.replace(STUDY, idealized=Idealized(hardware="h200", model="llama-3.1-8b"))

    def joules(*requests: ScheduledRequest) -> float:
        total = idealized_joules(study, requests)
        assert total is not None
        return total

    short, long = request(100, 10), request(100, 11)
    assert 0 < joules(short) < joules(long)
    assert joules(short, long) == pytest.approx(joules(short) + joules(long))
    # At least 2 FLOPs for each of 8e9 parameters and token, at 700 W and 989e12 FLOP/s.
    assert joules(short) > 0.9 * 2 * 7e9 * 110 * 700 / 989e12
    assert idealized_joules(STUDY, [short]) is None


def test_a_run_has_the_same_row_when_it_is_read_from_its_folder(tmp_path: Path) -> None:
    made = sample_runs.run(num_requests=20)
    writer = RunWriter(tmp_path / "run", made.info, Schedule(tuple(made.schedule), "trace", 4.0, 7))
    for record in made.records:
        writer.record(record)
    writer.energy(made.energy)
    writer.close()
    result = finish(tmp_path / "run")
    assert result.summary is not None
    at_once = row_of(STUDY, OPEN, DONE, FinishedRun(result.info, result.summary, result.schedule))
    assert row_of(STUDY, OPEN, DONE, FinishedRun.read(tmp_path / "run")) == at_once

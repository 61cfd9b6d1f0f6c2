"""The plan of a study: every run of its matrix once in each repeat, in an order that its seed decides."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.stats.distributions import index_of_dispersion
from loadgen.study.plan import (
    StudyRun,
    closed_loop_schedule,
    even_sample,
    open_loop_schedule,
    plan_runs,
    scaled_streams,
    schedule_of,
    start_key,
)
from loadgen.study.spec import ServerSpec, Study, WorkloadSpec, read_study
from loadgen.workload.agent_sessions import read_sessions
from loadgen.workload.schedule import Arrival
from loadgen.workload.trace import Trace, TraceRequest, read_trace, write_trace
from support.agent_files import FORKED, write_session

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "studies").glob("*.toml"))


def make(**changes: object) -> Study:
    fields = {
        "title": "t",
        "servers": {
            "a": ServerSpec(recipe="sim"),
            "b": ServerSpec(recipe="vllm", engine_options={"max_num_seqs": "{batch}"}),
        },
        "workloads": {"w": WorkloadSpec(input=8, output=2), "v": WorkloadSpec(input=16, output=2)},
        "models": ["m", "n"],
        "batches": [1, 2, 4],
        "repeats": 3,
        **changes,
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
    workload = WorkloadSpec(input=8, output=2, arrival=arrival, burstiness=0.25)
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
    most, usual = (
        max(Counter((r.arrival_s, r.input_tokens, r.output_tokens) for r in one.requests).values())
        for one in (sample, trace)
    )
    assert most <= usual * -(-count // 2000)
    assert sample != even_sample(trace, count, 8), "their order is drawn"


def test_streams_share_the_rate_as_their_file_says_and_keep_what_their_prompts_share() -> None:
    """mix.toml: chat 3/s in sessions, code 1/s about files."""
    study = make(workloads={"s": WorkloadSpec(trace="traces/mix.toml")}, batches=[], rates=[40.0], duration_s=60)
    schedule = schedule_of(study, StudyRun("a", "m", "s", None, 40.0, 0), ROOT)
    code = [request for request in schedule.requests if request.workload == "code"]
    assert {request.workload for request in schedule.requests} == {"chat", "code"}
    assert len(code) == pytest.approx(600, rel=0.3)
    assert all(request.text_id is not None for request in code)
    assert any(request.after is not None for request in schedule.requests)


def test_loads_are_the_workloads_own_else_the_studys_and_a_server_takes_some() -> None:
    servers = {
        "all": ServerSpec(recipe="sim"),
        "some": ServerSpec(recipe="sim", workloads=["own"], batches=[], rates=[8.0]),
    }
    workloads = {
        "own": WorkloadSpec(input=8, output=2, batches=[2], rates=[4.0, 8.0]),
        "studys": WorkloadSpec(input=8, output=2),
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


@pytest.mark.parametrize("file", SHIPPED, ids=[file.stem for file in SHIPPED])
def test_every_shipped_study_can_be_planned(file: Path) -> None:
    cells = plan_runs(read_study(file))
    assert cells
    assert len({cell.name for cell in cells}) == len(cells)
    schedule_of(read_study(file), cells[0], file.parent)


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (StudyRun("vllm", "meta-llama/Llama-3.1-8B", "chat", 8, None, 2), "vllm-Llama_3.1_8B-chat-b8-r2"),
        (StudyRun("a", "/weights/m/", "w", None, 2.5, 0), "a-m-w-2.5rps-r0"),
        (StudyRun("a b", None, "w/x", None, 16.0, 10), "a_b-w_x-16rps-r10"),
    ],
)
def test_a_folder_is_named_after_its_run(run: StudyRun, name: str) -> None:
    assert run.name == name


def trace_of(*output_tokens: int, session: str | None = None) -> Trace:
    requests = [
        TraceRequest(arrival_s=float(i), input_tokens=10, output_tokens=tokens, workload="w", session_id=session)
        for i, tokens in enumerate(output_tokens)
    ]
    return Trace("t", tuple(requests), "")


@pytest.mark.parametrize(
    ("batch", "rounds", "at_least", "requests"),
    [(4, 3, 1, 12), (4, 3, 12, 12), (4, 3, 13, 16), (4, 3, 16, 16), (4, 3, 17, 20), (1, 1, 1, 1), (7, 1, 8, 14)],
)
def test_a_closed_loop_has_the_fewest_whole_rounds_that_suffice(
    batch: int, rounds: int, at_least: int, requests: int
) -> None:
    schedule = closed_loop_schedule(make(rounds=rounds, min_requests=at_least), trace_of(5), batch, 1)
    assert len(schedule.requests) == requests
    assert [request.index for request in schedule.requests] == list(range(requests))


@given(st.floats(0.5, 20), st.floats(1, 10), st.integers(0, 2**32 - 1))
def test_an_open_loop_has_rate_times_duration_requests_within_the_duration(rps: float, s: float, seed: int) -> None:
    schedule = open_loop_schedule(trace_of(5, 6, 7), seed, rps, "poisson", 1.0, s)
    offsets = [request.offset_ns for request in schedule.requests]
    assert len(offsets) == max(1, round(rps * s))
    assert offsets == sorted(offsets)
    assert offsets[0] >= 0 and offsets[-1] <= s * 1e9


def test_at_a_constant_rate_the_gaps_are_what_the_rate_says() -> None:
    schedule = open_loop_schedule(trace_of(5), 3, 4.0, "constant", 1.0, 2.0)
    gaps = np.diff([request.offset_ns for request in schedule.requests])
    assert len(gaps) == 7 and np.allclose(gaps, 0.25e9, atol=1)


@pytest.mark.parametrize(
    ("count", "occurrences"),
    [
        (5, {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}),
        (2, {2: 1, 4: 1}),
        (1, {3: 1}),
        (7, {1: 1, 2: 2, 3: 1, 4: 2, 5: 1}),
        (11, {1: 2, 2: 2, 3: 3, 4: 2, 5: 2}),
    ],
)
def test_a_sample_is_even_over_the_output_lengths(count: int, occurrences: dict[int, int]) -> None:
    sample = even_sample(trace_of(5, 1, 4, 2, 3), count, 7)
    assert Counter(request.output_tokens for request in sample.requests) == occurrences


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_trace_of_sessions_is_taken_from_the_top_in_its_order(count: int) -> None:
    sample = even_sample(trace_of(9, 1, 5, session="s"), count, 7)
    assert [request.output_tokens for request in sample.requests] == [9, 1, 5, 9, 1, 5, 9][:count]


def test_streams_without_a_rate_have_nothing_to_share_a_rate_by(tmp_path: Path) -> None:
    mix = (ROOT / "traces/mix.toml").read_text()
    (tmp_path / "mix.toml").write_text("\n".join(line for line in mix.splitlines() if not line.startswith("rps")))
    study = make(workloads={"s": WorkloadSpec(trace="mix.toml")}, batches=[], rates=[4.0])
    with pytest.raises(LoadgenError, match="every stream needs an rps"):
        schedule_of(study, StudyRun("a", "m", "s", None, 4.0, 0), tmp_path)


@pytest.mark.parametrize(
    ("server", "batch", "options"),
    [
        (ServerSpec(engine_options={"max_num_seqs": "{batch}", "n": 3}), 8, {"max_num_seqs": "8", "n": 3}),
        (ServerSpec(engine_options={"max_num_seqs": "x{batch}y{batch}"}), 2, {"max_num_seqs": "x2y2"}),
        (ServerSpec(engine_options={"n": "{batch}", "flag": True}), None, {"n": "1", "flag": True}),
    ],
)
def test_the_batch_is_filled_into_engine_options(server: ServerSpec, batch: int | None, options: object) -> None:
    assert server.options_of_batch(batch) == options


def test_the_rates_of_streams_are_scaled_by_one_factor(tmp_path: Path) -> None:
    """mix.toml: chat 3/s, code 1/s."""
    scaled = scaled_streams(ROOT / "traces/mix.toml", 10.0)
    assert {name: stream.rps for name, stream in scaled.items()} == {"chat": 7.5, "code": 2.5}


def test_sessions_that_wait_for_answers_come_by_a_stream_only(tmp_path: Path) -> None:
    recorded = write_session(tmp_path, FORKED)
    trace = tmp_path / "trace.jsonl"
    write_trace(trace, read_sessions([recorded], Counter()).requests)
    (tmp_path / "streams.toml").write_text(f'[agents]\ntrace = "{trace}"\nrps = 1\n')
    for file, rps, problem in (
        (recorded, 5.0, "loadgen trace import"),
        (trace, None, "give the trace to a stream of a TOML file"),
        (trace, 5.0, "give the trace to a stream of a TOML file"),
    ):
        study = make(workloads={"w": WorkloadSpec(trace=str(file), arrival="poisson")}, batches=[2])
        with pytest.raises(LoadgenError, match=problem):
            schedule_of(study, StudyRun("a", "m", "w", None if rps else 2, rps, 0), tmp_path)
    study = make(workloads={"w": WorkloadSpec(trace="streams.toml", duration_s=100.0)})
    requests = schedule_of(study, StudyRun("a", "m", "w", None, 5.0, 0), tmp_path).requests
    assert any(len(request.parents) > 1 for request in requests)

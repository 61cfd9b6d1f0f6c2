"""A server that does not keep up is named with its instant; bursts, short runs and filling up are not taken for it."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.record import RequestRecord
from loadgen.results.run_folder import RunResult
from loadgen.results.saturation import check_server, find_saturation, server_load
from loadgen.results.summarize import analyse_run
from loadgen.stats.arrays import Floats
from loadgen.units import NS_PER_S
from loadgen.workload.arrivals import offsets
from support import sample_runs


def served_in_turn(sent_s: Floats, serve_s: float | Floats, answer_s: float = 0.0) -> Floats:
    """Return the first tokens of a server that begins one request every `serve_s`, `answer_s` after its turn."""
    begun_s, free_s = np.empty(len(sent_s)), 0.0
    for i, (sent, work) in enumerate(zip(sent_s, np.broadcast_to(serve_s, len(sent_s)), strict=True)):
        free_s = begun_s[i] = max(sent, free_s) + work
    return begun_s + answer_s


def poisson(rate: float, seed: int, duration_s: float = 60.0) -> Floats:
    return offsets("poisson", rate, np.random.default_rng(seed), duration_s=duration_s)


@pytest.mark.parametrize(("load", "alarms"), [(0.2, 0), (0.5, 0), (0.8, 0), (0.9, 0), (0.95, 1), (1.5, 38), (2.0, 40)])
def test_a_server_that_keeps_up_is_not_called_saturated_and_an_overloaded_one_is(load: float, alarms: int) -> None:
    """40 seeds of a queue with exponential service: at most so many alarms below capacity, at least so many above."""
    found = 0
    for seed in range(40):
        sent_s = poisson(10, seed)
        work_s = np.random.default_rng([seed, 1]).exponential(load / 10, len(sent_s))
        found += find_saturation(sent_s, served_in_turn(sent_s, work_s), "begun") is not None
    assert found <= alarms if load < 1 else found >= alarms


def test_the_instant_is_that_from_which_requests_pile_up() -> None:
    """5 requests/s are served; 4/s come for 12 s, and 10/s for 18 s more."""
    sent_s = np.concatenate((np.arange(48) / 4, 12 + np.arange(180) / 10))
    found = find_saturation(sent_s, served_in_turn(sent_s, 0.2), "begun")
    assert found is not None
    assert found.from_s == pytest.approx(12, abs=0.5)
    assert (found.came_rps, found.served_rps) == (pytest.approx(10, rel=0.05), pytest.approx(5, rel=0.05))
    assert (found.waiting_before, found.waiting_after) == (pytest.approx(1, abs=1), pytest.approx(90, abs=2))
    assert found.wait_after_s is not None and found.wait_after_s > 10 * found.wait_before_s


BURST_S = np.sort(np.concatenate((np.arange(600) / 10, np.full(60, 59.0))))
"""One a tenth of a second, and 60 at once at the end."""
TICKS_S = np.repeat(np.arange(0, 60, 3.0), 20)


@pytest.mark.parametrize(
    ("sent_s", "left_s"),
    [
        pytest.param(BURST_S, served_in_turn(BURST_S, 0.08), id="burst at the end"),
        pytest.param(TICKS_S, served_in_turn(TICKS_S, 0.14), id="ticks that are worked off before the next"),
        pytest.param(np.arange(200) / 10, np.arange(200) / 10 + 30, id="each answer takes longer than the load"),
        pytest.param(np.arange(39) / 10, served_in_turn(np.arange(39) / 10, 0.5), id="39 requests"),
        pytest.param(np.zeros(100), np.arange(100.0), id="all at once"),
        pytest.param(np.zeros(0), np.zeros(0), id="none"),
        pytest.param(np.arange(400) / 10, served_in_turn(np.arange(400) / 10, 0.101), id="one percent too much"),
    ],
)
def test_what_is_not_evidence_of_saturation(sent_s: Floats, left_s: Floats) -> None:
    assert find_saturation(sent_s, left_s, "begun") is None


def test_a_server_that_recovers_kept_up_in_the_end() -> None:
    sent_s = np.concatenate((np.arange(100) / 10, 10 + np.arange(200) / 4))
    assert find_saturation(sent_s, served_in_turn(sent_s, 0.15), "begun") is None


def test_requests_that_never_begin_wait_for_ever() -> None:
    sent_s = np.arange(100) / 10
    found = find_saturation(sent_s, np.where(sent_s < 4, sent_s + 0.1, np.inf), "begun")
    assert found is not None and found.wait_after_s is None
    assert found.from_s == pytest.approx(4, abs=0.2)


# -- of a run ---------------------------------------------------------------------------------------------------------


def run_of(sent_s: Floats, begun_s: Floats, ended_s: Floats, **config: object) -> RunResult:
    made = sample_runs.run(num_requests=len(sent_s), failing=0)
    ns = [(1000 + np.array(column) * NS_PER_S).astype(int).tolist() for column in (sent_s, begun_s, ended_s)]
    records = [
        RequestRecord(
            index=i, workload="chat", scheduled_ns=sent, sent_ns=sent, first_token_ns=begun, last_token_ns=ended,
            finished_ns=ended, chunk_ns=[begun, ended], output_tokens=2, token_source="usage",
        )
        for i, (sent, begun, ended) in enumerate(zip(*ns, strict=True))
    ]  # fmt: skip
    info = msgspec.structs.replace(made.info, config=config, start_ns=1000)
    return replace(made, info=info, records=records, energy=[], engine=[])


OVERLOADED = np.arange(200) / 10


@pytest.mark.parametrize(
    ("config", "answer_s", "status"), [({}, 0.05, "ok"), ({}, 0.2, "warning"), ({"max_concurrency": 4}, 0.2, None)]
)
def test_the_check_says_what_came_and_what_was_served(config: dict[str, object], answer_s: float, status: str) -> None:
    begun_s = served_in_turn(OVERLOADED, answer_s)
    analysed = analyse_run(run_of(OVERLOADED, begun_s, begun_s + 1, **config))
    assert analysed.summary is not None
    check = check_server(analysed, analysed.summary)
    assert (check.name, check.status) == ("server", status)
    assert (check.reason is None) == (status != "warning")
    if check.reason:
        assert check.reason.startswith(
            "the server could not keep up from 0.0 s on: 10.1 requests/s came, 4.97/s were begun; 0 waited"
        )
        assert "the last answer ended 21.1 s after the last request was sent" in check.reason
        assert check.rows == ["ttft_s", "e2e_s", "response_s"]
    assert analysed.summary.verdict.check("server") == check


def test_a_server_that_begins_at_once_and_answers_ever_more_slowly_is_saturated_too() -> None:
    analysed = analyse_run(run_of(OVERLOADED, OVERLOADED + 0.01, served_in_turn(OVERLOADED, 0.2, 0.1)))
    assert analysed.summary is not None
    check = check_server(analysed, analysed.summary)
    assert check.reason and "4.97/s were answered" in check.reason and "ttft_s" not in check.rows


def test_the_load_of_a_server_by_hand() -> None:
    sent_s = np.array([0.0, 1, 2, 3, 4])
    result = run_of(sent_s, sent_s + 1.5, sent_s + 2)
    engine = [{"t_ns": 0.0, "running": 2.0, "waiting": 0.0}, {"t_ns": 1.0, "running": 1.0}]
    load = server_load(replace(result, engine=engine), 1000)
    assert load is not None
    assert (load.served_rps, load.waiting_max, load.drain_s) == (1.0, 2, 2.0)
    assert (load.engine_running_max, load.engine_waiting_max, load.saturation) == (2.0, 0.0, None)
    assert server_load(replace(result, records=[]), 1000) is None

"""The batch at an offered rate, against queues whose steady state is known and against the simulated engine."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from loadgen.cli import cli
from loadgen.energy_model.energy_profile import EnergyProfile, GridPoint, read_energy_profile
from loadgen.energy_model.estimate import surface
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.energy_model.offered_load import offered_load
from loadgen.errors import LoadgenError
from loadgen.simulator.cost_model import CounterOptions
from loadgen.simulator.engine import EngineOptions, SubmittedRequest, simulate
from loadgen.workload.token_bins import CountedPairs, count_pairs
from loadgen.workload.trace import read_trace

SIM = "h200-sim-llama-3.1-8b"
ONE_LENGTH = CountedPairs(*(np.array([value]) for value in (100, 50, 10)))


def profile(seconds_in_system: dict[int, float]) -> EnergyProfile:
    """A profile of one length whose requests take this long with so many in flight."""
    cells = [
        GridPoint(input=100, output=50, batch=b, joules_per_request=1.0, requests=10 * b, duration_s=10 * w)
        for b, w in seconds_in_system.items()
    ]
    return EnergyProfile(gpu="g", engine="e", model="m", simulated=True, idle_w=1.0, provenance={}, cells=tuple(cells))


@pytest.mark.parametrize("rps", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_an_engine_that_takes_one_request_at_a_time_is_a_single_server_queue(rps: float) -> None:
    load = offered_load(profile({1: 1.0}), ONE_LENGTH, rps)
    assert (load.busy, load.batch, load.capacity_rps) == (pytest.approx(rps), 1.0, pytest.approx(1.0))
    assert load.in_flight == pytest.approx(rps / (1 - rps))


@pytest.mark.parametrize("rps", [0.01, 0.5, 2.0, 20.0])
def test_an_engine_that_serves_any_number_as_fast_as_one_has_as_many_in_flight_as_arrive_meanwhile(rps: float) -> None:
    load = offered_load(profile({1: 2.0, 256: 2.0}), ONE_LENGTH, rps)
    assert load.in_flight == pytest.approx(2.0 * rps, rel=1e-3)
    assert load.busy == pytest.approx(1 - np.exp(-2.0 * rps), rel=1e-3)


@pytest.mark.parametrize(("rps", "beyond"), [(3.99, False), (4.0, True), (40.0, True)])
def test_beyond_the_largest_batch_there_is_no_steady_state(rps: float, beyond: bool) -> None:
    load = offered_load(profile({1: 1.0, 8: 2.0}), ONE_LENGTH, rps)
    assert load.capacity_rps == pytest.approx(4.0) and load.is_beyond_capacity == beyond
    assert (load.in_flight is None) == beyond and (load.batch == 8) == beyond


def test_the_batch_grows_with_the_rate_from_the_smallest_to_the_largest_measured() -> None:
    of = profile({4: 1.0, 64: 4.0})
    batches = [offered_load(of, ONE_LENGTH, rps).batch for rps in (1e-3, 1, 4, 8, 12, 15.99)]
    assert batches == sorted(batches)
    assert batches[0] == pytest.approx(4) and 32 < batches[-1] <= 64


def test_a_profile_without_times_has_no_rate() -> None:
    of = profile({1: 1.0, 8: 2.0})
    cells = (msgspec.structs.replace(of.cells[0], duration_s=None), *of.cells[1:])
    with pytest.raises(LoadgenError, match="without requests and duration_s: give --batch"):
        offered_load(msgspec.structs.replace(of, cells=cells), ONE_LENGTH, 1.0)


@pytest.mark.parametrize(("name", "rps"), [("chat", 0.5), ("chat", 4), ("chat", 12), ("code", 2), ("code", 8)])
def test_an_estimate_by_rate_holds_against_random_arrivals_at_the_simulated_engine(name: str, rps: float) -> None:
    requests = read_trace(Path(f"traces/{name}.jsonl")).requests[:1000]
    arrivals_s = np.cumsum(np.random.default_rng(1).exponential(1 / rps, len(requests)))
    of = read_energy_profile(SIM)
    submitted = [
        SubmittedRequest(int(at_s * 1e9), r.input_tokens, r.output_tokens)
        for at_s, r in zip(arrivals_s.tolist(), requests, strict=True)
    ]
    run = simulate(
        submitted, read_hardware(of.gpu), read_model(of.model), EngineOptions(max_num_seqs=256), CounterOptions(10**6)
    )
    lengths = np.array([(r.input_tokens, r.output_tokens) for r in requests])
    pairs = count_pairs([(lengths[:, 0], lengths[:, 1])])
    estimated_j = surface(of, offered_load(of, pairs, rps).batch).total(pairs)[0]
    assert estimated_j == pytest.approx(run.step_j, rel=0.06)


def estimate(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(cli, ["estimate", *arguments, "--profile", SIM, "--json"], catch_exceptions=False)
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_the_batch_comes_from_the_rate_that_is_given_or_from_the_traces_own() -> None:
    given = estimate("traces/chat.jsonl", "--rps", "4")
    own = estimate("traces/chat.jsonl")
    assert given["batch_from"]["source"] == "--rps" and 4 < given["batch"] < 6  # type: ignore[index, operator]
    trace = read_trace(Path("traces/chat.jsonl"))
    assert own["batch_from"]["source"] == "the trace's own rate"  # type: ignore[index]
    assert own["batch_from"]["rps"] == pytest.approx(trace.mean_rps)  # type: ignore[index]
    assert estimate("azure-2023-chat", "--batch", "7")["batch_from"] == {"source": "--batch"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["traces/chat.jsonl", "--rps", "4"],
            "at batch 5.072 batch: 4 requests/s (--rps) at random keep 5.219 in flight",
        ),
        (
            ["traces/chat.jsonl", "--rps", "30"],
            "is beyond the capacity of 19.71/s at the largest batch of the profile: the queue grows",
        ),
        (["traces/chat.jsonl"], "requests/s (the trace's own rate) at random keep"),
        (["azure-2023-chat", "--batch", "7"], "at batch 7 batch: from --batch"),
    ],
)
def test_the_terminal_says_what_batch_was_used_and_why(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, ["estimate", *arguments, "--profile", SIM], catch_exceptions=False)
    assert said in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["azure-2023-chat"], "These lengths have no rate: give --rps, --measured RUN or --batch"),
        (["traces/chat.jsonl", "--rps", "4", "--batch", "7"], "use --batch or --rps, not both"),
        (["traces/chat.jsonl", "--rps", "0"], "--rps"),
    ],
)
def test_without_one_hint_or_with_two_the_command_asks_in_one_line(arguments: list[str], fault: str) -> None:
    result = CliRunner().invoke(cli, ["estimate", *arguments, "--profile", SIM])
    assert result.exit_code != 0
    assert fault in (result.output + str(result.exception))

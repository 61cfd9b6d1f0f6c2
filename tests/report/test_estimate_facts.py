"""The facts of an estimate: totals, emissions and cost by hand, and a measured run that may stand beside them."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from loadgen.cli import cli
from loadgen.energy_model.energy_profile import EnergyProfile, GridPoint, read_energy_profile
from loadgen.energy_model.estimate import estimates
from loadgen.errors import LoadgenError
from loadgen.report import estimate_facts as facts
from loadgen.report.estimate_terminal import BINS_SHOWN, bins_table, print_estimate
from loadgen.results.run_folder import RunResult
from loadgen.workload.token_bins import CountedPairs, count_pairs
from support import sample_runs

SIM = "h200-sim-llama-3.1-8b"
NO_RATES: dict[str, float | None] = {"pue": 1.0, "grid_intensity_g_per_kwh": None, "price_per_kwh": None}


def one_point() -> EnergyProfile:
    """Return a profile in which a request of 100 input and 10 output tokens takes 36 J."""
    point = GridPoint(input=100, output=10, batch=4, joules_per_request=36.0)
    return EnergyProfile(
        gpu="h200", engine="none", model="unknown", simulated=True, idle_w=None, provenance={}, cells=(point,)
    )


def pairs(*rows: tuple[int, int, int]) -> CountedPairs:
    return CountedPairs(*(np.array(side, np.int64) for side in zip(*rows, strict=True)))


def estimated(**rates: float) -> dict[str, Any]:
    return facts.estimate_facts("t", pairs((100, 10, 50)), one_point(), 4.0, (None, None), NO_RATES | rates)


def test_energy_emissions_and_cost_of_fifty_requests_by_hand() -> None:
    answer = estimated(pue=1.5, grid_intensity_g_per_kwh=400.0, price_per_kwh=0.2)
    row = next(row for row in answer["estimates"] if row["method"] == "interpolated")
    assert row["joules"] == pytest.approx(1800) and row["joules_per_request"] == pytest.approx(36)
    assert row["kwh"] == pytest.approx(0.0005)
    assert row["co2e_kg"] == pytest.approx(0.0003)  # 0.0005 kWh x 1.5 x 400 g
    assert row["cost"] == pytest.approx(0.00015)
    assert (answer["requests"], answer["input_tokens"], answer["output_tokens"]) == (50, 5000, 500)
    assert answer["assumed"] == {"pue": 1.5, "grid_intensity_g_per_kwh": 400.0, "price_per_kwh": 0.2}


def test_without_a_price_or_an_intensity_there_is_neither_cost_nor_emission() -> None:
    answer = estimated()
    assert all("cost" not in row and "co2e_kg" not in row for row in answer["estimates"])
    assert answer["assumed"] == {"pue": 1.0} and answer["two_phase"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((None, "qwen3-30b-a3b"), "measured with model unknown, not qwen3-30b-a3b"),
        ((None, "unknown"), "called 'unknown'"),  # a requested file must exist
    ],
)
def test_the_shapes_of_another_profile_are_refused(options: tuple[str | None, str | None], message: str) -> None:
    with pytest.raises(LoadgenError, match=message):
        facts.read_shapes(one_point(), *options)


def test_a_profile_may_name_a_model_without_a_file() -> None:
    hardware, model = facts.read_shapes(one_point(), None, None)
    assert hardware is not None and hardware.name == "h200" and model is None


# -- beside a measured run --------------------------------------------------------------------------------------------


def with_energy(run: RunResult, **energy: Any) -> RunResult:
    assert run.summary is not None
    changed = msgspec.structs.replace(run.summary.energy, **energy)
    return replace(run, summary=msgspec.structs.replace(run.summary, energy=changed))


def with_server(run: RunResult, **server: Any) -> RunResult:
    return replace(run, info=msgspec.structs.replace(run.info, server=run.info.server | server))


RUN = sample_runs.run(num_requests=40)
RUNS = [
    (RUN, None),
    (with_energy(RUN, valid=False, reasons=["it stood still"]), "no valid energy to compare with: it stood still"),
    (with_energy(RUN, attributed_joules=None), "no valid energy to compare with: no energy was measured"),
    (with_server(RUN, simulated=False), "is of a simulated GPU, .* of a real one"),
    (with_server(RUN, model="mistral"), "is of model llama-3.1-8b, .* of mistral"),
]


@pytest.mark.parametrize(("run", "message"), RUNS)
def test_a_run_is_comparable_if_its_energy_gpu_and_model_allow_it(
    monkeypatch: pytest.MonkeyPatch, run: RunResult, message: str | None
) -> None:
    monkeypatch.setattr(facts, "load_run", lambda path: run)
    profile = read_energy_profile(SIM)
    if message is None:
        assert facts.comparable_run(Path("run"), profile) is run
    else:
        with pytest.raises(LoadgenError, match=message):
            facts.comparable_run(Path("run"), profile)


def test_the_name_under_which_a_model_was_served_is_comparable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = msgspec.structs.replace(read_energy_profile(SIM), provenance={"served_model": "meta/llama"})
    for model in ("meta/llama", "llama-3.1-8b"):
        served = with_server(RUN, model=model)
        monkeypatch.setattr(facts, "load_run", lambda path, served=served: served)
        assert facts.comparable_run(Path("run"), profile) is served


def test_the_mean_decoding_is_over_the_time_from_first_to_last_chunk_or_else_in_flight() -> None:
    first, second = RUN.records[:2]
    start = first.sent_ns or 0

    def timed(record: Any, sent: int, chunks: list[int], finished: int) -> Any:
        return msgspec.structs.replace(
            record,
            sent_ns=start + sent,
            chunk_ns=[start + chunk for chunk in chunks],
            finished_ns=start + finished,
        )

    two = replace(RUN, records=[timed(first, 0, [10, 20], 21), timed(second, 0, [10, 15, 30], 31)])
    assert facts.mean_decoding(two) == pytest.approx((10 + 20) / 20)
    single = replace(RUN, records=[timed(first, 0, [10], 20), timed(second, 10, [15], 30)])
    assert facts.mean_decoding(single) == pytest.approx((20 + 20) / 30)


def test_ratios_are_the_estimates_of_the_completed_requests_over_the_joules_measured_meanwhile() -> None:
    run = with_energy(
        sample_runs.run(num_requests=40, failing=0.3),
        attributed_joules=900.0,
        unattributed_joules=100.0,
        idle_joules=50.0,
    )
    profile = read_energy_profile(SIM)
    compared = facts.measured_facts(run, profile, 8.0, (None, None), "folder")
    completed = [
        (planned.input_tokens, planned.output_tokens)
        for planned, record in zip(run.schedule, run.records, strict=True)
        if record.ok
    ]
    assert 0 < len(completed) < len(run.records), "some requests failed"
    inputs, outputs = np.array(completed).T
    expected = estimates(count_pairs([(inputs, outputs)]), profile, 8.0, None, None)
    assert compared["ratios"] == pytest.approx({result.method: result.joules / 1000 for result in expected})
    assert (compared["requests"], compared["joules"], compared["idle_joules"]) == (len(completed), 1000.0, 50.0)


def test_answers_of_no_requested_length_are_estimated_at_the_length_that_they_had() -> None:
    """So are prompts whose tokens only the server counted; without its count there is no estimate."""
    run = with_energy(sample_runs.run(num_requests=8, failing=0), attributed_joules=900.0, unattributed_joules=0.0)
    profile = read_energy_profile(SIM)
    compared = facts.measured_facts(run, profile, 8.0, (None, None), "folder")
    natural = [
        msgspec.structs.replace(request, input_tokens=None, output_tokens=1, natural=True) for request in run.schedule
    ]
    records = [
        msgspec.structs.replace(record, input_tokens=request.input_tokens, output_tokens=request.output_tokens)
        for request, record in zip(run.schedule, run.records, strict=True)
    ]
    same = facts.measured_facts(replace(run, schedule=natural, records=records), profile, 8.0, (None, None), "folder")
    assert same["ratios"] == pytest.approx(compared["ratios"])
    uncounted = [msgspec.structs.replace(record, input_tokens=None) for record in records]
    with pytest.raises(LoadgenError, match="the lengths of request 0 are not known"):
        facts.measured_facts(replace(run, schedule=natural, records=uncounted), profile, 8.0, (None, None), "folder")


def test_a_run_without_completed_requests_is_not_compared() -> None:
    with pytest.raises(LoadgenError, match="folder: no request completed"):
        facts.measured_facts(sample_runs.without_completions(), one_point(), 4.0, (None, None), "folder")


@pytest.mark.parametrize("batch", [None, 2.0])
def test_the_command_compares_a_run_at_its_own_batch_unless_one_is_requested(
    monkeypatch: pytest.MonkeyPatch, batch: float | None
) -> None:
    monkeypatch.setattr(facts, "load_run", lambda path: RUN)
    arguments = ["estimate", "traces/chat.jsonl", "--profile", SIM, "--measured", "RUN", "--json"]
    arguments += ["--batch", str(batch)] if batch else []
    answer = msgspec.json.decode(CliRunner().invoke(cli, arguments, catch_exceptions=False).output)
    measured = answer["measured"]
    assert measured["run"] == "RUN" and answer["requests"] == 2000
    assert measured["mean_decoding"] == facts.mean_decoding(RUN)
    assert answer["batch"] == (batch or min(128.0, max(1.0, facts.mean_decoding(RUN))))
    ratios = measured["ratios"]
    assert ratios["ideal, sparse peak"] < ratios["ideal, dense peak"] < ratios["interpolated"] < ratios["ceiling"]


# -- on a terminal ----------------------------------------------------------------------------------------------------


def printed(answer: dict[str, Any]) -> str:
    out = io.StringIO()
    print_estimate(Console(file=out, width=100), answer)
    return out.getvalue()


def test_an_estimate_is_printed_with_what_was_assumed_and_measured() -> None:
    text = printed(estimated())
    assert "t: 50 requests, 5,000 input and 500 output tokens" in text
    assert "estimate from h200-none-unknown (simulated) at batch 4" in text
    assert "assumed" not in text and "measured:" not in text
    assert "assumed: pue 1.5, price per kwh 2" in " ".join(printed(estimated(pue=1.5, price_per_kwh=2.0)).split())
    text = printed(estimated(grid_intensity_g_per_kwh=350.0) | {"grid_source": "A\x1b[2J[red], 2024"})
    assert "grid intensity g per kwh 350 (grid intensity: A" in text and "[red], 2024)" in text and "\x1b" not in text
    profile = read_energy_profile(SIM)
    measured = facts.measured_facts(RUN, profile, 8.0, (None, None), "folder") | {"mean_decoding": 3.25}
    answer = facts.estimate_facts("t", pairs((100, 10, 50)), profile, 8.0, (None, None), NO_RATES)
    text = printed(answer | {"measured": measured})
    assert "/ measured" in text and f"{measured['ratios']['interpolated']:.3f}" in text
    assert f"{measured['requests']} requests of folder, 3.25 decoded together" in text


def test_the_bins_that_cost_most_have_shares_of_the_energy_of_all() -> None:
    rows = [
        {"input_edge": 1024 * k, "output_edge": 8, "requests": k, "ceiling_joules": 3.0 * k, "interpolated_joules": k}
        for k in range(20, 0, -1)
    ]
    table = bins_table(rows)
    assert table.row_count == BINS_SHOWN
    out = io.StringIO()
    Console(file=out, width=100).print(table)
    row = next(line for line in out.getvalue().splitlines() if "20,480" in line)
    assert row.split() == ["20,480", "8", "20", "9.5%", "3.00"]  # 20 of 210 J

"""From a run folder's records and samples to its summary: the parts that are not attribution."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.energy.series import EnergyDomain, EnergySample
from loadgen.record import RequestRecord
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.results.summary import EnergySummary, Summary
from loadgen.results.verdict import LAW_ROWS
from loadgen.units import NS_PER_S
from loadgen.workload.schedule import ArrivalSpec
from support import sample_runs

STEP_NS = NS_PER_S // 100


def steady_run(
    requests: int = 200, in_flight: int = 10, tokens: int = 100, watts: float = 400.0, **changes: object
) -> RunResult:
    """Ten streams at any time, a chunk every 10 ms, one counter at a constant power, 5 s of idle before and after."""
    records = []
    for index in range(requests):
        sent = 5 * NS_PER_S + index * tokens // in_flight * STEP_NS
        chunks = [sent + (k + 1) * STEP_NS for k in range(tokens)]
        records.append(
            RequestRecord(
                index=index, workload="chat", scheduled_ns=sent, sent_ns=sent, first_token_ns=chunks[0],
                last_token_ns=chunks[-1], finished_ns=chunks[-1], chunk_ns=chunks, input_tokens=50,
                output_tokens=tokens, cached_tokens=0, token_source="usage", status=200, finish_reason="length",
            )
        )  # fmt: skip
    end = (records[-1].finished_ns or 0) + 5 * NS_PER_S
    t_ns = np.arange(0, end, NS_PER_S // 10)
    busy = (t_ns >= 5 * NS_PER_S) & (t_ns < end - 5 * NS_PER_S)
    joules = np.concatenate(([0.0], np.cumsum(np.where(busy, watts, 100.0)[:-1] / 10)))
    samples = [EnergySample(int(t), "gpu:0", float(j)) for t, j in zip(t_ns, joules, strict=True)]
    made = sample_runs.run(num_requests=5)
    info = msgspec.structs.replace(
        made.info,
        domains=[EnergyDomain(name="gpu:0", source="nvml-counter", period_s=0.1)],
        instrument={},
        config={},
        **changes,
    )
    return RunResult(info, [], records, samples, [], None, None)


def summary_of(result: RunResult) -> Summary:
    schedule = [
        sample_runs.ScheduledRequest(
            index=r.index, offset_ns=0, workload="chat", input_tokens=50, output_tokens=r.output_tokens or 0
        )
        for r in result.records
    ]
    summary = analyse_run(
        RunResult(result.info, schedule, result.records, result.energy, result.engine, None, None)
    ).summary
    assert summary is not None
    return summary


def energy_of(result: RunResult) -> EnergySummary:
    return summary_of(result).energy


def test_the_steady_state_leaves_out_ramp_and_drain() -> None:
    """Ten streams at 100 tokens/s each and 400 W: 0.4 J per output token, whatever happens at the ends."""
    energy = energy_of(steady_run())
    steady = energy.steady
    assert steady is not None
    assert steady.joules_per_output_token == pytest.approx(0.4, rel=0.01)
    assert 0 < steady.start_s < 2
    assert steady.end_s == pytest.approx(19.9, abs=0.3)
    assert (energy.joules_per_output_token or 0) > (steady.joules_per_output_token or 0)


def test_a_run_too_short_for_it_has_no_steady_state() -> None:
    assert energy_of(steady_run(requests=15)).steady is None


def test_idle_and_totals_carry_errors() -> None:
    energy = energy_of(steady_run())
    assert energy.valid, energy.reasons
    assert energy.idle_watts == pytest.approx(100)
    assert energy.measured_se_joules == 0, "an exact counter"
    assert energy.attributed_se_joules == pytest.approx(0, abs=1e-6)


def test_the_sums_of_a_run_and_of_each_workload_have_their_errors() -> None:
    made = steady_run()
    summary = summary_of(made)
    [workload] = summary.by_workload.values()
    assert workload.attributed_se_joules is not None and summary.energy.prefill_se_joules is not None
    assert workload.prefill_se_joules == summary.energy.prefill_se_joules, "all requests are of one workload"
    assert workload.attributed_se_joules < 0.01 * (workload.attributed_joules or 0)


def test_a_law_that_explains_nothing_invalidates_what_it_decides_and_no_total() -> None:
    """Equal work in all windows, whose power varies by itself."""
    noisy = steady_run()
    rng = np.random.default_rng(0)
    grown = np.diff([sample.joules for sample in noisy.energy])
    joules = np.concatenate(([0.0], np.cumsum(grown * np.where(grown > 10, rng.uniform(0.5, 1.5, len(grown)), 1.0))))
    samples = [EnergySample(s.t_ns, s.domain, float(j)) for s, j in zip(noisy.energy, joules, strict=True)]
    summary = summary_of(replace(noisy, energy=samples))
    energy, check = summary.energy, summary.verdict.check("energy")
    assert (energy.valid, energy.totals_valid) == (False, True)
    assert energy.held_out_r_squared is not None and energy.held_out_r_squared < 0
    assert "there was little to explain" in " ".join(energy.fit_notes)
    assert (check.status, check.rows) == ("warning", list(LAW_ROWS))
    assert (check.reason or "").startswith("the energy of requests is not valid: the fitted law explains nothing")


@pytest.mark.parametrize(
    ("source", "length"),
    [
        ("nvml-power-average", "1 s"),
        ("hwmon-power-average", "more than 0.1 s, or a time that is not known"),
        ("redfish-power", "up to minutes"),
    ],
)
def test_power_averaged_over_a_longer_time_supports_no_claim_about_requests(source: str, length: str) -> None:
    slow = steady_run()
    info = msgspec.structs.replace(slow.info, domains=[EnergyDomain(name="gpu:0", source=source)])
    energy = energy_of(RunResult(info, slow.schedule, slow.records, slow.energy, [], None, None))
    assert not energy.valid
    assert any(f"averaged over {length}: too slow" in reason for reason in energy.reasons)


@pytest.mark.parametrize(
    ("shares", "reasons"),
    [
        ({}, []),
        ({"power cap": 0.9}, []),
        ({"hardware thermal slowdown": 0.005}, []),
        (
            {"hardware thermal slowdown": 0.25, "power cap": 0.5},
            ["gpu:0 was throttled: hardware thermal slowdown in 25% of the readings of its clocks"],
        ),
    ],
)
def test_a_throttled_gpu_supports_no_claim(shares: dict[str, float], reasons: list[str]) -> None:
    made = steady_run()
    instrument = {"sampler": {"held_back": {"gpu:0": shares}}}
    energy = energy_of(replace(made, info=msgspec.structs.replace(made.info, instrument=instrument)))
    assert (energy.valid, energy.reasons) == (not reasons, reasons)


def test_a_meter_that_dies_in_mid_run_is_a_gap() -> None:
    whole = steady_run()
    half = RunResult(whole.info, whole.schedule, whole.records, whole.energy[: len(whole.energy) // 2], [], None, None)
    energy = energy_of(half)
    assert not energy.valid
    assert energy.coverage == pytest.approx(0.5, abs=0.1)
    assert any("of the run's time" in reason for reason in energy.reasons)


def test_a_run_without_idle_says_so() -> None:
    busy = steady_run()
    inside = [sample for sample in busy.energy if 5 * NS_PER_S <= sample.t_ns <= 25 * NS_PER_S]
    reasons = energy_of(RunResult(busy.info, busy.schedule, busy.records, inside, [], None, None)).reasons
    assert any("never idle" in reason for reason in reasons)


def test_other_clients_make_it_invalid() -> None:
    ours = steady_run()
    engine = [
        {"t_ns": 0.0, "generation_tokens": 0.0, "prompt_tokens": 0.0, "iterations": 0.0},
        {"t_ns": 40e9, "generation_tokens": 40_000.0, "prompt_tokens": 20_000.0, "iterations": 2010.0},
    ]
    energy = energy_of(RunResult(ours.info, ours.schedule, ours.records, ours.energy, engine, None, None))
    assert energy.coverage == pytest.approx(0.5, abs=0.01)
    assert any("50.0% of the engine's output tokens were ours" in reason for reason in energy.reasons)
    assert (energy.unattributed_joules or 0) > 0.2 * (energy.measured_joules or 0)


@pytest.mark.parametrize(
    ("instrument", "says"),
    [
        ({}, None),
        ({"loop_delay_s": {"p99": 0.001}}, None),
        ({"loop_delay_s": {"p90": 0.02, "p99": 0.02}}, "woke late"),
        ({"processes": [{"ended": "exit status 1", "requests": 4, "lost": 3}]}, "process 1 of 1 ended early"),
    ],
)
def test_a_spoiled_run_says_so(instrument: dict[str, object], says: str | None) -> None:
    made = steady_run()
    info = msgspec.structs.replace(made.info, instrument=instrument)
    found = summary_of(RunResult(info, [], made.records, made.energy, [], None, None)).instrument
    assert any(says in verdict for verdict in found.verdicts) if says else not found.verdicts
    assert found.kept_time is (says is None)


def test_prompts_that_a_cache_knew_are_said() -> None:
    made = steady_run()
    knew = [msgspec.structs.replace(record, cached_tokens=48) for record in made.records]
    verdicts = summary_of(RunResult(made.info, [], knew, made.energy, [], None, None)).instrument.verdicts
    assert any(
        verdict.startswith("96% of the prompt tokens came from the server's prefix cache") for verdict in verdicts
    )
    assert not summary_of(made).instrument.verdicts


# -- did requests come as asked? --------------------------------------------------------------------------------------


def came(asked: list[ArrivalSpec], config: dict[str, object] | None = None, wakes_s: float | None = None) -> Summary:
    """400 requests without energy, Poisson at 4/s, a quarter code; the client may send only each time it wakes."""
    made = sample_runs.run(failing=0)
    info = msgspec.structs.replace(made.info, asked=asked, config=config or {}, start_ns=sample_runs.START_NS)
    period_ns = round((wakes_s or 0) * NS_PER_S) or 1
    records = [msgspec.structs.replace(r, sent_ns=-(-(r.sent_ns or 0) // period_ns) * period_ns) for r in made.records]
    summary = analyse_run(RunResult(info, made.schedule, records, [], [], None, None)).summary
    assert summary is not None
    return summary


def poisson(rate_rps: float, workload: str | None = None) -> ArrivalSpec:
    return ArrivalSpec(workload=workload, process="poisson", rate_rps=rate_rps)


def test_arrivals_as_asked_are_said_to_be() -> None:
    check = came([poisson(4)]).arrivals
    assert check is not None
    assert (check.as_asked, check.verdict) == (True, "as asked")
    assert check.sent.rate == pytest.approx(4, rel=0.15)
    assert check.sent.ks is not None and check.sent.ks_critical is not None and check.sent.ks < check.sent.ks_critical
    assert check.sent.dispersion == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize(
    ("asked", "wakes_s", "says"),
    [
        (poisson(8), None, "not as asked, as scheduled: 3.9 requests/s instead of 8"),
        (ArrivalSpec(workload=None, process="constant", rate_rps=3.9), None, "as scheduled: gaps vary by 101%"),
        (poisson(4), 1.0, "not as asked, as sent: gaps are not exponential"),
        (ArrivalSpec(workload=None, process="trace", rate_rps=4), 1.0, "as sent: gaps are not those scheduled"),
    ],
)
def test_other_arrivals_are_said_not_to_be(asked: ArrivalSpec, wakes_s: float | None, says: str) -> None:
    summary = came([asked], wakes_s=wakes_s)
    assert summary.arrivals is not None and summary.arrivals.as_asked is False
    assert says in summary.arrivals.verdict
    assert any("did not come as requested: as s" in verdict for verdict in summary.instrument.verdicts)


def test_every_stream_has_a_verdict_and_the_run_has_them_all() -> None:
    summary = came([poisson(3, "chat"), poisson(7, "code")])
    streams = {name: part.arrivals for name, part in summary.by_workload.items()}
    assert {name: check and check.as_asked for name, check in streams.items()} == {"chat": True, "code": False}
    assert summary.arrivals is not None and summary.arrivals.as_asked is False
    assert summary.arrivals.verdict.startswith("chat: as asked; code: not as asked")
    reason = summary.verdict.check("load").reason or ""
    assert reason.startswith("requests did not come as requested: chat: as asked; code: not as asked")


def test_a_closed_loop_is_not_judged_and_nor_is_what_nobody_asked() -> None:
    closed = came([poisson(400)], {"max_concurrency": 4}).arrivals
    assert closed is not None and closed.as_asked is None and "closed the loop" in closed.verdict
    assert came([]).arrivals is None


def test_streams_are_held_to_their_own_limits() -> None:
    chat, code = {"ttft": 1e-6}, {"e2el": 1e9}
    summary = came([], {"streams": {"chat": {"goodput": chat}, "code": {"goodput": code}}})
    assert summary.goodput is not None
    parts = {name: part.goodput for name, part in summary.by_workload.items()}
    assert parts["chat"] and parts["code"]
    assert (parts["chat"].slo_ms, parts["chat"].good) == (chat, 0)
    assert (parts["code"].slo_ms, parts["code"].ratio) == (code, 1.0)
    assert (summary.goodput.slo_ms, summary.goodput.good) == ({}, parts["code"].good)
    assert summary.goodput.ratio == pytest.approx(parts["code"].good / 400)
    only = came([], {"streams": {"code": {"goodput": code}}})
    assert only.goodput is not None and (only.goodput.ratio, only.by_workload["chat"].goodput) == (1.0, None)
    whole = came([], {"goodput": code}).goodput
    assert whole is not None
    assert whole == msgspec.structs.replace(only.goodput, good=400, slo_ms=code, rps=whole.rps, met={"e2el": 400})


@pytest.mark.parametrize(
    ("domain", "reasons", "status"),
    [
        ("cpu:package-0", ["nvml: CUDA_VISIBLE_DEVICES=7: there is no GPU '7' here"], "warning"),
        ("cpu:package-0", [], "ok"),
        ("gpu:0", ["nvml: no NVIDIA driver here"], "ok"),
    ],
)
def test_joules_of_the_cpu_alone_say_why_no_gpu_was_measured(domain: str, reasons: list[str], status: str) -> None:
    run = steady_run()
    domains = [EnergyDomain(name=domain, source="rapl")]
    info = msgspec.structs.replace(run.info, domains=domains, energy_reasons=reasons)
    energy = [msgspec.structs.replace(sample, domain=domain) for sample in run.energy]
    check = summary_of(RunResult(info, run.schedule, run.records, energy, [], None, None)).verdict.check("energy")
    assert check.status == status
    assert all(reason in (check.reason or "") for reason in reasons) or status == "ok"


def test_the_requests_of_each_tag_are_summed_up_and_sum_to_the_run() -> None:
    made = sample_runs.run(failing=0)
    schedule = [
        msgspec.structs.replace(request, tags={"team": "x"} | ({"tenant": "ab"[i % 2]} if i % 3 else {}))
        for i, request in enumerate(made.schedule)
    ]
    summary = analyse_run(replace(made, schedule=schedule)).summary
    assert summary is not None and list(summary.by_tag) == ["team=x", "tenant=", "tenant=a", "tenant=b"]
    parts = [part for label, part in summary.by_tag.items() if label.startswith("tenant=")]
    assert sum(part.tokens.output or 0 for part in parts) == summary.tokens.output
    assert sum(part.requests.scheduled for part in parts) == summary.requests.scheduled
    joules = summary.energy.attributed_joules
    assert sum(part.attributed_joules or 0 for part in parts) == pytest.approx(joules, abs=0.002)
    assert summary.by_tag["team=x"].attributed_joules == joules
    assert all(part.attributed_se_joules is not None for part in parts)
    plain = analyse_run(made).summary
    assert plain is not None and plain.by_tag == {}


def test_the_requests_of_each_model_are_summed_up_where_there_are_several() -> None:
    """A request that names no model is of the run's; the joules of all models are those of all requests."""
    made = sample_runs.run(failing=0)
    info = msgspec.structs.replace(made.info, server={"model": "base"})
    schedule = [
        msgspec.structs.replace(request, model="lora" if i % 3 == 0 else None)
        for i, request in enumerate(made.schedule)
    ]
    summary = analyse_run(replace(made, info=info, schedule=schedule)).summary
    assert summary is not None and list(summary.by_model) == ["base", "lora"]
    assert summary.by_model["lora"].requests.scheduled == sum(request.model == "lora" for request in schedule)
    assert sum(part.tokens.output or 0 for part in summary.by_model.values()) == summary.tokens.output
    joules = sum(part.attributed_joules or 0 for part in summary.by_model.values())
    assert joules == pytest.approx(summary.energy.attributed_joules)
    plain = analyse_run(made).summary
    assert plain is not None and plain.by_model == {}


@pytest.mark.parametrize("counts", ["none", "one for all"])
def test_prompts_that_the_server_does_not_count_cost_what_was_planned_and_are_in_no_ratio(counts: str) -> None:
    made = sample_runs.run(failing=0)
    uncounted = [
        msgspec.structs.replace(record, input_tokens=None if counts == "none" else 100) for record in made.records
    ]
    planned = [
        msgspec.structs.replace(record, input_tokens=request.input_tokens)
        for request, record in zip(made.schedule, made.records, strict=True)
    ]
    result, truth = (analyse_run(replace(made, records=records)) for records in (uncounted, planned))
    assert result.attribution is not None and truth.attribution is not None
    assert result.attribution == truth.attribution
    assert result.summary is not None and truth.summary is not None
    assert (result.summary.tokens.input, result.summary.energy.joules_per_token) == (None, None)
    assert result.summary.energy.joules_per_output_token == truth.summary.energy.joules_per_output_token
    assert {part.joules_per_token for part in result.summary.by_workload.values()} == {None}


def test_kinds_of_output_have_tokens_joules_and_a_time_to_the_first_answer_token() -> None:
    """Even requests think in every other chunk but the last."""
    result = steady_run(40)
    records = [
        msgspec.structs.replace(
            record,
            kinds=[("reasoning", len(record.chunk_ns) - 2), ("answer", 2)]
            if record.index % 2 == 0
            else [("answer", len(record.chunk_ns))],
            reasoning_tokens=None,
            input_image_tokens=5,
        )
        for record in result.records
    ]
    summary = summary_of(replace(result, records=records))
    kinds, energy = summary.output_kinds, summary.energy
    assert list(kinds) == ["reasoning", "answer"]
    assert sum(kind.tokens for kind in kinds.values()) == summary.tokens.output
    assert sum(kind.joules or 0 for kind in kinds.values()) == pytest.approx(energy.decode_joules)
    assert kinds["reasoning"].requests == 20 and (kinds["reasoning"].joules or 0) > 0
    assert summary.ttfa_s.count == 40 and (summary.ttfa_s.max or 0) > (summary.ttft_s.max or 0)
    assert (summary.tokens.reasoning, summary.tokens.input_image) == (None, 200)
    assert {name: part.output_kinds for name, part in summary.by_workload.items()} == {"chat": kinds}


def test_the_folder_of_an_older_version_has_no_kinds() -> None:
    summary = summary_of(steady_run(40))
    assert (summary.output_kinds, summary.ttfa_s.count) == ({}, 0)

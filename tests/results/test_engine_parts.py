"""Each of several engines has a law and a conservation of its own, and a request owes those that served it."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.attribution.shapley import RunAttribution
from loadgen.results.engine_parts import engine_parts
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.units import NS_PER_S
from support.fleet_runs import Fleet, disaggregated, replicas, sharing


@pytest.fixture(scope="module")
def two_replicas() -> Fleet:
    return replicas()


@pytest.fixture(scope="module")
def split() -> Fleet:
    return disaggregated()


def attributed(result: RunResult) -> RunAttribution:
    attribution = analyse_run(result).attribution
    assert attribution is not None
    attribution.check()
    for account in attribution.engines.values():
        account.check()
    return attribution


def errors(joules: list[float | None], truth: np.ndarray) -> tuple[float, float]:
    """Return median and 90th percentile of the relative errors."""
    relative = np.abs(np.array(joules, dtype=np.float64) - truth) / truth
    return float(np.median(relative)), float(np.percentile(relative, 90))


def without_headers(result: RunResult) -> RunResult:
    return replace(result, records=[msgspec.structs.replace(record, engines=None) for record in result.records])


def test_a_request_at_a_replica_has_what_it_cost_there(two_replicas: Fleet) -> None:
    attribution = attributed(two_replicas.result)
    truth = sum(two_replicas.truth.values())
    median, p90 = errors([share.joules for share in attribution.requests], truth)
    assert median < 0.01
    assert p90 < 0.03
    assert [share.engine for share in attribution.requests] == two_replicas.served_by
    assert {share.engine_probability for share in attribution.requests} == {1.0}


def test_the_engines_accounts_sum_to_the_run_s_and_each_to_its_own_counter(two_replicas: Fleet) -> None:
    result = analyse_run(two_replicas.result)
    assert result.summary is not None
    energy, engines = result.summary.energy, result.summary.energy.engines
    assert [engine.name for engine in engines] == ["a", "b"]
    for name in ("measured", "idle", "prefill", "decode", "unattributed"):
        parts = [getattr(engine, f"{name}_joules") for engine in engines]
        assert sum(parts) == pytest.approx(getattr(energy, f"{name}_joules"), abs=1e-6)
    assert [engine.requests for engine in engines] == [two_replicas.served_by.count(name) for name in ("a", "b")]
    assert energy.valid, energy.reasons


def test_where_nothing_names_the_engine_the_counters_do_and_the_error_says_how_surely(two_replicas: Fleet) -> None:
    attribution = attributed(without_headers(two_replicas.result))
    right = [share.engine == engine for share, engine in zip(attribution.requests, two_replicas.served_by, strict=True)]
    sure = np.array([share.engine_probability or 0.5 for share in attribution.requests])
    assert np.mean(right) > 0.8
    assert abs(np.mean(right) - sure.mean()) < 0.1
    named = attributed(two_replicas.result)
    doubtful = sure < 0.9
    assert all(
        (share.se_joules or 0) > (of_named.se_joules or 0)
        for share, of_named, is_doubtful in zip(attribution.requests, named.requests, doubtful, strict=True)
        if is_doubtful and share.joules is not None
    )


def test_a_split_request_owes_one_engine_its_prefill_and_the_other_its_decode(split: Fleet) -> None:
    attribution = attributed(split.result)
    median, p90 = errors([share.prefill_joules for share in attribution.requests], split.truth["p"])
    assert median < 0.01
    assert p90 < 0.03
    median, p90 = errors([share.decode_joules for share in attribution.requests], split.truth["d"])
    assert median < 0.01
    assert p90 < 0.03
    assert {(share.prefill_engine, share.engine) for share in attribution.requests} == {("p", "d")}
    prompts, answers = attribution.engines["p"], attribution.engines["d"]
    assert sum(share.decode_joules or 0 for share in prompts.requests) == 0
    assert sum(share.prefill_joules or 0 for share in answers.requests) == 0


def test_keys_and_values_from_the_other_engine_are_no_saving_of_a_cache(split: Fleet) -> None:
    attribution = attributed(split.result)
    assert all(share.saved_joules in (None, 0.0) for share in attribution.requests)
    assert all(share.saved_joules is None for share in attribution.engines["d"].requests)


def test_one_law_over_both_engines_books_decode_at_the_engine_of_prompts(split: Fleet) -> None:
    """The reason for a law of each: with one, a large part of what the prefill GPU used is not prefill."""
    run = split.result
    one = attributed(replace(run, info=msgspec.structs.replace(run.info, engines=[]), spans=[], engines={}))
    of_each = attributed(run)
    truth = split.truth["p"].sum()
    assert abs(sum(share.prefill_joules or 0 for share in of_each.requests) / truth - 1) < 0.01
    assert abs(sum(share.prefill_joules or 0 for share in one.requests) / truth - 1) > 0.1


@pytest.mark.parametrize("change", [without_headers, lambda result: replace(without_headers(result), spans=[])])
def test_of_one_engine_for_each_role_nothing_has_to_name_it(split: Fleet, change: Callable[..., RunResult]) -> None:
    attribution = attributed(change(split.result))
    assert {(share.prefill_engine, share.engine) for share in attribution.requests} == {("p", "d")}
    assert errors([share.joules for share in attribution.requests], sum(split.truth.values()))[0] < 0.05


def test_a_request_whose_engine_cannot_be_told_has_no_joules_and_the_energy_is_unattributed(
    two_replicas: Fleet,
) -> None:
    run = without_headers(two_replicas.result)
    without_counters = replace(run, engines={"a": [], "b": []}, engine=[])
    attribution = attributed(without_counters)
    assert attribution.attributed_mj == 0
    at_rest_mj = 131_000 * (attribution.end_ns - attribution.start_ns) / NS_PER_S
    assert all(0 < engine.idle_mj < 1.1 * at_rest_mj for engine in attribution.engines.values())
    assert {(share.engine, share.joules, share.se_joules) for share in attribution.requests} == {(None, None, None)}
    assert attribution.measured_mj == attribution.idle_mj + attribution.unattributed_mj


def test_an_engine_whose_energy_is_lost_takes_nothing_from_the_others(two_replicas: Fleet) -> None:
    run = two_replicas.result
    lost = replace(run, energy=[sample for sample in run.energy if sample.domain == "gpu:0"])
    attribution, whole = attributed(lost), attributed(run)
    assert list(attribution.engines) == ["a"]
    assert attribution.engines["a"] == whole.engines["a"]
    summary = analyse_run(lost).summary
    assert summary is not None
    assert summary.energy.engines[1].measured_joules is None
    assert summary.energy.engines[1].requests == two_replicas.served_by.count("b")
    assert {share.joules for share in attribution.requests if share.engine == "b"} == {None}
    assert summary.energy.joules_per_request.count == two_replicas.served_by.count("a")
    tokens = sum(record.output_tokens or 0 for record in run.records if record.engines == ["a"])
    assert summary.energy.joules_per_output_token == pytest.approx(summary.energy.attributed_joules / tokens)
    assert any("gpu:1 gave no energy" in reason for reason in summary.energy.reasons)


def test_counters_to_which_every_engine_is_as_likely_place_no_request(two_replicas: Fleet) -> None:
    """Other clients' tokens at both engines: either could have served anything."""
    run = without_headers(two_replicas.result)
    busy = [
        sample | {"generation_tokens": 1e6 * row, "prompt_tokens": 1e6 * row}
        for row, sample in enumerate(run.engines["a"])
    ]
    attribution = attributed(replace(run, engines={"a": busy, "b": busy}))
    assert {(share.engine, share.joules) for share in attribution.requests} == {(None, None)}
    assert attribution.attributed_mj == 0
    summary = analyse_run(replace(run, engines={"a": busy, "b": busy})).summary
    assert summary is not None
    assert f"which engine served {len(run.records)} of {len(run.records)} requests" in summary.energy.reasons[-1]


def test_a_part_that_is_not_known_leaves_the_other_one(split: Fleet) -> None:
    run = split.result
    prompts_only = [domain.name for domain in run.info.domains if domain.name == "gpu:0"]
    attribution = attributed(replace(run, energy=[s for s in run.energy if s.domain in prompts_only]))
    whole = attributed(run)
    assert [share.prefill_joules for share in attribution.requests] == [r.prefill_joules for r in whole.requests]
    assert {(s.engine, s.prefill_engine, s.decode_joules, s.joules) for s in attribution.requests} == {
        ("d", "p", None, None)
    }


def test_a_request_of_an_engine_that_is_not_named_is_at_none(two_replicas: Fleet) -> None:
    run = two_replicas.result
    only = [
        msgspec.structs.replace(record, engines=[e for e in record.engines or () if e == "a"]) for record in run.records
    ]
    info = msgspec.structs.replace(run.info, engines=run.info.engines[:1], domains=run.info.domains[:1])
    (part,) = engine_parts(replace(run, info=info, records=only))
    assert (part.probability > 0).tolist() == [name == "a" for name in two_replicas.served_by]


def test_no_request_is_at_two_engines_that_serve_whole_requests(two_replicas: Fleet) -> None:
    run = two_replicas.result
    both = replace(run, records=[msgspec.structs.replace(record, engines=["a", "b"]) for record in run.records])
    served = np.sum([part.probability > 0 for part in engine_parts(both)], axis=0)
    assert served.max() == 1
    assert served.mean() > 0.95  # of the rest, both are as likely
    for part in engine_parts(run):
        sent = [record.sent_ns is not None for record in part.result.records]
        assert sent == [name == part.engine.name for name in two_replicas.served_by]


@pytest.mark.parametrize("fleet", ["two_replicas", "split"])
def test_engines_that_share_a_gpu_have_an_account_each_and_its_idle_power_counts_once(
    fleet: str, request: pytest.FixtureRequest
) -> None:
    """Not the physics of a shared GPU, whose steps slow each other down: the sum of two engines on one counter."""
    shared = sharing(request.getfixturevalue(fleet))
    result = analyse_run(shared.result)
    attribution = attributed(shared.result)
    assert result.summary is not None
    idle_w = result.summary.energy.idle_watts
    assert idle_w == pytest.approx(2 * 131, rel=0.2)
    median, _ = errors([share.joules for share in attribution.requests], sum(shared.truth.values()))
    assert median < 0.2
    of_engines = sum(account.measured_mj for account in attribution.engines.values())
    assert attribution.measured_mj >= of_engines
    assert all(account.idle_mj == 0 for account in attribution.engines.values())
    for name, whole in attribution.sums.items():
        first, second = (account.sums[name].attributed_se_joules for account in attribution.engines.values())
        assert abs(first - second) <= 1.05 * whole.attributed_se_joules, "whatever their correlation is"
        assert whole.attributed_se_joules <= 1.05 * (first + second) and first != second

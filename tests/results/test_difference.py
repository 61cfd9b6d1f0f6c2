from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from loadgen.record import RequestRecord
from loadgen.results.difference import (
    BLOCKS,
    PATHS,
    SHORTER,
    Difference,
    _errors_of,
    _freedom,
    _variances,
    find_differences,
)
from loadgen.results.run_folder import RunResult
from loadgen.results.run_statistics import Part, Resampled, over_requests
from loadgen.results.summarize import analyse_run
from loadgen.stats.block_bootstrap import Ratio, resampled_weights
from support import sample_runs


@cache
def run(num_requests: int = 600, seed: int = 1, failing: float = 0.0) -> RunResult:
    return changed(sample_runs.run(num_requests, seed=seed, failing=failing), seed=seed)


def changed(result: RunResult, records: list[RequestRecord] | None = None, **info: Any) -> RunResult:
    """`result` analysed again with these records and these fields of run.json."""
    config = result.info.config | {"goodput": {"ttft": 50.0, "tpot": 12.0}}
    made = msgspec.structs.replace(result.info, **({"config": config} | info))
    return analyse_run(replace(result, info=made, records=records or result.records))


def slower(result: RunResult, factor: float) -> RunResult:
    """`result` with each first token, and all that follows, later by a part of its TTFT."""
    records = []
    for record in result.records:
        if record.ttft_ns is not None and record.finished_ns is not None and record.last_token_ns is not None:
            late = round(record.ttft_ns * (factor - 1))
            record = msgspec.structs.replace(
                record,
                first_token_ns=(record.first_token_ns or 0) + late,
                last_token_ns=record.last_token_ns + late,
                finished_ns=record.finished_ns + late,
                chunk_ns=[at + late for at in record.chunk_ns],
            )
        records.append(record)
    return changed(result, records)


def test_a_run_differs_from_itself_by_nothing() -> None:
    found = find_differences(run(), run())
    assert found.paired and list(found.rows) == list(PATHS)
    with_interval = [row for row in found.rows.values() if row.half_width is not None]
    assert len(with_interval) > 20
    assert all(row.difference == 0 and row.half_width == 0 and not row.excludes_zero for row in with_interval)


def test_a_number_has_an_interval_or_a_reason() -> None:
    for row in find_differences(run(), run(seed=2)).rows.values():
        assert (row.half_width is None) == bool(row.reason), row


def test_two_runs_of_the_same_law_do_not_differ_and_a_slower_one_does() -> None:
    same = find_differences(run(), run(seed=2))
    slow = find_differences(run(), slower(run(seed=2), 1.5))
    assert not same.paired and not slow.paired
    assert sum(row.excludes_zero for row in same.rows.values()) <= 3
    assert all(slow.rows[f"ttft_s.{name}"].excludes_zero for name in ("mean", "p50", "p90"))
    assert not slow.rows["tpot_s.p50"].excludes_zero
    assert (slow.rows["ttft_s.mean"].difference or 0) > 0


def test_the_same_schedule_makes_smaller_changes_visible() -> None:
    paired = find_differences(run(), slower(run(), 1.05))
    independent = find_differences(run(), changed(slower(run(), 1.05), schedule_sha256="another"))
    assert paired.paired and not independent.paired
    for name in ("mean", "p50", "p90"):
        of_pair, alone = (found.rows[f"ttft_s.{name}"] for found in (paired, independent))
        assert of_pair.difference == alone.difference
        assert of_pair.excludes_zero and not alone.excludes_zero
        assert (of_pair.half_width or 0) < (alone.half_width or 0) / 2


def test_the_same_runs_give_the_same_intervals_and_swapped_they_are_mirrored() -> None:
    a, b = run(), slower(run(), 1.2)
    found, mirrored = find_differences(a, b), find_differences(b, a)
    assert found == find_differences(a, b)
    for path, row in found.rows.items():
        back = mirrored.rows[path]
        assert (row.a, row.b, row.half_width) == (back.b, back.a, back.half_width)


@pytest.mark.parametrize(
    ("a", "b", "path", "reason"),
    [
        (run(), run(12, seed=2), "ttft_s.mean", "B: 12 requests have it, 20 are needed"),
        (run(), run(12, seed=2), "goodput.rps", "B: "),
        (run(1100), run(200, seed=2), "ttft_s.p99", "B: 2 requests lie beyond it, 10 are needed"),
        (run(1100), run(1100), "ttft_s.p99", ""),
        (run(), changed(sample_runs.without_energy()), "energy.mean_watts", "not known in B"),
        (changed(sample_runs.without_energy()), run(), "energy.joules_per_request.p50", "not known in A"),
        (changed(run(), config={}), changed(run(), config={}), "goodput.ratio", "not known in both runs"),
        (run(), changed(run(), config={"goodput": {"ttft": 60.0}}), "goodput.rps", "A and B have other limits"),
        (
            changed(run(), config={"goodput": {"ttft": 1e6}}),
            changed(run(), config={"goodput": {"ttft": 1e6}}),
            "goodput.ratio",
            "A: of 600 requests 600 met every limit",
        ),
    ],
)
def test_an_interval_that_would_pretend_is_not_given(a: RunResult, b: RunResult, path: str, reason: str) -> None:
    row = find_differences(a, b).rows[path]
    assert row.reason.startswith(reason) and (row.half_width is None) == bool(reason)


def test_reasons_call_the_runs_by_their_names() -> None:
    rows = find_differences(run(1100), run(200, seed=2), ("A", "D")).rows
    assert rows["e2e_s.p99"].reason.startswith("D: ")


def test_failed_requests_have_no_latency_and_runs_of_unequal_length_are_compared() -> None:
    found = find_differences(run(failing=0.2), run(800, seed=2))
    assert not found.paired
    assert all(found.rows[path].half_width for path in ("ttft_s.p50", "e2e_s.mean", "goodput.ratio", "goodput.rps"))


@pytest.mark.parametrize(
    ("change", "half", "excludes"),
    [
        (1.0, 0.5, True),
        (-1.0, 0.5, True),
        (1.0, 1.5, False),
        (0.0, 0.0, False),
        (1.0, None, False),
        (None, None, False),
    ],
)
def test_an_interval_on_one_side_of_zero_excludes_it(change: float | None, half: float | None, excludes: bool) -> None:
    row = Difference(path="x", a=1.0, b=2.0, difference=change, half_width=half)
    assert row.excludes_zero is excludes
    assert row.interval == (None if half is None or change is None else (change - half, change + half))


def series_of(values: list[float], deciding: dict[str, list[int]] | None = None) -> Resampled:
    """Return the mean of a series as the one number of a run."""
    of = np.array(values)
    part = Part(Ratio(of, np.ones(len(of))), of)
    places = {path: np.array(indices) for path, indices in (deciding or {}).items()}
    return Resampled("requests", len(of), {("mean",): part}, {}, places)


def test_the_error_of_a_mean_of_independent_values_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(1)
    errors = [_errors_of([series_of(rng.normal(size=400).tolist())], [("mean",)])["mean"].value for _ in range(60)]
    assert np.mean(errors) == pytest.approx(1 / 400**0.5, rel=0.15)


def test_the_error_of_a_mean_allows_for_dependence_that_outlasts_a_block() -> None:
    """x(t) = 0.9 x(t - 1) + e: the variance of the mean tends to 1 / (0.1 ** 2 n), and blocks show a part of it."""
    rng = np.random.default_rng(1)
    by_blocks, extrapolated = [], []
    for _ in range(60):
        values = [0.0]
        for noise in rng.normal(size=400):
            values.append(0.9 * values[-1] + noise)
        run = series_of(values[1:])
        by_blocks.append(_variances([run], [("mean",)], SHORTER * BLOCKS, 1)["mean"])
        extrapolated.append(_errors_of([run], [("mean",)])["mean"].value ** 2)
    true = 1 / (0.1**2 * 400)
    assert np.mean(by_blocks) < 0.8 * true
    assert 0.8 * true < np.mean(extrapolated) < 1.4 * true


def test_a_pair_has_the_degrees_of_freedom_of_overlapping_blocks() -> None:
    """The variance over the resamples is a quadratic form of the values, whose matrix is the covariance of the weights:
    of independent values it has trace(C)² / trace(C²) degrees of freedom."""
    covariance = np.cov(np.concatenate(list(resampled_weights(80, 80 // BLOCKS, 1))).T)
    series = series_of(np.arange(80.0).tolist())
    found = _errors_of([series, series], [("mean",)])["mean"].freedom
    assert found == pytest.approx(np.trace(covariance) ** 2 / np.sum(covariance**2), rel=0.03)


@pytest.mark.parametrize(
    ("places", "freedom"),
    [
        (range(0, 400, 10), BLOCKS - 1),
        (range(20), 1.0),
        ([*range(20), *range(100, 120)], 1.05),
        ([*range(20), *range(100, 120), *range(200, 220), *range(300, 320)], 3.16),
        ([7], BLOCKS - 1),
    ],
)
def test_a_value_that_was_decided_in_few_blocks_has_few_degrees_of_freedom(places: list[int], freedom: float) -> None:
    run = series_of([0.0] * 400, {"mean": list(places)})
    assert _freedom(run, "mean") == pytest.approx(freedom, abs=0.01)
    assert _freedom(series_of([0.0] * 400), "mean") == BLOCKS - 1


def test_what_decides_a_number_is_what_lies_beyond_it_or_the_fewer_of_good_and_missed() -> None:
    result = run()
    deciding = over_requests(result).deciding
    assert 50 < len(deciding["ttft_s.p90"]) <= 60 and set(deciding["ttft_s.p99"]) <= set(deciding["ttft_s.p90"])
    assert 0 < len(deciding["goodput.ratio"]) <= 300
    assert not any(path.endswith(".mean") for path in deciding)

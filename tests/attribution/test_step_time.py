"""Time has a price where the work does not explain the windows and the durations of steps do."""

from dataclasses import replace

import numpy as np
import pytest

from loadgen.attribution.chunk_steps import engine_steps_of
from loadgen.attribution.cost_model import TIME_COLUMN, cost_shares, feature_column, overlap, step_features
from loadgen.attribution.engine_steps import EngineSteps
from loadgen.attribution.shapley import attribute_energy
from loadgen.attribution.step_time import with_pace, with_time
from loadgen.attribution.window_fit import fit_coefficients
from loadgen.energy.series import EnergySeries
from loadgen.record import RequestRecord
from loadgen.units import MJ_PER_J, NS_PER_S
from support.attribution_runs import MS, counter, request, two_steps

DECODE_S = (0.004, 0.016)
"""Shortest and longest step, whatever is in it: a host that is late by chance."""


def busy_server(
    watts: float, token_j: float, jitter: float = 1.0, requests: int = 120
) -> tuple[list[RequestRecord], EnergySeries]:
    """Streams that start and end with an engine that is always busy, and draws power for as long as a step takes."""
    rng = np.random.default_rng(2)
    middle, half = np.mean(DECODE_S), jitter * np.ptp(DECODE_S) / 2
    lengths = rng.uniform(middle - half, middle + half, 4000)
    ends_s = 2 + np.cumsum(lengths)
    begin = np.sort(rng.integers(0, 3000, requests))
    tokens = rng.integers(50, 400, requests)
    records = [
        request(i, 1000 * (ends_s[b] - lengths[b]) + 1e-3, (1000 * ends_s[b : b + count]).tolist(), 10)
        for i, (b, count) in enumerate(zip(begin.tolist(), tokens.tolist(), strict=True))
    ]
    steps = engine_steps_of(records)
    edges = np.arange(0, int(steps.end_ns[-1]) + 200 * MS, 100 * MS)
    step, window, share = overlap(edges, steps.start_ns, steps.end_ns)
    seconds = (steps.end_ns - steps.start_ns) / NS_PER_S
    joules = watts * seconds + token_j * np.bincount(steps.step, minlength=steps.count)
    by_window = np.bincount(window, share * joules[step], minlength=len(edges) - 1)
    return records, counter((edges / MS).tolist(), by_window.tolist())


def test_a_busy_server_whose_steps_take_long_by_chance_has_a_price_of_time() -> None:
    records, series = busy_server(watts=300.0, token_j=0.01)
    steps = engine_steps_of(records)
    timed = with_time(series, steps, step_features(steps))
    assert timed.pace is not None
    by_work, by_time = fit_coefficients(series, steps), fit_coefficients(series, timed)
    assert (by_work.r_squared or 0) < 0.8 < 0.99 < (by_time.r_squared or 0)
    assert by_time.busy_w == pytest.approx(300, rel=0.05)
    assert by_work.busy_w is None


@pytest.mark.parametrize("requests", [1, 120])
def test_time_has_no_price_where_steps_of_the_same_work_take_as_long_or_windows_are_few(requests: int) -> None:
    records, series = busy_server(watts=300.0, token_j=0.01, jitter=0.0 if requests > 1 else 1.0, requests=requests)
    steps = engine_steps_of(records)
    assert with_time(series, steps, step_features(steps)).pace is None


def test_at_the_power_limit_and_beside_other_clients_time_has_no_price() -> None:
    records, series = busy_server(watts=300.0, token_j=0.01)
    watts = np.diff(series.mj) / MJ_PER_J / (np.diff(series.t_ns) / NS_PER_S)
    limited = replace(series, capped_ns=np.arange(len(series)) * 100 * MS, limit_w=float(np.median(watts)))
    assert limited.at_limit is not None
    assert limited.at_limit.any()
    steps = engine_steps_of(records)
    assert with_time(limited, steps, step_features(steps)).pace is None


def test_the_members_of_a_step_share_its_duration_by_the_time_that_their_work_takes() -> None:
    """A step takes 2 units, a prompt token 0.1 and a decoded one 1, of which the second step makes its 1 s."""
    timed = replace(two_steps(), pace=(2.0, 0.1, 0.0, 1.0, 0.0))
    seconds = feature_column(timed, TIME_COLUMN)
    assert seconds.tolist() == pytest.approx([1.0, (1 + 1) / (2 + 1 + 2), (1 + 2) / (2 + 1 + 2)])
    nothing = replace(two_steps(), pace=(0.0,) * 5)
    assert feature_column(nothing, TIME_COLUMN).tolist() == [0, 0, 0]


def test_the_pace_is_the_law_of_the_durations() -> None:
    records, _ = busy_server(watts=300.0, token_j=0.01, jitter=0.0)
    steps = engine_steps_of(records)
    timed = with_pace(steps, step_features(steps))
    assert timed.pace is not None
    assert timed.pace[0] == pytest.approx(float(np.mean(DECODE_S)), rel=0.01)
    assert step_features(timed)[:, -1].sum() == pytest.approx((steps.end_ns - steps.start_ns).sum() / NS_PER_S)


def test_energy_is_conserved_and_shares_follow_time() -> None:
    records, series = busy_server(watts=300.0, token_j=0.01)
    result = attribute_energy([series], records, 0, int(series.t_ns[-1]))
    result.check()
    assert result.coefficients[0].busy_w is not None
    shares = cost_shares(timed_steps(records, series), result.coefficients[0])
    assert (shares >= 0).all()
    assert shares.sum() == pytest.approx(result.attributed_mj / 1000, rel=0.02)


def timed_steps(records: list[RequestRecord], series: EnergySeries) -> EngineSteps:
    steps = engine_steps_of(records)
    return with_time(series, steps, step_features(steps))

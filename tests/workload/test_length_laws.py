"""A law of lengths has the parameters that its name states, the same draws for a seed, and no length below 1."""

import numpy as np
import pytest

from loadgen.errors import LoadgenError
from loadgen.workload.length_laws import drawn_lengths, drawn_trace
from loadgen.workload.trace import MAX_TOKENS

MANY = 200_000


def drawn(law: str, count: int = MANY, seed: int = 0) -> np.ndarray:
    return drawn_lengths(law, count, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("law", "mean", "deviation", "median"),
    [
        ("512", 512, 0, 512),
        ("uniform:100:300", 200, (201**2 - 1) ** 0.5 / 12**0.5, 200),
        ("normal:512:60", 512, 60, 512),
        ("lognormal:512:0.6", 512 * np.exp(0.18), 512 * np.exp(0.18) * (np.exp(0.36) - 1) ** 0.5, 512),
        ("exponential:512", 512, 512, 512 * np.log(2)),
    ],
)
def test_a_law_has_its_mean_deviation_and_median(law: str, mean: float, deviation: float, median: float) -> None:
    tokens = drawn(law)
    assert tokens.mean() == pytest.approx(mean, rel=0.01)
    assert tokens.std() == pytest.approx(deviation, rel=0.02)
    assert np.median(tokens) == pytest.approx(median, rel=0.01)


def test_uniform_has_both_of_its_ends_and_nothing_beyond() -> None:
    assert set(drawn("uniform:3:6").tolist()) == {3, 4, 5, 6}


@pytest.mark.parametrize("law", ["normal:2:50", "exponential:1", "lognormal:1:3"])
def test_every_length_is_a_token_or_more(law: str) -> None:
    tokens = drawn(law)
    assert tokens.min() == 1 and tokens.max() > 1


def test_no_length_is_beyond_what_a_trace_may_hold() -> None:
    assert drawn(f"lognormal:{MAX_TOKENS}:5").max() == MAX_TOKENS


@pytest.mark.parametrize("law", ["7", "uniform:1:9", "normal:50:9", "lognormal:50:1", "exponential:50"])
def test_draws_follow_from_the_seed_and_more_of_them_begin_with_the_same(law: str) -> None:
    assert drawn(law, 100).tolist() == drawn(law, 300)[:100].tolist()
    assert law == "7" or drawn(law, 100, seed=1).tolist() != drawn(law, 100).tolist()


@pytest.mark.parametrize(
    "law",
    [
        "", "0", "-5", "1.5", "nan", "inf", "512:3", "uniform:5", "uniform:9:5", "uniform:0:5", "uniform:1.5:5",
        "normal:512", "normal:0:5", "normal:512:-1", "lognormal:512", "lognormal:0:1", "lognormal:512:x",
        "exponential:0", "exponential:512:1", "gauss:1:2", "\x1b[2J", "99999999999", ":512",
    ],
)  # fmt: skip
def test_a_law_that_is_none_is_refused_with_those_that_there_are(law: str) -> None:
    with pytest.raises(LoadgenError, match=r"length '[^\x1b]*': expected a number, uniform:LOW:HIGH, normal:MEAN:SD"):
        drawn(law, 1)


def test_inputs_and_outputs_are_drawn_independently() -> None:
    trace = drawn_trace("lengths", "lognormal:512:0.6", "lognormal:512:0.6", 20_000, np.random.default_rng(4))
    pairs = np.array([(request.input_tokens, request.output_tokens) for request in trace.requests])
    assert abs(np.corrcoef(np.log(pairs.T))[0, 1]) < 0.03
    assert not trace.timed
    longer = drawn_trace("lengths", "lognormal:512:0.6", "lognormal:512:0.6", 30_000, np.random.default_rng(4))
    assert longer.requests[:20_000] == trace.requests

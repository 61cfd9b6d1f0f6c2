"""Counters over time, from the samples of an engine."""

import pytest

from loadgen.telemetry.engine_sample import cached_share, computed_prompt_tokens, counter_values, summed_samples


@pytest.mark.parametrize(
    ("engine", "values"),
    [
        ([{"a": 1.0}, {"a": 1.0}, {"a": 3.0}], [1.0, 1.0, 3.0]),
        ([{"b": 1.0}, {"a": 1.0}, {"a": 3.0}], [0.0, 1.0, 3.0]),  # shown once it has counted something
        ([{"a": 2.0}, {"a": 1.0}], None),
        ([{"a": 2.0}, {"b": 3.0}], None),
        ([{"b": 2.0}, {"b": 3.0}], None),
        ([{"a": 2.0}], None),
        ([], None),
    ],
)
def test_a_counter_that_went_back_or_is_missing_is_unknown(
    engine: list[dict[str, float]], values: list[float] | None
) -> None:
    found = counter_values(engine, "a")
    assert (None if found is None else found.tolist()) == values


@pytest.mark.parametrize(
    ("later", "computed"),
    [
        ({"prompt_tokens": 100.0, "cached_tokens": 30.0}, 70.0),
        ({"prompt_tokens": 100.0}, None),
        ({"computed_tokens": 70.0, "cached_tokens": 30.0, "prompt_tokens": 100.0}, 70.0),
        ({"computed_tokens": 70.0}, 70.0),
        ({"cached_tokens": 30.0}, None),
    ],
)
def test_cached_tokens_are_taken_off_a_prompt_once(later: dict[str, float], computed: float | None) -> None:
    found = computed_prompt_tokens([dict.fromkeys(later, 0.0), later])
    assert (None if found is None else found[-1]) == computed


def test_the_share_of_cached_tokens_is_of_the_time_between_the_samples() -> None:
    before = {"prompt_tokens": 100.0, "cached_tokens": 90.0}
    assert cached_share([before, {"prompt_tokens": 300.0, "cached_tokens": 140.0}]) == 0.25
    assert cached_share([before, before]) is None
    assert cached_share([{"prompt_tokens": 100.0}, {"prompt_tokens": 300.0}]) is None


def test_counters_of_several_engines_are_summed_where_all_were_read() -> None:
    a = [{"t_ns": t, "a": t / 10, "kv_cache_usage": 0.5} for t in (0, 10, 20, 30)]
    b = [{"t_ns": 5, "a": 100.0}, {"t_ns": 25, "a": 120.0, "kv_cache_usage": 0.9, "only": 1.0}]
    summed = summed_samples([a, b])
    assert [sample["t_ns"] for sample in summed] == [10, 20]
    assert [sample["a"] for sample in summed] == [106.0, 117.0]
    assert all(set(sample) == {"t_ns", "a", "kv_cache_usage"} for sample in summed)
    assert summed[-1]["kv_cache_usage"] == pytest.approx(0.675)


@pytest.mark.parametrize("engines", [[], [[]], [[{"t_ns": 1}], [{"t_ns": 1}, {"t_ns": 2}]]])
def test_an_engine_without_two_samples_leaves_no_sum(engines: list[list[dict[str, float]]]) -> None:
    assert summed_samples(engines) == []

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.report.format import (
    clean,
    count,
    joules,
    number,
    percent,
    plural,
    seconds,
    share,
    tick_count,
    tick_joules,
    tick_seconds,
    watts,
    with_unit,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(None), "-"),
        (number(float("nan")), "-"),
        (number(0), "0"),
        (number(0.012345), "0.0123"),
        (number(9.996), "10.0"),
        (number(999.6), "1,000"),
        (number(12345.6), "12,346"),
        (number(-3.14159), "-3.14"),
        (seconds(None), "-"),
        (seconds(0), "0 s"),
        (seconds(0.9996), "1.00 s"),
        (seconds(0.0423), "42.3 ms"),
        (seconds(0.000219), "219 µs"),
        (seconds(-0.0423), "-42.3 ms"),
        (seconds(3e-9), "0.00300 µs"),
        (joules(None), "-"),
        (joules(0), "0 J"),
        (joules(0.0228), "0.0228 J"),
        (joules(0.0009), "0.900 mJ"),
        (joules(-3.2e-6), "-3.20 µJ"),
        (joules(3.2e-9), "3.20 nJ"),
        (joules(9_013), "9,013 J"),
        (joules(35_980.6), "36.0 kJ"),
        (joules(5.5e6), "5.50 MJ"),
        (percent(None), "-"),
        (percent(0), "0.0 %"),
        (percent(1), "100.0 %"),
        (percent(0.0001), "<0.1 %"),
        (percent(0.9999), ">99.9 %"),
        (share(1, 0), "-"),
        (share(None, 4), "-"),
        (share(1, 4), "25.0 %"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.005)


def test_text_of_others_is_one_printable_line_of_bounded_length() -> None:
    assert clean("a\x1b[31m\nb\u202ec") == "a [31m b c"
    assert len(clean("x" * 10_000, 100)) == 100
    assert clean("x" * 100, 100) == "x" * 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(1), "1.00"),
        (number(99.949), "99.9"),
        (number(99.95), "100"),
        (number(999.4), "999"),
        (number(1000.4), "1,000"),
        (number(0.0009996), "0.00100"),
        (number(-999.6), "-1,000"),
        (number(2.5, 1), "2"),
        (number(float("inf")), "-"),
        (seconds(1), "1.00 s"),
        (seconds(0.9994), "999 ms"),
        (seconds(0.001), "1.00 ms"),
        (seconds(0.00099949), "999 µs"),
        (joules(0.01), "0.0100 J"),
        (joules(0.009994), "9.99 mJ"),
        (joules(9_994), "9,994 J"),
        (joules(9_996), "10.0 kJ"),
        (joules(999_499), "999 kJ"),
        (joules(999_600), "1.00 MJ"),
        (joules(1e-5), "0.0100 mJ"),
        (joules(9.994e-6), "9.99 µJ"),
        (joules(float("nan")), "-"),
        (percent(0.0005), "0.1 %"),
        (percent(0.00049), "<0.1 %"),
        (percent(0.9995), ">99.9 %"),
        (percent(0.99949), "99.9 %"),
        (percent(1.5), "150.0 %"),
        (percent(-0.25), "-25.0 %"),
        (percent(float("inf")), "-"),
        (share(0, 4), "0.0 %"),
        (share(4, 4), "100.0 %"),
        (plural(1, "run"), "1 run"),
        (plural(0, "run"), "0 runs"),
        (plural(1_200, "run"), "1,200 runs"),
        (count(None), "-"),
        (count(0), "0"),
        (watts(0), "0 W"),
        (watts(None), "-"),
        (with_unit(1_234.5, "/s"), "1,234 /s"),
        (with_unit(None, "/s"), "-"),
    ],
)
def test_a_unit_changes_where_the_rounded_number_reaches_it(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats(1e-9, 1e9))
def test_a_quantity_keeps_its_value_whatever_its_prefix(value: float) -> None:
    factors = {"nJ": 1e-9, "µJ": 1e-6, "mJ": 1e-3, "J": 1.0, "kJ": 1e3, "MJ": 1e6}
    figure, unit = joules(value).split(" ")
    assert float(figure.replace(",", "")) * factors[unit] == pytest.approx(value, rel=0.0051, abs=6e-12)


@given(st.text(max_size=50), st.integers(1, 30))
def test_cleaned_text_is_printable_and_no_longer_than_its_limit(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit
    assert cleaned.isprintable()
    assert clean(cleaned, limit) == cleaned


@pytest.mark.parametrize(
    ("tick", "value", "text"),
    [
        (tick_seconds, 0.0, "0 s"),
        (tick_joules, 0.0, "0 J"),
        (tick_seconds, 20.0, "20 s"),
        (tick_seconds, 1.0, "1 s"),
        (tick_seconds, 0.0, "0 s"),
        (tick_seconds, -20.0, "-20 s"),
        (tick_seconds, 0.9999, "0.9999 s"),
        (tick_seconds, 0.5, "500 ms"),
        (tick_seconds, 0.001, "1 ms"),
        (tick_seconds, 2e-5, "20 µs"),
        (tick_seconds, 1e-6, "1 µs"),
        (tick_seconds, 5e-9, "5 ns"),
        (tick_joules, 0.005, "5 mJ"),
        (tick_joules, 0.01, "0.01 J"),
        (tick_joules, 2000.0, "2,000 J"),
        (tick_joules, 10_000.0, "10 kJ"),
        (tick_joules, 5e6, "5,000 kJ"),
        (tick_count, 1.0, "1"),
        (tick_count, 5_000.0, "5,000"),
        (tick_count, 10_000.0, "10k"),
        (tick_count, 500_000.0, "500k"),
        (tick_count, 1_000_000.0, "1M"),
    ],
)
def test_a_tick_has_no_more_digits_than_it_needs(tick: Callable[[float], str], value: float, text: str) -> None:
    assert tick(value) == text

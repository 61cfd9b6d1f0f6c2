import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.report.format import clean, joules, number, percent, seconds, share


@pytest.mark.parametrize(
    ("told", "expected"),
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
def test_numbers_as_people_read_them(told: str, expected: str) -> None:
    assert told == expected


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.005)


def test_text_of_others_is_one_printable_line_of_bounded_length() -> None:
    assert clean("a\x1b[31m\nb\u202ec") == "a [31m b c"
    assert len(clean("x" * 10_000, 100)) == 100
    assert clean("x" * 100, 100) == "x" * 100

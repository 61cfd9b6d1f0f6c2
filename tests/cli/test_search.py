"""Times and shares of a search are written as people write them."""

import click
import pytest

from loadgen.cli.search import Duration, Share


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("2.5 min", 150), ("45", 45), ("0.5h", 1800)]
)
def test_a_time_has_a_unit_or_is_in_seconds(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5s", "15x", "1e9h", "m", "nan", "15m30"])
def test_what_is_no_time_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(click.BadParameter, match="90s, 15m or 1h"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(("text", "share"), [("0.99", 0.99), ("99%", 0.99), (".9", 0.9), ("99.9 %", 0.999)])
def test_a_share_is_a_number_below_1_or_a_percentage(text: str, share: float) -> None:
    assert Share().convert(text, None, None) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "0", "1", "100%", "99", "-0.1", "x", "nan"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"0\.99 or 99%"):
        Share().convert(text, None, None)


@pytest.mark.parametrize("text", ["50%", "0.5", "0.49"])
def test_a_share_that_is_too_small_is_refused_with_its_bounds(text: str) -> None:
    assert Share(above=0.5).convert("51%", None, None) == 0.51
    with pytest.raises(click.BadParameter, match="not a share above 50% and below 100%"):
        Share(above=0.5).convert(text, None, None)

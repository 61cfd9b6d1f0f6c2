"""--max-failed: the forms that it has, and the counts that it allows."""

import pytest

from loadgen.errors import LoadgenError
from loadgen.results.failure_limit import FailureLimit


@pytest.mark.parametrize(
    ("text", "requests", "allowed"),
    [
        ("1%", 100, 1), ("1%", 99, 0), ("1 %", 1000, 10), ("0.5%", 1000, 5), ("33.3%", 1000, 333), ("0%", 10**6, 0),
        ("100%", 7, 7), ("0", 10**6, 0), ("5", 10, 5), ("5", 10**6, 5), (" 5 ", 10, 5),
    ],
)  # fmt: skip
def test_a_limit_allows_so_many_and_not_one_more(text: str, requests: int, allowed: int) -> None:
    limit = FailureLimit.parse(text)
    assert not limit.exceeded(allowed, requests)
    assert limit.exceeded(allowed + 1, requests)


@pytest.mark.parametrize("text", ["", "0.01", "1.5", "-1", "-1%", "101%", "%", "1%%", "one", "1e2", "nan%", "٥"])
def test_a_form_that_could_mean_two_things_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(LoadgenError, match=r"^--max-failed .*: give a share such as 1%, or a number of requests"):
        FailureLimit.parse(text)

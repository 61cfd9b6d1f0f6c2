"""A self-test on a terminal."""

import io

import pytest
from rich.console import Console

from loadgen.report.selftest_terminal import error_table, print_selftest
from loadgen.results.summary import Distribution
from loadgen.run.selftest import Capacity, Errors, Plan, Selftest

UNKNOWN = Distribution(count=0)


def measured(p50: float, p99: float) -> Distribution:
    return Distribution(count=9, mean=p50, p50=p50, p90=p99, p95=p99, p99=p99, max=2 * p99)


def result(**changes: object) -> Selftest:
    fields: dict[str, object] = {
        "safe": True,
        "reasons": [],
        "plan": Plan(rps=4.0, ttft_s=0.05, itl_s=0.02, output_tokens=200),
        "requests": 40,
        "completed": 39,
        "duration_s": 10.0,
        "streams": 16,
        "events_per_s": 800.4,
        "busy": 0.25,
        "waited": 0.01,
        "processes": 2,
        "compiled": True,
        "stamped_by": "kernel",
        "lag_s": measured(0.0001, 0.001),
        "loop_delay_s": None,
        "server_late_s": UNKNOWN,
        "errors": Errors(
            ttft_s=measured(0.0002, 0.002),
            itl_s=measured(0.0003, 0.003),
            arrival_s=Distribution(count=0),
            token_s=Distribution(count=0),
        ),
        "capacity": Capacity(requests_per_s=1000.0, bulk_events_per_s=90_000.0, events_per_s=30_000.0, streams=600.0),
    }
    return Selftest(**fields | changes)  # type: ignore[arg-type]


def printed(selftest: Selftest) -> str:
    out = io.StringIO()
    print_selftest(Console(file=out, width=100), selftest)
    return out.getvalue()


def test_a_safe_self_test_is_printed_with_its_plan_and_capacity() -> None:
    text = printed(result())
    for line in (
        "39 of 40 requests answered in 10.0 s",
        "16 streams at once, 800 events/s",
        "25.0 % of a core in each of 2 processes",
        "read by   compiled code",
        "30,000 events/s one by one: 600 such streams",
        "SAFE: the p99 of every error is within",
    ):
        assert line in text, text
    assert "NOT SAFE" not in text and "\x1b" not in text


def test_an_unsafe_self_test_is_printed_with_every_reason() -> None:
    text = printed(result(safe=False, reasons=["[late] by 30 ms", "busy"], compiled=False))
    assert text.endswith("NOT SAFE\n- [late] by 30 ms\n- busy\n")
    assert "read by   Python: not Linux, or no compiler when it was installed" in text


@pytest.mark.parametrize(("stamped_by", "meaning"), [("kernel", "token came - written"), ("client", "token read - ")])
def test_the_table_of_errors_has_a_row_for_each_and_no_number_for_the_unknown(stamped_by: str, meaning: str) -> None:
    out = io.StringIO()
    Console(file=out, width=100).print(error_table(result(stamped_by=stamped_by)))
    lines = [line.strip() for line in out.getvalue().splitlines() if line.strip()]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "lag", "loop delay", "TTFT error", "ITL error", "way there", "way back", "server late",
    ]  # fmt: skip
    assert lines[3].split()[2:8] == ["200", "µs", "2.00", "ms", "4.00", "ms"]
    assert meaning in lines[6] and "µs" not in lines[6] and "ms" not in lines[6]

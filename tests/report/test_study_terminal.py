"""The table of a study on the terminal."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from loadgen.report.study_terminal import print_study
from loadgen.results.study_table import Row, StudyInfo
from support.study_rows import row


def printed(*rows: Row, title: str = "Batch limit", limits_ms: dict[str, float] | None = None, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_study(console, StudyInfo(title, limits_ms=limits_ms or {}), rows)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    return str(text)


def cells(text: str, server: str) -> list[str]:
    """Return the cells of the line that begins with a server's name."""
    (line,) = (line for line in text.splitlines() if line.startswith(server))
    return re.split(r"\s{2,}", line.strip())


FULL: dict[str, Any] = {
    "ttft_p99_s": 0.1, "tpot_p99_s": 0.00612, "goodput_ratio": 0.975, "joules_per_output_token": 1.0,
}  # fmt: skip
CASES: list[tuple[list[dict[str, Any]], list[str]]] = [
    ([FULL], ["8 in flight", "100 ms", "6.12 ms", "97.5 %", "1.00 J", "-"]),
    ([FULL, FULL | {"ttft_p99_s": 0.3}], ["8 in flight", "200 ms", "6.12 ms", "97.5 %", "1.00 J", "1.00-1.00"]),
    (
        [FULL, FULL | {"joules_per_output_token": 1.02}, FULL | {"joules_per_output_token": 1.01}],
        ["8 in flight", "100 ms", "6.12 ms", "97.5 %", "1.01 J", "0.985-1.03"],
    ),
    (
        [FULL, FULL | {"joules_per_output_token": 3.0}],
        ["8 in flight", "100 ms", "6.12 ms", "97.5 %", "2.00 J", "-"],
    ),
    ([{}], ["8 in flight", "-", "-", "-", "-", "-"]),
    ([FULL | {"energy_valid": False}], ["8 in flight", "100 ms", "6.12 ms", "97.5 %", "1.00 J ?", "-"]),
    ([FULL | {"batch": None, "rps": 2.5}], ["2.5/s", "100 ms", "6.12 ms", "97.5 %", "1.00 J", "-"]),
    ([{"batch": None}], ["-", "-", "-", "-", "-", "-"]),
]


@pytest.mark.parametrize(("repeats", "expected"), CASES)
def test_a_configuration_is_one_line_of_means_and_nothing_unknown_is_a_number(
    repeats: list[dict[str, Any]], expected: list[str]
) -> None:
    rows = [row("vllm", repeat, **fields) for repeat, fields in enumerate(repeats)]
    assert cells(printed(*rows), "vllm") == ["vllm", *expected]


def test_models_and_workloads_have_a_heading_each_and_hostile_names_are_harmless() -> None:
    rows = [
        row(server, model=model, workload=workload, **FULL)
        for server in ("[red]a\x1b", "b" * 99)
        for model in ("m" * 99, "[/n]")
        for workload in ("chat", "code")
    ]
    text = printed(*rows, title="[bold]" + "t" * 99)
    assert len(re.findall(r"(?m)^(?:chat|code) on ", text)) == 4 and text.count("TTFT p99") == 4
    assert "[red]a" in text and "\x1b" not in text and "[bold]t" in text


def test_where_the_limits_break_stands_below_the_table() -> None:
    rows = [row("vllm", batch=batch, goodput_ratio=share) for batch, share in ((4, 1.0), (8, 0.5))]
    text = " ".join(printed(*rows, limits_ms={"ttft": 200.0}).split())
    assert "it breaks between 4 and 8 in flight." in text
    assert "breaks" not in printed(*rows)


@pytest.mark.parametrize("simulated", [True, False])
def test_simulated_numbers_are_called_so(simulated: bool) -> None:
    assert ("SIMULATED" in printed(row(simulated=simulated))) == simulated


@pytest.mark.parametrize("valid", [True, False])
def test_a_mark_is_explained_where_it_is_used(valid: bool) -> None:
    assert ("?: the energy of a repeat is not valid" in printed(row(energy_valid=valid))) == (not valid)


@pytest.mark.parametrize(("counts", "text"), [((2, 2), "Means of 2 repeats"), ((1, 3), "Means of 1 to 3 repeats")])
def test_the_number_of_repeats_is_stated(counts: tuple[int, int], text: str) -> None:
    rows = [row(server, i) for server, count in zip("ab", counts, strict=True) for i in range(count)]
    assert text in printed(*rows)

"""The answer of a search on the terminal."""

import io
import re

import pytest
from rich.console import Console

from loadgen.report.search_terminal import print_search
from loadgen.results.search_result import Estimate, SearchResult
from support import search_results as examples
from support.search_results import probe, search, setting


def printed(result: SearchResult, width: int = 80, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=width, **options)  # type: ignore[arg-type]
    print_search(console, result)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


EXAMPLES = [examples.search, examples.without_energy, examples.hopeless, examples.limited_by_client, examples.broken]
EXAMPLES += [examples.undecided, examples.first_probe, examples.of_joules, examples.of_settings]


@pytest.mark.parametrize("make", EXAMPLES)
def test_every_outcome_fits_80_columns_without_colours_off_a_terminal(make) -> None:  # type: ignore[no-untyped-def]
    text = printed(make())
    assert max(len(line) for line in text.splitlines()) <= 80
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert "\x1b" not in text and "…" not in text


def test_the_probes_are_in_the_order_of_their_rates() -> None:
    rates = re.findall(r"(?m)^ *([\d.]+)/s ", printed(search()))
    assert rates == ["1", "2", "4", "8", "12", "12.9", "13.9", "14.6", "16", "32"]


@pytest.mark.parametrize(
    ("changes", "cells"),
    [
        ({}, ["8/s", "640", "100.0 %", "120 ms", "8.50 ms", "62.5 J"]),
        ({"watts": None, "ttft_p99_s": None}, ["8/s", "640", "100.0 %", "-", "8.50 ms"]),
        ({"requests": 0, "good": 0, "stopped_early": True}, ["8/s", "0", "-", "120 ms", "8.50 ms", "-", "ended early"]),
        ({"good": 3, "failed": 2}, ["8/s", "640", "0.5 %", "120 ms", "8.50 ms", "13.3 kJ", "2 failed, overloaded"]),
    ],
)
def test_a_probe_is_a_row_and_nothing_unknown_is_a_number(changes: dict[str, object], cells: list[str]) -> None:
    text = printed(search(setting(probes=(probe(**changes),))))
    (line,) = (line for line in text.splitlines() if line.strip().startswith("8/s"))
    assert [re.sub(" +", " ", cell) for cell in re.split(r"\s{2,}", line.strip())] == cells


def test_an_end_to_end_limit_has_a_column() -> None:
    assert "E2E p99" in printed(search(limits_ms={"e2el": 900.0})) and "E2E p99" not in printed(search())


def test_several_settings_are_ranked_with_their_outcomes() -> None:
    lines = [line for line in printed(examples.of_settings()).splitlines() if line.startswith("max_num_seqs")]
    outcomes = [re.split(r"\s{2,}", line.strip())[-1] for line in lines if "best of" not in line]
    assert outcomes[-4:] == ["best", "answered", "dropped", "limits missed"]


def test_an_interval_with_an_unknown_end_is_in_the_table_of_the_settings() -> None:
    vague = setting("a", rate=Estimate(value=13.4, low=None, high=14.0))
    assert "13.4 [unknown, 14.0]" in printed(search(vague, setting("b")))


def test_names_of_settings_and_reasons_are_harmless() -> None:
    text = printed(search(setting("[red]a\x1b[0m", ended="server", reason="[bold]x\x1b")), color_system=None)
    assert "\x1b" not in text and "[red]a" in text and "[bold]x" in text.lower()

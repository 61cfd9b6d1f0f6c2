"""Two runs with different boundaries are never set side by side in silence."""

import io
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from rich.console import Console

from loadgen.report import compare
from loadgen.report.boundary_difference import boundary_differences
from loadgen.report.compare_page import render_compare_page
from loadgen.report.energy_section import boundary_figure
from loadgen.report.markdown import comparison_markdown
from loadgen.report.terminal import render_terminal
from loadgen.results.difference import find_differences
from loadgen.results.run_folder import RunResult
from loadgen.results.summary import Boundary, BoundaryPart, DomainEnergy, HostEnergy, Summary
from support import sample_runs

STATED = {"pue": 1.2, "grid_intensity": 350.0, "grid_source": "my grid", "price": 0.3}
HOST = HostEnergy(
    source="rapl", share_by="time", measured_joules=500.0, idle_joules=100.0, attributed_joules=400.0,
    unattributed_joules=0.0, joules_per_request=None, joules_per_output_token=None, coverage=1.0, reasons=[],
)  # fmt: skip


def boundary(parts: tuple[str, ...] = ("accelerator", "host", "overhead"), **factors: Any) -> Boundary:
    described = [BoundaryPart(part=part, basis="measured", joules=500.0) for part in (*parts, "idle")]
    stated = {**STATED, **factors}
    cost = None if stated["price"] is None else 0.04
    return Boundary(parts=described, total_joules=500.0 * len(parts), co2e_grams=7.5, cost=cost, **stated)


def run_with(bounds: Boundary | None, host: HostEnergy | None = HOST) -> RunResult:
    made = sample_runs.run(100)
    assert made.summary is not None
    energy = msgspec.structs.replace(made.summary.energy, boundary=bounds, host=host)
    return replace(made, summary=msgspec.structs.replace(made.summary, energy=energy))


def summary_with(bounds: Boundary | None) -> Summary:
    summary = run_with(bounds).summary
    assert summary is not None
    return summary


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, None),
        ({"pue": 1.1}, "A and B state different factors: PUE 1.2 and 1.1."),
        ({"price": None}, "A and B state different factors: price per kWh 0.3 and -."),
        ({"grid_source": "other"}, "source of the grid intensity my grid and other"),
        ({"grid_intensity": 20.0, "price": 1.0}, "grid intensity in g/kWh 350 and 20; price per kWh 0.3 and 1."),
        ({"parts": ("accelerator",)}, "The total energy of A includes accelerator, host, overhead; that of B"),
    ],
)  # fmt: skip
def test_each_factor_and_part_that_differs_is_said(change: dict[str, Any], sentence: str | None) -> None:
    sentences = boundary_differences([summary_with(boundary())], [summary_with(boundary(**change))], "B")
    assert len(sentences) == (sentence is not None)
    assert sentence is None or sentence in sentences[0]


def test_without_energy_nothing_differs() -> None:
    assert boundary_differences([summary_with(boundary())], [summary_with(None)], "B") == []


def test_the_rows_are_those_that_both_sides_know() -> None:
    both, without_host = summary_with(boundary()), summary_with(boundary(price=None))
    shown = [path for path in compare.metrics([[both], [without_host]]) if path in compare.BOUNDARY_METRICS]
    assert shown == [
        "energy.host.measured_joules", "energy.boundary.total_joules", "energy.boundary.co2e_grams"
    ]  # fmt: skip
    plain = summary_with(boundary(("accelerator",), price=None, grid_intensity=None))
    alone = msgspec.structs.replace(plain, energy=msgspec.structs.replace(plain.energy, host=None))
    assert not {*compare.metrics([[alone], [alone]])} & {*compare.BOUNDARY_METRICS}, "that is measured_joules again"


def test_every_view_has_the_rows_and_the_difference() -> None:
    a, b = run_with(boundary()), run_with(boundary(pue=1.1))
    found = find_differences(a, b)
    compare.render_comparison([[a], [b]], Console(file=(terminal := io.StringIO()), width=140), (), [found])
    markdown = comparison_markdown([[a], [b]], (), [found])
    page = render_compare_page({"A": a, "B": b}, {"B": found}, ())
    for view, total in (
        (terminal.getvalue(), "energy.boundary.total_joules"), (markdown, "energy.boundary.total_joules"),
        (page, "Total of what is included"),
    ):  # fmt: skip
        assert "PUE 1.2 and 1.1" in view.replace("\\", "")
        assert total in view
        assert "7.500 g" in view


def test_a_domain_of_the_machine_is_shown_with_what_it_counted_by_itself() -> None:
    made = run_with(boundary(("accelerator",), price=None, grid_intensity=None), host=None)
    assert made.summary is not None
    plug = DomainEnergy(name="machine:\x1b[2Jplug", source="page-power", scope="machine", within=None, joules=1234.0)
    energy = msgspec.structs.replace(made.summary.energy, domains=[plug])
    summary = msgspec.structs.replace(made.summary, energy=energy)
    render_terminal(replace(made, summary=summary), Console(file=(terminal := io.StringIO()), width=100))
    assert "counted 1,234 J by itself (page-power)" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()
    assert "counted 1,234 J by itself" in "".join(boundary_figure(energy))

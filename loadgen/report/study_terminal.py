"""The table of a study on the terminal: one line for each configuration, in 80 columns."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loadgen.report.format import UNKNOWN, clean, joules, number, percent, seconds
from loadgen.report.study_text import findings, load_text
from loadgen.results.study_table import Group, Row, StudyInfo, groups

_COLUMNS = ("load", "TTFT p99", "TPOT p99", "goodput", "J/token", "95 %")


def print_study(console: Console, study: StudyInfo, rows: Sequence[Row]) -> None:
    """Print the means of the repeats of each configuration, under a line for each model and workload; and where the
    study has limits, up to which load they hold."""
    console.print()
    heading = Text(clean(study.title, 60), style="bold")
    if any(row.simulated for row in rows):
        heading.append("   SIMULATED: a model's numbers", style="bold yellow")
    console.print(heading)
    by_workload = sorted(groups(rows), key=_model_and_workload)  # a stable sort: servers and loads stay in order
    for (model, workload), part in groupby(by_workload, key=_model_and_workload):
        console.print()
        console.print(Text(f"{clean(workload, 30)} on {clean(model, 46)}", style="dim"), no_wrap=True)
        console.print(_table(part))
    repeats = sorted({len(group.rows) for group in by_workload})
    counts = " to ".join(str(count) for count in dict.fromkeys((repeats[0], repeats[-1])))
    means = f"Means of {counts} repeats. " if repeats[-1] > 1 else ""
    notes = [f"{means}J/token: measured joules per output token, idle included."]
    if any(not row.energy_valid for row in rows):
        notes.append("?: the energy of a repeat is not valid; see its report.")
    console.print()
    for note in notes:
        console.print(Text(note, style="dim"))
    if study.limits_ms:
        console.print()
        for sentence in findings(by_workload, study):
            console.print(Padding(Text(clean(sentence, 1_000)), (0, 0, 0, 2)))


def _model_and_workload(group: Group) -> tuple[str, str]:
    return group.key.model, group.key.workload


def _table(part: Iterable[Group]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("server", overflow="fold")  # the one column that gives way
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for group in part:
        table.add_row(
            Text(clean(group.key.server, 60)),
            load_text(group),
            seconds(group.mean("ttft_p99_s")),
            seconds(group.mean("tpot_p99_s")),
            percent(group.mean("goodput_ratio")),
            *_energy(group),
        )
    return table


def _energy(group: Group) -> tuple[str, str]:
    """Return the joules per output token and their interval: none that reaches below 0, which no energy does."""
    interval = group.interval("joules_per_output_token")
    if interval is None:
        return UNKNOWN, UNKNOWN
    mark = "" if all(row.energy_valid for row in group.rows) else " ?"
    if interval.low is None or interval.high is None or interval.low <= 0:
        return joules(interval.mean) + mark, UNKNOWN
    return joules(interval.mean) + mark, f"{number(interval.low)}-{number(interval.high)}"

"""One request of a run, found by its id: every column of the table of requests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from loadgen.errors import LoadgenError
from loadgen.report.format import UNKNOWN, clean, count, joules, seconds
from loadgen.results.request_table import COLUMNS, request_rows

if TYPE_CHECKING:
    from rich.console import Console

    from loadgen.results.run_folder import RunResult

MAX_ID = 200
"""A longer id is none."""


def request_with_id(result: RunResult, request_id: str) -> dict[str, Any]:
    """Return the row of one request, and its id. Raises LoadgenError when no request of the run has that id.

    The id is the X-Request-Id that was sent, RUN_ID-INDEX, an id of vLLM that contains it, or only the index.
    """
    run_id = result.info.run_id
    pattern = rf"(?:(?:chat)?cmpl-)?{re.escape(run_id)}-([0-9]{{1,12}})(?:-[0-9]{{1,4}})?|([0-9]{{1,12}})"
    match = re.fullmatch(pattern, request_id) if len(request_id) <= MAX_ID else None
    index = int(match[1] or match[2]) if match else -1
    for row in request_rows(result):
        if row.request.index == index:
            return {"id": f"{run_id}-{index}"} | {column.name: column.value(row) for column in COLUMNS}
    raise LoadgenError(
        f"no request of the run has the id {clean(request_id, MAX_ID)}: ids are {run_id}-INDEX, with an index from 0 "
        f"to {len(result.schedule) - 1}"
    )


def render_request(row: dict[str, Any], console: Console) -> None:
    """Print the row, a line for each column that is known."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_row(Text("id", style="dim"), Text(clean(row["id"])))
    for column in COLUMNS:
        value = row[column.name]
        match column.unit:
            case "s" if value is not None and column.name != "sent_unix_s":
                shown = seconds(value)
            case "J":
                shown = joules(value)
            case "tokens" | "chunks":
                shown = count(value)
            case _:
                shown = UNKNOWN if value is None else clean(value)
        if shown != UNKNOWN or column.name == "joules":
            table.add_row(Text(column.name, style="dim"), Text(shown))
    console.print(table)

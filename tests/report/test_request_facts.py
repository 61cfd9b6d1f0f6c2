"""One request of a run, by the id under which it was sent."""

import io

import pytest
from rich.console import Console

from loadgen.errors import LoadgenError
from loadgen.report.request_facts import render_request, request_with_id
from support import sample_runs

RUN = sample_runs.run(40)
RUN_ID = RUN.info.run_id


@pytest.mark.parametrize("request_id", [f"{RUN_ID}-7", "7", f"chatcmpl-{RUN_ID}-7", f"cmpl-{RUN_ID}-7-0"])
def test_a_request_is_found_by_the_id_that_was_sent_by_the_engines_and_by_its_index(request_id: str) -> None:
    row = request_with_id(RUN, request_id)
    assert (row["id"], row["index"]) == (f"{RUN_ID}-7", 7)
    assert row["joules"] == RUN.shares[7].joules


@pytest.mark.parametrize("request_id", ["40", "-1", f"{RUN_ID}-", "x-7", "", "7\x1b[2J", "9" * 500, "٧"])
def test_an_id_that_no_request_has_is_one_line_that_says_which_there_are(request_id: str) -> None:
    with pytest.raises(LoadgenError, match=rf"ids are {RUN_ID}-INDEX, with an index from 0 to 39$") as refused:
        request_with_id(RUN, request_id)
    assert str(refused.value).isprintable()


def test_what_is_unknown_is_left_out_but_joules() -> None:
    console = Console(file=io.StringIO(), width=80)
    render_request(request_with_id(sample_runs.without_energy(), "0"), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert rows["joules"].strip() == "-" and rows["id"].endswith("-0")
    assert "se_joules" not in rows and "e2e_s" in rows

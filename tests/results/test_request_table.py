"""The table of requests: its columns, their types and units, and its agreement with the summary."""

import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.record import RequestRecord
from loadgen.results.request_table import COLUMNS, request_table
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from support import sample_runs

PYTHON_TYPES = {"int64": int, "float64": float, "string": str, "bool": bool}


@pytest.fixture(scope="module")
def made() -> RunResult:
    """A run of which 10 % fail, analysed."""
    return analyse_run(sample_runs.run(num_requests=120, failing=0.1))


def known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def test_every_value_has_the_type_of_its_column_or_is_unknown(made: RunResult) -> None:
    table = request_table(made)
    assert list(table) == [column.name for column in COLUMNS]
    for column in COLUMNS:
        assert len(table[column.name]) == len(made.schedule)
        assert {type(value) for value in table[column.name]} <= {PYTHON_TYPES[column.type], type(None)}, column.name


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_the_name_of_a_column_ends_in_its_unit(column) -> None:  # type: ignore[no-untyped-def]
    assert column.meaning.endswith(".")
    assert (column.unit == "s") == column.name.endswith("_s")
    assert (column.unit == "J") == ("joules" in column.name)
    assert (column.unit == "tokens") == ("_tokens" in column.name)


@pytest.mark.parametrize("latency", ["ttft_s", "tpot_s", "e2e_s", "response_s"])
def test_a_percentile_of_a_column_is_that_of_the_summary(made: RunResult, latency: str) -> None:
    values, summary = known(request_table(made)[latency]), getattr(made.summary, latency)
    assert len(values) == summary.count
    assert np.percentile(values, 90) == pytest.approx(summary.p90)


def test_tags_are_an_object_and_the_hosts_joules_those_of_the_attribution(made: RunResult) -> None:
    assert made.attribution is not None
    tags = {"tenant": 'a"b', "by": "é"}
    schedule = [msgspec.structs.replace(item, tags=tags if item.index else msgspec.UNSET) for item in made.schedule]
    requests = [msgspec.structs.replace(share, host_joules=float(share.index)) for share in made.attribution.requests]
    attribution = msgspec.structs.replace(made.attribution, requests=requests)
    table = request_table(replace(made, schedule=schedule, attribution=attribution))
    assert table["tags"][0] is None
    assert json.loads(table["tags"][1]) == tags
    assert table["host_joules"][:3] == [0.0, 1.0, 2.0]
    assert set(request_table(made)["host_joules"]) == {None}


def test_the_joules_add_up_to_the_attributed_ones(made: RunResult) -> None:
    assert made.summary is not None
    assert sum(known(request_table(made)["joules"])) == pytest.approx(made.summary.energy.attributed_joules)


def test_the_joules_of_a_request_that_may_or_may_not_have_been_sent_are_unknown(made: RunResult) -> None:
    """So it is with the requests of a killed run that have no record."""
    lost = RequestRecord.unanswered(made.schedule[0], 0, "cancelled", "no record: the client was killed")
    records = [lost if record.index == lost.index else record for record in made.records]
    table = request_table(replace(made, records=records))
    row = table["index"].index(lost.index)
    assert [table[name][row] for name in table if "joules" in name] == [None] * 8


def test_a_failed_request_has_instants_and_no_latencies(made: RunResult) -> None:
    table = request_table(made)
    failed = [row for row, completed in enumerate(table["completed"]) if not completed]
    assert failed
    for row in failed:
        assert table["error"][row] and table["sent_s"][row] is not None and table["finished_s"][row] is not None
        assert [table[name][row] for name in ("ttft_s", "tpot_s", "e2e_s", "response_s")] == [None] * 4


def test_without_a_meter_no_request_has_joules() -> None:
    table = request_table(analyse_run(sample_runs.without_energy()))
    assert not [name for name in table if "joules" in name and known(table[name])]


def test_counts_of_prompts_that_are_none_are_unknown(made: RunResult) -> None:
    alike = [msgspec.structs.replace(record, input_tokens=7) if record.ok else record for record in made.records]
    table = request_table(replace(made, records=alike))
    assert not known(table["input_tokens"]) and len(known(table["input_tokens_planned"])) == len(alike)


def test_unix_time_is_the_wall_clock_of_the_anchor(made: RunResult) -> None:
    table, anchor = request_table(made), made.info.anchor
    sent_ns = made.records[0].sent_ns
    assert sent_ns is not None
    expected = (anchor.wall_ns + sent_ns - anchor.monotonic_ns) / 1e9
    assert table["sent_unix_s"][0] == pytest.approx(expected, abs=1e-6)

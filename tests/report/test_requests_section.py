"""The section of a run's page on its slowest and costliest requests."""

import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from loadgen.report.markup import join
from loadgen.report.requests_section import (
    MAX_CHUNKS,
    ROWS,
    chunk_offsets_s,
    request_data,
    requests_section,
    timeline,
)
from loadgen.results.request_columns import request_columns
from loadgen.results.run_folder import RunResult
from report.test_run_page import Page
from support import sample_runs


def section_of(result: RunResult, drawn: tuple[int, ...] = ()) -> str:
    assert result.summary is not None
    return join(requests_section(result, result.summary, drawn))


def chosen(html: str) -> list[int]:
    return [int(index) for index in re.findall(r'<tr data-request="(\d+)"', html)]


def test_the_slowest_and_the_costliest_are_listed_the_largest_first() -> None:
    made = sample_runs.run()
    assert made.attribution is not None
    completed = [record for record in made.records if record.ok]
    by_ttft = sorted(completed, key=lambda r: -(r.ttft_ns or 0))[:ROWS]
    by_e2e = sorted(completed, key=lambda r: -(r.e2e_ns or 0))[:ROWS]
    by_joules = sorted(made.attribution.requests, key=lambda share: -share.joules)[:ROWS]
    assert chosen(section_of(made)) == [item.index for item in (*by_ttft, *by_e2e, *by_joules)]


def test_without_energy_there_are_no_costliest_and_no_joules() -> None:
    made = sample_runs.without_energy()
    text = Page(section_of(made)).text
    assert len(chosen(section_of(made))) == 2 * ROWS
    assert "Costliest" not in text and "cost most" not in text and " J" not in text


def test_nothing_is_listed_where_no_request_completed_and_nothing_compared_of_too_few() -> None:
    assert section_of(sample_runs.without_completions()) == ""
    text = Page(section_of(sample_runs.single())).text
    assert "Too few requests have a TTFT to compare" in text and "What the slowest" not in text


def test_the_question_of_a_slow_p99_is_answered_and_its_part_of_the_run_can_be_shown() -> None:
    made = sample_runs.run()
    html = section_of(sample_runs.held_up(made, range(200, 212)))
    ((start_s, end_s),) = re.findall(r'data-from="([\d.]+)" data-to="([\d.]+)"', html)
    sent_s = [((made.records[i].sent_ns or 0) - made.records[0].scheduled_ns) / 1e9 for i in (200, 211)]
    assert sent_s[0] - 2 < float(start_s) < float(end_s) < sent_s[1] + 2
    assert re.search(r"Why is TTFT p99 [\d.]+ m?s\? The median is [\d.]+ m?s\. \d+ of the 10 slowest", Page(html).text)
    assert 'href="#over-time"' in html and "data-from" not in section_of(made)


def test_the_rows_of_the_script_are_those_of_the_tables_and_of_the_dots() -> None:
    made = sample_runs.run()
    html = section_of(made, drawn=(1, 2, 3, 10_000))
    data = msgspec.json.decode(html.partition('id="requests">')[2].partition("</script>")[0])
    assert {row[0] for row in data["rows"]} == set(chosen(html)) | {1, 2, 3}
    with_chunks = {row[0] for row in data["rows"] if len(row) == len(data["columns"])}
    assert with_chunks == set(chosen(html)) and data["columns"][-1]["name"] == "chunks"
    assert {len(row) for row in data["rows"]} == {len(data["columns"]), len(data["columns"]) - 1}


def test_columns_of_the_script_that_no_request_has_are_left_out() -> None:
    made = sample_runs.without_energy()
    columns = request_columns(made)
    records = {record.index: record for record in made.records}
    data = request_data(columns, [0], np.array([], dtype=np.int64), records)
    names = [column["name"] for column in data["columns"]]
    assert "energy" not in names and "cached tokens" not in names and {"TTFT", "input tokens", "chunks"} <= set(names)


def test_a_failed_request_has_its_outcome_and_the_instant_that_it_was_sent_and_nothing_else() -> None:
    made = sample_runs.run(failing=0.3)
    failed = next(record for record in made.records if not record.ok)
    records = {record.index: record for record in made.records}
    columns = request_columns(made)
    data = request_data(columns, [failed.index, 10_000], np.array([], dtype=np.int64), records)
    ((index, workload, outcome, sent_s, lag_s, *others),) = data["rows"]
    assert (index, workload, outcome) == (failed.index, failed.workload, failed.error)
    start_ns = min(record.scheduled_ns for record in made.records)
    assert sent_s == pytest.approx(((failed.sent_ns or 0) - start_ns) / 1e9, rel=1e-3)
    assert lag_s == pytest.approx((failed.lag_ns or 0) / 1e9, rel=1e-3) and set(others) == {None}


@pytest.mark.parametrize("chunks", [1, 2, MAX_CHUNKS, 5_000])
def test_a_timeline_has_its_first_and_last_chunk_and_no_more_than_it_draws(chunks: int) -> None:
    record = sample_runs.single().records[0]
    start = record.sent_ns or 0
    record = msgspec.structs.replace(record, chunk_ns=[start + (k + 1) * 10_000_000 for k in range(chunks)])
    offsets_s = chunk_offsets_s(record)
    assert len(offsets_s) == min(chunks, MAX_CHUNKS)
    assert (offsets_s[0], offsets_s[-1]) == pytest.approx((0.01, chunks * 0.01))
    drawn = timeline(record, chunks * 0.01)
    assert drawn.count("h.01") <= MAX_CHUNKS and "M300 5h.01" in drawn
    assert f"{chunks:,} chunks from 10.0 ms" in drawn


def test_a_request_without_chunks_has_no_timeline() -> None:
    record = msgspec.structs.replace(sample_runs.single().records[0], chunk_ns=[])
    assert timeline(record, 1.0) == timeline(sample_runs.single().records[0], 0.0) == "-"


def test_names_of_workloads_are_text() -> None:
    evil = "</script><script>x"
    made = sample_runs.run(num_requests=30)
    records = [msgspec.structs.replace(r, workload=evil if r.index % 2 else "b") for r in made.records]
    html = section_of(replace(made, records=records))
    assert "<script>x" not in html and evil in Page(html).text

"""The section of a run's page on its sessions."""

import re
from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from loadgen.report import sessions_section, svg
from loadgen.report.markup import join
from loadgen.report.sessions_section import GRAIN, LISTED, MAX_ROWS, costliest
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from report.test_run_page import Page
from support import sample_runs
from support.session_runs import agent_run, analysed, turn


def section_of(result: RunResult) -> str:
    return join(sessions_section.sessions_section(result))


def test_a_run_without_sessions_has_no_such_section() -> None:
    assert section_of(sample_runs.run()) == ""


def test_the_costliest_sessions_are_drawn_in_order_of_time_and_listed_by_joules() -> None:
    result = analysed([turn(i, f"s{i // 2:02}", i, i + 0.4 + 0.002 * i) for i in range(2 * MAX_ROWS + 10)])
    html = section_of(result)
    ranked = [account.session for account in costliest(result.sessions, MAX_ROWS)]
    assert re.findall(r"<title>(s\d+):", html) == sorted(ranked)
    assert re.findall(r'<th scope="row">(s\d+)</th>', html) == ranked[:LISTED]
    assert f"The {MAX_ROWS} costliest of 45 sessions" in Page(html).text


def test_every_phase_is_drawn_where_it_was() -> None:
    result = analysed([turn(0, "a", 0, 1), turn(1, "a", 3, 5, due_s=2.5), turn(2, "b", 5, 10)])
    first_row = section_of(result).split("<g><title>")[1]
    paths = dict(re.findall(r'd="([^"]+)" class="phase phase-(\w+)"', first_row))
    assert paths == {"M100 10H250": "tool", "M250 10H300": "waiting", "M0 10H100M300 10H500": "model"}


def test_the_drawing_of_a_session_is_bounded_however_many_turns_it_has() -> None:
    ends = np.linspace(0, svg.WIDTH, 20_001)
    merged = sessions_section._merged(np.stack([ends[:-1], ends[:-1] + 0.01], axis=1))
    assert len(merged) <= svg.WIDTH * GRAIN
    assert all(before[1] < after[0] for before, after in pairwise(merged))


def test_without_energy_the_longest_sessions_are_listed_without_joules() -> None:
    result = agent_run()
    dark = analyse_run(replace(result, energy=[], info=msgspec.structs.replace(result.info, domains=[])))
    text = Page(section_of(dark)).text
    assert "Longest sessions" in text and "Costliest" not in text and " J " not in text


def test_a_session_of_which_nothing_was_sent_is_neither_drawn_nor_listed() -> None:
    unsent = {"sent_ns": None, "first_token_ns": None, "finished_ns": None, "chunk_ns": [], "error": "not_sent"}
    html = section_of(analysed([turn(0, "a", 0, 1), turn(1, "a", 2, 3), turn(2, "b", 3, 4, **unsent)]))
    assert re.findall(r'<th scope="row">(\w)</th>', html) == ["a"] and "<title>b" not in html
    assert "costliest of" not in Page(html).text


def test_sub_agents_and_failed_requests_are_named_in_their_row() -> None:
    turns = [turn(0, "a", 0, 1), turn(1, "a", 1, 2, task="search"), turn(2, "a", 3, 4, error="http", status=500)]
    text = Page(section_of(analysed(turns))).text
    assert "3 1 failed 1 sub-agent" in text


def test_a_name_of_a_session_is_escaped_and_shortened() -> None:
    hostile = "<script>alert(1)</script>" * 20
    html = section_of(analysed([turn(i, hostile, i, i + 0.5) for i in range(2)]))
    assert "<script>alert" not in html and html.count("alert") < 20


@pytest.mark.parametrize("watts", [400, 0])
def test_the_table_by_depth_has_a_row_for_each_bin_and_bars_where_energy_is_known(watts: float) -> None:
    sessions = analysed([turn(i, "a", i, i + 0.5) for i in range(5)], watts=watts).summary.sessions
    html = sessions_section.depth_table(sessions)
    assert re.findall(r'<th scope="row">([^<]+)</th>', html) == ["turn 1", "turns 2–3", "turns 4–7"]
    assert html.count('class="bar"') == (3 if watts else 0)

"""The examples of docs/reference/traces.md are read as what the page says that they are."""

import re
from pathlib import Path

import numpy as np
import pytest

from loadgen.record import PATHS
from loadgen.units import NS_PER_S
from loadgen.workload.length_laws import LAWS, drawn_lengths
from loadgen.workload.routes import routed
from loadgen.workload.schedule import build_schedule
from loadgen.workload.sessions import settle_history
from loadgen.workload.sources import read_source
from loadgen.workload.stream_schedule import schedule_streams, schedule_trace
from loadgen.workload.streams import Stream, read_streams, share_rate
from loadgen.workload.trace import read_trace
from loadgen.workload.worded_trace import LENGTHS
from loadgen.workload.words import ROUTING, SAMPLING, WordsFile

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "traces.md").read_text()
EXAMPLES = dict(re.findall(r"```(?:json|toml) (\S+)\n(.*?\n)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("kind", ["lengths", "words", "body"])
def test_an_example_is_scheduled_line_by_line(tmp_path: Path, kind: str) -> None:
    (path := tmp_path / "t.jsonl").write_text(EXAMPLES[kind])
    with (tmp_path / "words").open("wb") as file:
        trace = read_source(path, WordsFile(file))
    schedule = build_schedule(trace, seed=0, rps=5)
    assert len(schedule.requests) == EXAMPLES[kind].count("\n")
    assert all((request.words is None) == (kind == "lengths") for request in schedule.requests)
    assert [request.natural for request in schedule.requests] == [
        '"output_length"' not in line for line in EXAMPLES[kind].splitlines()
    ]


def test_each_body_of_an_endpoint_goes_to_it(tmp_path: Path) -> None:
    (path := tmp_path / "t.jsonl").write_text(EXAMPLES["endpoints"])
    with (tmp_path / "words").open("wb") as file:
        trace = read_source(path, WordsFile(file))
    schedule = routed(build_schedule(trace, seed=0, rps=5), "chat")
    assert [request.words and request.words.endpoint for request in schedule.requests] == [
        "responses", "embeddings", "rerank",
    ]  # fmt: skip
    assert all(f"`{endpoint}`" in PAGE for endpoint in PATHS)


def test_conversations_are_sessions_of_turns(tmp_path: Path) -> None:
    for kind, history in (("conversation", "recorded"), ("continues", "live")):
        (path := tmp_path / "t.jsonl").write_text(EXAMPLES[kind])
        with (tmp_path / "words").open("wb") as file:
            trace = read_source(path, WordsFile(file))
        schedule = schedule_trace(trace, Stream(rps=5), seed=0, duration_s=None, num_requests=None)
        schedule, settled = settle_history(schedule, None)
        assert [request.after for request in schedule.requests] == [None, 0]
        assert settled == history


def test_the_streams_share_the_rate_and_name_their_model(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(EXAMPLES["streams"])
    for name in ("support", "sql"):
        (tmp_path / f"{name}.jsonl").write_text(EXAMPLES["words"].splitlines()[0])
    streams = share_rate(read_streams(tmp_path / "s.toml"), 9)
    assert [stream.rps for stream in streams.values()] == [6, 2, 1]
    with (tmp_path / "words").open("wb") as file:
        schedule = schedule_streams(streams, seed=0, duration_s=20, num_requests=None, words=WordsFile(file))
    assert {request.workload: request.model for request in schedule.requests} == {
        "support": None, "sql": "my-sql-adapter", "background": None,
    }  # fmt: skip


def test_the_page_names_every_field_and_every_distribution() -> None:
    assert all(f"`{name}`" in PAGE for name in LENGTHS | ROUTING | SAMPLING | {"answer", "continues"})
    laws = re.findall(r"^\| `([^ `]+)` \|", PAGE.split("| distribution |")[1], re.MULTILINE)
    assert laws[0] == "512" and all(law in LAWS for law in laws[1:]) and len(laws) == 5


@pytest.mark.parametrize("law", sorted(set(re.findall(r"--(?:input|output) (\S+)", PAGE))))
def test_the_laws_of_the_commands_are_laws(law: str) -> None:
    assert drawn_lengths(law, 3, np.random.default_rng(0)).min() >= 1


def test_a_graph_forks_and_joins(tmp_path: Path) -> None:
    (path := tmp_path / "t.jsonl").write_text(EXAMPLES["graph"])
    schedule = schedule_trace(read_trace(path), Stream(), seed=0, duration_s=None, num_requests=None)
    assert [(request.parents, request.think_ns / NS_PER_S, request.task) for request in schedule.requests] == [
        ((), 0, None), ((0,), 0.5, "explore"), ((0,), 1.0, None), ((1, 2), 5.0, None),
    ]  # fmt: skip
    assert len({request.text_id for request in schedule.requests}) == 2, "of the main thread, and of the sub-agent"

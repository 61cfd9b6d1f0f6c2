"""What every format says is what arrives: a few requests of each; benchmarks/accuracy/bodies.py sends ten thousand."""

import json
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from benchmarks.accuracy import body_files
from benchmarks.accuracy.bodies import Arrived, arrived
from loadgen.cli import main

PYTHON_SERVER = (sys.executable, "-m", "loadgen.run.timing_server")


def replay_here(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0


@pytest.mark.parametrize("name", body_files.FORMATS)
def test_bodies_arrive_as_given(tmp_path: Path, name: str) -> None:
    result = arrived(name, 60, PYTHON_SERVER, tmp_path, replay_here)
    assert len(result.due) >= 60
    assert [result.due[i] for i in result.different()] == []


def test_a_byte_more_or_a_body_less_is_noticed() -> None:
    assert Arrived([b"{}", b"{} ", b"[]"], [hashed(b"{}"), hashed(b"{}"), None]).different() == [1, 2]


def hashed(data: bytes) -> str:
    return sha256(data).hexdigest()


@pytest.mark.parametrize("name", body_files.FORMATS)
def test_the_bodies_that_are_due_are_json_that_no_two_requests_share(tmp_path: Path, name: str) -> None:
    _, due = body_files.write(tmp_path, name, 60)
    for body in due:
        fields = json.loads(body)
        assert fields["stream"] is True and fields["stream_options"] == {"include_usage": True}
        assert ("messages" in fields) != ("prompt" in fields)
    assert len(set(due)) > 50

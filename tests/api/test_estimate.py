"""An estimate from a program is that of the command."""

from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import loadgen
from loadgen.cli import cli

PROFILE = "h200-sim-llama-3.1-8b"


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        ("", {}),
        ("--rps 4", {"rps": np.float64(4)}),
        ("--batch 8 --price 0.3 --pue 1.2", {"batch": np.int64(8), "price": 0.3, "pue": 1.2}),
        (
            "--batch 8 --grid-intensity 400 --grid-source made-up",
            {"batch": 8, "grid_intensity": 400, "grid_source": "made-up"},
        ),
    ],
)
def test_an_estimate_is_what_the_command_prints(typed: str, options: dict[str, Any]) -> None:
    made = loadgen.estimate("chat", profile=PROFILE, **options)
    printed = CliRunner().invoke(cli, ["estimate", "chat", "--profile", PROFILE, "--json", *typed.split()]).output
    assert made.to_dict() == msgspec.json.decode(printed)


def test_a_trace_in_memory_costs_what_its_file_does() -> None:
    in_memory = loadgen.estimate(loadgen.read_trace("chat"), profile=PROFILE)
    assert in_memory.to_dict() == loadgen.estimate("chat", profile=PROFILE).to_dict()


def test_what_is_not_asked_for_is_unknown() -> None:
    made = loadgen.estimate("chat", profile=PROFILE, batch=8)
    method = made.method("interpolated")
    assert (method.co2e_kg, method.cost, made.measured, made.grid_source) == (None, None, None, None)
    assert method.joules == pytest.approx(method.joules_per_request * made.requests)
    with pytest.raises(KeyError, match="no method 'linear'; there is interpolated"):
        made.method("linear")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 8, "rps": 4}, "give batch or rps, not both"),
        ({"batch": -1}, "batch: expected `float` > 0"),
        ({"pue": 0.5}, "pue: expected `float` >= 1"),
        ({"grid_source": "x" * 501}, "grid_source: expected `str` of length <= 500"),
        ({"profile": "nothing"}, "no energy profile called 'nothing'"),
        ({"measured": "nowhere"}, "is not a run folder"),
        ({"trace": loadgen.Trace("t", (), "")}, "expected requests with both of their lengths"),
    ],
)
def test_what_cannot_be_estimated_is_an_error_of_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(loadgen.LoadgenError) as error:
        loadgen.estimate(**{"trace": "chat", "profile": PROFILE} | options)
    assert message in str(error.value)

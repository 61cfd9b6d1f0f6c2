"""The help of commands with many options: sections in reading order."""

import re

import click
import pytest
from click.testing import CliRunner

from loadgen.cli import cli
from loadgen.cli.options import POSITIVE, FiniteRange, SectionedCommand

SECTIONS = {
    "replay": "Load; Your own prompts and sessions; Agent sessions; Server; Limits; Measurement; Energy; Output",
    "profile": "Grid; Server; Energy; Precision and time; Names in the file; Output",
    "serve": "Server; Simulator; Energy counter of the simulator; Output",
    "estimate": "Prediction; Facility, carbon and cost; Output",
    "sidecar": "Engine; Energy; Listening; Late spans; Requests; Labels; OpenTelemetry; Output",
}


def help_of(name: str) -> str:
    return CliRunner().invoke(cli, [name, "--help"], terminal_width=80).output


@pytest.mark.parametrize(("name", "headings"), SECTIONS.items())
def test_a_command_with_many_options_lists_them_under_headings_in_order(name: str, headings: str) -> None:
    output = help_of(name)
    assert re.findall(r"(?m)^(\w[\w, ]+):$", output) == headings.split("; ")
    assert max(map(len, output.partition("\nOutput:")[0].splitlines()[12:])) <= 80


@pytest.mark.parametrize("name", SECTIONS)
def test_each_option_is_listed_once(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, SectionedCommand)
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert set(command.sections) <= {option.name for option in options}
    listed = re.findall(r"(?m)^  (?:-\w, )?(--[\w-]+)", help_of(name))
    assert sorted(listed) == sorted([*(next(o for o in option.opts if len(o) > 2) for option in options), "--help"])


def test_an_option_without_an_entry_is_under_the_heading_before_it() -> None:
    @click.command(cls=SectionedCommand, sections={"b": "Second"})
    @click.option("--a")
    @click.option("--b")
    @click.option("--c")
    def command() -> None: ...

    output = CliRunner().invoke(command, ["--help"]).output
    assert re.findall(r"(?m)^\w+:$|--\w", output) == ["Options:", "--a", "Second:", "--b", "--c", "--h"]


@pytest.mark.parametrize(
    ("kind", "text"), [(POSITIVE, "above 0"), (FiniteRange(0, 3600), "0<=x<=3600"), (FiniteRange(1.0), "x>=1.0")]
)
def test_the_range_of_a_number_is_stated_without_a_bound_that_is_none(kind: FiniteRange, text: str) -> None:
    option = click.Option(["--n"], type=kind, help="Number.")
    record = option.get_help_record(click.Context(click.Command("c")))
    assert record == ("--n NUMBER", f"Number.  [{text}]")

"""The command line as a whole: every command loads, and no key stays in the process title."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from loadgen import cli
from loadgen.cli.options import key_values


@pytest.fixture(autouse=True)
def _sigterm_as_before() -> Iterator[None]:
    """`main` is made for a process of its own, of which it takes SIGTERM."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_shows_its_help(name: str) -> None:
    result = CliRunner().invoke(cli.cli, [name, "--help"])
    assert result.exit_code == 0
    assert f"{name} [OPTIONS]" in result.output or f"{name} [OPTIONS] COMMAND" in result.output


def commands(name: str, command: click.Command | None) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands below `command`, or itself, with their full names."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for below in command.list_commands(context):
            yield from commands(f"{name} {below}", command.get_command(context, below))
    elif command is not None:
        yield name, command


@pytest.mark.parametrize(("name", "command"), list(commands("loadgen", cli.cli)))
def test_every_command_and_option_is_described_in_sentences(name: str, command: click.Command) -> None:
    assert command.help and command.help.strip()[0].isupper()
    for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
        text = (option.help or "").strip()
        assert text and text[0].isupper() and text[-1] in ".]", (name, option.opts, text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(("name", "command"), list(commands("loadgen", cli.cli)))
def test_no_option_takes_a_number_that_is_not_finite(name: str, command: click.Command, text: str) -> None:
    for parameter in command.params:
        if isinstance(parameter.type, click.types.FloatParamType):
            with pytest.raises(click.BadParameter):
                parameter.type.convert(text, parameter, click.Context(command, info_name=name))


def test_an_error_is_no_order_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a\x1b[31m.jsonl").write_text('{"kind":"\x9b31m"}\n')
    with pytest.raises(SystemExit):
        cli.main(["bill", str(tmp_path)])
    printed = capsys.readouterr().err
    assert printed.startswith("loadgen: ") and printed.rstrip("\n").isprintable()


def test_the_help_lists_all_commands() -> None:
    output = CliRunner().invoke(cli.cli, ["--help"]).output
    assert all(f"  {name} " in output for name in cli.COMMANDS)


def test_an_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(cli.cli, ["reply"])
    assert result.exit_code == 2
    assert "No such command 'reply'" in result.output


class StartedAgainError(Exception):
    pass


@pytest.mark.parametrize(
    ("arguments", "command", "variable"),
    [
        (["replay", "t.jsonl", "--api-key", "k"], ["replay", "t.jsonl"], "OPENAI_API_KEY"),
        (["replay", "--api-key=k", "t.jsonl"], ["replay", "t.jsonl"], "OPENAI_API_KEY"),
        (["serve", "--api-key", "k", "sim"], ["serve", "sim"], "LOADGEN_SERVE_API_KEY"),
    ],
)
def test_a_key_moves_from_the_command_line_to_the_environment(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], command: list[str], variable: str
) -> None:
    started: list[Any] = []

    def execve(path: str, argv: list[str], environment: dict[str, str]) -> None:
        started.append((path, argv, environment[variable]))
        raise StartedAgainError

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["loadgen", *arguments])
    with pytest.raises(StartedAgainError):
        cli.main()
    assert started == [(sys.executable, [sys.executable, "-m", "loadgen", *command], "k")]


@pytest.mark.parametrize("arguments", [["--version"], ["replay", "--help"], ["trace", "--help"]])
def test_a_command_without_a_key_starts_once(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started again"))
    monkeypatch.setattr(sys, "argv", ["loadgen", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0


def test_engine_options_are_split_at_the_first_equals_sign() -> None:
    context: Any = None
    assert key_values(context, context, ("a=1", " b =x=y", 'c={"d": 2}', "e=")) == {
        "a": "1",
        "b": "x=y",
        "c": '{"d": 2}',
        "e": "",
    }


@pytest.mark.parametrize("text", ["a", "=1", " =1"])
def test_an_engine_option_without_a_key_is_refused(text: str) -> None:
    context: Any = None
    with pytest.raises(click.BadParameter, match="is not KEY=VALUE"):
        key_values(context, context, (text,))


def test_every_command_with_an_api_key_moves_it_from_the_command_line_to_its_variable() -> None:
    keys = {
        name.split()[-1]: parameter.envvar
        for name, command in commands("loadgen", cli.cli)
        for parameter in command.params
        if parameter.name == "api_key"
    }
    assert keys == cli.KEY_VARIABLES

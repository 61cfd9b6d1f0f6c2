"""The library and the command line are one: the same parameters, with the same defaults."""

import inspect
from collections.abc import Callable
from typing import Any

import click
import msgspec
import pytest

import loadgen
from loadgen.api.record_run import LOAD_OPTIONS, RUN_OPTIONS
from loadgen.api.record_search import SEARCH_OPTIONS, SearchOptions
from loadgen.cli import cli
from loadgen.cli.search import Duration, Share
from loadgen.run.config import RunConfig
from loadgen.workload.load import Load
from loadgen.workload.streams import OF_SESSIONS

COMMANDS = {"replay": loadgen.replay, "estimate": loadgen.estimate, "search": loadgen.search}
OF_A_TERMINAL = {"ui", "as_json", "verbose", "log_file", "repeat", "junit", "markdown"}
ENVIRONMENT = {"base_url": "OPENAI_BASE_URL", "api_key": "OPENAI_API_KEY"}
"""Parameters whose default None stands for a variable, and for the command's default where it is not set."""


def command_of(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def plain(value: Any) -> Any:
    """Return a default without its form: none, an empty list and an empty object are all nothing."""
    return None if value in ((), [], {}, "{}", None, click.core.UNSET) else value


@pytest.mark.parametrize("name", COMMANDS)
def test_a_function_has_the_parameters_of_its_command(name: str) -> None:
    options = {parameter.name for parameter in command_of(name).params} - OF_A_TERMINAL
    assert defaults_of(COMMANDS[name]).keys() - {"ui"} == options


@pytest.mark.parametrize("name", COMMANDS)
def test_a_default_is_that_of_the_command(name: str) -> None:
    defaults = defaults_of(COMMANDS[name])
    for parameter in command_of(name).params:
        if parameter.name not in OF_A_TERMINAL and not parameter.required:
            assert isinstance(parameter.name, str)
            default = parameter.to_info_dict()["default"] if parameter.name not in ENVIRONMENT else None
            if isinstance(parameter.type, Duration | Share):
                default = plain(default) and parameter.type.convert(default, parameter, None)
            if isinstance(parameter, click.Option) and parameter.is_flag:
                default = bool(plain(default))
            assert plain(defaults[parameter.name]) == plain(default), parameter.name


def test_a_variable_of_the_environment_is_that_of_the_command() -> None:
    variables = {p.name: p.envvar for p in command_of("replay").params if p.envvar}
    assert {name: variables[name] for name in ENVIRONMENT} == ENVIRONMENT


@pytest.mark.parametrize(
    ("function", "options"),
    [(loadgen.replay, Load), (loadgen.replay, RunConfig), (loadgen.search, SearchOptions)],
)
def test_the_structs_have_the_same_defaults(function: Callable[..., Any], options: Any) -> None:
    defaults = defaults_of(function)
    for field in msgspec.structs.fields(options):
        if field.name in defaults and not field.required and field.name != "history":  # None: as the trace needs
            value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            assert plain(defaults[field.name]) == plain(value), field.name


def test_every_parameter_reaches_the_run_and_the_asynchronous_variant_has_all_of_them() -> None:
    names = set(defaults_of(loadgen.replay))
    assert names == LOAD_OPTIONS | RUN_OPTIONS | {"serve", "ui"}
    assert defaults_of(loadgen.areplay) == defaults_of(loadgen.replay)


def test_every_parameter_reaches_the_search_and_the_asynchronous_variant_has_all_of_them() -> None:
    """A probe has a rate, a duration and an answer's folder of its own, and no more requests than it sends."""
    of_a_probe = {"rps", "scale", "shape", "duration_s", "num_requests", "max_concurrency", "otlp", "overwrite"}
    of_a_probe |= {"keep_bodies", "keep_answers", *OF_SESSIONS, "too_long", "max_context"}
    names = set(defaults_of(loadgen.search))
    assert names == (LOAD_OPTIONS | RUN_OPTIONS | SEARCH_OPTIONS | {"serve", "over", "ui"}) - of_a_probe
    assert defaults_of(loadgen.asearch) == defaults_of(loadgen.search)

"""Option types, defaults and the form of --help that several commands share."""

import re
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import click

from loadgen.cli.completion import complete_energy, complete_names
from loadgen.errors import LoadgenError

Command = TypeVar("Command", bound=Callable[..., Any])

SERVER_NAMES = complete_names("servers")
SOURCE_NAMES = complete_names("traces", "workloads", files=True)
TRACE_NAMES = complete_names("traces", "mixes", "workloads", files=True)
STREAM_NAMES = complete_names("traces", "workloads")
BINS_NAMES = complete_names("workloads", files=True)
PROFILE_NAMES = complete_names("energy", files=True)
HARDWARE_NAMES = complete_names("hardware", files=True)
MODEL_NAMES = complete_names("models", files=True)
ENERGY_NAMES = complete_energy

NAMES = 26
"""Columns of the options' names, the same in every section."""


class SectionedCommand(click.Command):
    """A command that lists its options under headings.

    sections: heading by the name of the first parameter below it. An option is under the heading before it, so that
    a new one needs no entry.
    """

    def __init__(self, *args: Any, sections: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        parts: dict[str, list[tuple[str, str]]] = {}
        heading = "Options"
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option):
                continue
            heading = self.sections.get(parameter.name or "", heading)
            if record := parameter.get_help_record(ctx):
                names, text = record
                parts.setdefault(heading, []).append((names.ljust(NAMES), text))
        for heading, records in parts.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=NAMES)


def options_of(command: click.Command, *names: str) -> Callable[[Command], Command]:
    """Return a decorator that gives a command those parameters of another one that have these names."""
    parameters = {parameter.name: parameter for parameter in command.params}

    def decorate(function: Command) -> Command:
        before: list[click.Parameter] = getattr(function, "__click_params__", [])
        function.__click_params__ = [*before, *(parameters[name] for name in reversed(names))]  # type: ignore[attr-defined]
        return function

    return decorate


def boundary_options(share_host: str | None = None) -> Callable[[Command], Command]:
    """Return a decorator that adds the options which state what the energy of a run includes and what it costs.

    share_host: its default; None leaves what the run states.
    """
    share = click.option(
        "--share-host",
        type=click.Choice(["time", "tokens"]),
        default=share_host,
        show_default=share_host is not None,
        help="Share the host's energy among the requests by time in flight or by tokens, where a meter has it.",
    )
    return lambda function: share(factor_options()(function))


def factor_options() -> Callable[[Command], Command]:
    """Return a decorator that adds the options by which energy becomes that of the facility, CO2e and money."""
    options = [
        click.option(
            "--pue", type=FiniteRange(min=1, max=100), metavar="X", help="Facility power over IT power: its overhead."
        ),
        click.option("--grid-intensity", type=POSITIVE, metavar="G", help="Grams of CO2e per kWh of the grid."),
        click.option("--grid-source", metavar="TEXT", help="Source and date of --grid-intensity, for the report."),
        click.option("--price", type=POSITIVE, metavar="P", help="Price per kWh, in any currency."),
    ]

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class FiniteRange(click.FloatRange):
    """A range of numbers without infinity and NaN, which no comparison refuses."""

    name = "number"

    def _describe_range(self) -> str:
        return "above 0" if self.min == 0 and self.min_open else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return float(number)


FILE = click.Path(path_type=Path, dir_okay=False)
"""A file to write."""

POSITIVE = FiniteRange(min=0, min_open=True, max=1e9, clamp=False)
"""A finite number above 0."""


def key_values(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """Split each KEY=VALUE. A value may hold any text: some are JSON."""
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (key, mark, _) in zip(texts, pairs, strict=True) if not mark or not key.strip()]:
        raise click.BadParameter(f"{bad[0]!r} is not KEY=VALUE")
    return {key.strip(): value for key, _, value in pairs}


class _KeyValue(click.ParamType[tuple[str, Any]]):
    """A pair written as KEY=VALUE, or as KEY:VALUE like in other tools."""

    name = "key:value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        key, mark, text = re.fullmatch(r"([^:=]*)([:=]?)(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
        if not mark or not key.strip():
            self.fail(f"{value!r} is not KEY:VALUE", param, ctx)
        return key.strip(), text.strip()


class Header(_KeyValue):
    """A header, whose name and value can be sent."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        from loadgen.run.config import header_fault

        name, text = super().convert(value, param, ctx)
        if fault := header_fault(name, text):
            self.fail(fault, param, ctx)
        return name, text


class LatencyLimit(_KeyValue):
    """A limit written as METRIC:MS, in milliseconds."""

    name = "metric:ms"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        metric, limit = super().convert(value, param, ctx)
        if metric not in ("ttft", "tpot", "e2el"):
            self.fail(f"{metric!r} is none of ttft, tpot, e2el", param, ctx)
        try:
            if float(limit) > 0:
                return metric, float(limit)
        except ValueError:
            pass
        return self.fail(f"{limit!r} is not a number of milliseconds above 0", param, ctx)


class FailureShare(click.ParamType[str]):
    """A limit on failed requests, written as 1% or as 5."""

    name = "share|number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from loadgen.results.failure_limit import FailureLimit

        return FailureLimit.parse(value).text


def as_dict(_: click.Context, __: click.Parameter, pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return dict(pairs)


def json_object(_: click.Context, __: click.Parameter, text: str) -> dict[str, Any]:
    import msgspec

    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as err:
        raise LoadgenError(f"--extra-body {text!r} is not a JSON object: {err}") from err


def refuse_second_server() -> None:
    """Raise LoadgenError if the command line gives a URL besides --serve. One in the environment is for other runs."""
    source = click.get_current_context().get_parameter_source("base_url")
    if source is click.core.ParameterSource.COMMANDLINE:
        raise LoadgenError("--serve starts the server of this run, --base-url names another: leave one of them out")

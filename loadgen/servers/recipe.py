"""Recipes: the data in `servers/NAME/recipe.toml` that becomes the command line of a server, without a shell."""

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.errors import LoadgenError
from loadgen.files import data_dir

OptionValue = bool | int | float | str


class EngineOption(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One option of a server. A switch is on or off; every other type is the flag followed by its value."""

    flag: str | None = None
    """Flag that a switch adds when it is on, or that precedes the value of any other type."""
    off_flag: str | None = None
    """Flag that a switch adds when it is off."""
    environment: str | None = None
    """Environment variable that carries the value, for options that have no flag."""
    type: Literal["switch", "int", "float", "str"]
    default: OptionValue | None = None
    """Value that loadgen starts the server with; None leaves the choice to the server."""
    choices: list[str] = []
    help: str


class Speaks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Capabilities of a server's API; `make test-engines` checks them on every server that is available."""

    ignore_eos: bool
    min_tokens: bool
    usage: bool
    token_id_prompts: bool
    tokenize: bool
    otlp: str | None = None
    """Flag that takes the URL to which the server sends one span per request."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Contents of a recipe.toml. {python}, {folder}, {host}, {port} and {model} are filled in at the start."""

    name: str = ""
    folder: Path = Path()
    summary: str
    engine: str
    """Name of the engine, as run.json states it (`server.engine`)."""
    command: list[str] = []
    """Command line; empty if the server runs in Docker only."""
    module: str | None = None
    """Python module that `command` needs."""
    extra: str | None = None
    """Extra of loadgen that installs the module, for error messages."""
    install: str | None = None
    """Arguments of a second `pip install`, of what the extra cannot install."""
    image: str | None = None
    image_command: list[str] = []
    """Arguments of the container, before the flags of the engine options."""
    image_port: int = 8000
    model: str | None
    """Default model; None if the caller must choose one."""
    health: str = "/health"
    metrics: str | None
    start_timeout_s: float = 60.0
    environment: dict[str, str] = {}
    secrets: list[str] = []
    """Variables that pass from the caller's environment to the server and are never written anywhere."""
    speaks: Speaks
    quirks: list[str] = []
    engine_options: dict[str, EngineOption] = msgspec.field(default_factory=dict, name="knobs")
    """Options by name; the file format calls them knobs."""


def names() -> list[str]:
    """Return the name of every server that has a recipe."""
    return sorted(path.parent.name for path in data_dir("servers").glob("*/recipe.toml"))


def read_recipe(name: str) -> Recipe:
    """Read the recipe called `name`. Raises LoadgenError if there is none or it is malformed."""
    if name not in (recipes := names()):
        raise LoadgenError(f"no server called {name!r}; there are: {', '.join(recipes)}")
    path = data_dir("servers") / name / "recipe.toml"
    return parse_recipe(path.read_text(encoding="utf-8"), path)


def parse_recipe(text: str, path: Path) -> Recipe:
    """Parse a recipe.toml; its folder gives the recipe its name. Raises LoadgenError."""
    try:
        table: dict[str, Any] = tomllib.loads(text)
        table |= {"name": path.parent.name, "folder": str(path.parent)}
        return msgspec.convert(table, Recipe, dec_hook=lambda kind, value: kind(value))
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as err:
        raise LoadgenError(f"{path}: {err}") from err


def option_values(recipe: Recipe, requested: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    """Return the engine options that are set: the recipe's defaults, then `requested`, converted to their types.

    Raises LoadgenError for an unknown option and for a value of the wrong type.
    """
    options = recipe.engine_options
    for name in requested:
        if name not in options:
            raise LoadgenError(f"{recipe.name} has no engine option {name!r}; it has: {', '.join(options) or 'none'}")
    values = {name: option.default for name, option in options.items() if option.default is not None}
    return values | {name: _typed(recipe, name, value) for name, value in requested.items()}


def _typed(recipe: Recipe, name: str, value: OptionValue) -> OptionValue:
    """Convert a value to the type of the option. Raises LoadgenError."""
    option, text = recipe.engine_options[name], str(value).strip()
    try:
        match option.type:
            case "switch":
                return {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[text.lower()]
            case "int":
                return int(text)
            case "float":
                return float(text)
    except (KeyError, ValueError):
        expected = {"switch": "on or off", "int": "a whole number", "float": "a number"}[option.type]
        raise LoadgenError(f"engine option {name} of {recipe.name}: {text!r} is not {expected}") from None
    if option.choices and text not in option.choices:
        raise LoadgenError(f"engine option {name} of {recipe.name}: {text!r} is none of {', '.join(option.choices)}")
    return text


def flags(recipe: Recipe, values: Mapping[str, OptionValue]) -> list[str]:
    """Return the engine options as arguments, in the recipe's order."""
    arguments: list[str] = []
    for name, option in recipe.engine_options.items():
        match values.get(name):
            case None:
                pass
            case True:
                arguments += [option.flag] if option.flag else []
            case False:
                arguments += [option.off_flag] if option.off_flag else []
            case value if option.flag:
                arguments += [option.flag, str(value)]
    return arguments


def variables(recipe: Recipe, values: Mapping[str, OptionValue], places: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that the server gets in addition to the caller's."""
    fixed = {name: _fill(value, places) for name, value in recipe.environment.items()}
    return fixed | {
        option.environment: str(values[name])
        for name, option in recipe.engine_options.items()
        if option.environment and values.get(name) is not None
    }


def command(recipe: Recipe, values: Mapping[str, OptionValue], places: Mapping[str, str]) -> list[str]:
    """Return the command line. places: python, host, port, model. Raises LoadgenError if the recipe is Docker only."""
    if not recipe.command:
        docker = " ".join(docker_command(recipe, values, places))
        raise LoadgenError(f"{recipe.name} runs in Docker only; start it with: {docker}")
    return [_fill(word, {**places, "folder": str(recipe.folder)}) for word in recipe.command] + flags(recipe, values)


def docker_command(recipe: Recipe, values: Mapping[str, OptionValue], places: Mapping[str, str]) -> list[str]:
    """Return `docker run` of the recipe's image. Secrets go by name only: Docker takes their values from its caller.

    Raises LoadgenError if the recipe has no image.
    """
    if recipe.image is None:
        raise LoadgenError(f"{recipe.name} has no image")
    inside = {**places, "host": "0.0.0.0", "port": str(recipe.image_port)}
    passed = [*recipe.secrets, *(f"{k}={v}" for k, v in variables(recipe, values, inside).items())]
    return [
        *("docker", "run", "--rm", "--gpus", "all", "--shm-size", "1g"),
        *("-p", f"{places['host']}:{places['port']}:{recipe.image_port}"),
        *(part for name in passed for part in ("-e", name)),
        recipe.image,
        *(_fill(word, inside) for word in recipe.image_command),
        *flags(recipe, values),
    ]


def describe(recipe: Recipe, values: Mapping[str, OptionValue], places: Mapping[str, str]) -> str:
    """Describe a recipe in lines: its variables and commands with these values, its engine options and its quirks."""
    lines = [f"{recipe.name}: {recipe.summary}"]
    lines += [f"  {variable}={value}" for variable, value in variables(recipe, values, places).items()]
    if recipe.command:
        lines += ["command:", "  " + shlex.join(command(recipe, values, places))]
    if recipe.image:
        lines += ["in Docker:", "  " + shlex.join(docker_command(recipe, values, places))]
    lines.append("engine options:")
    width = max(map(len, recipe.engine_options), default=0) + 2
    for key, option in recipe.engine_options.items():
        default = "" if option.default is None else f"  [{str(option.default).lower()}]"
        lines.append(f"  {key:<{width}}{option.type:<8}{option.help}{default}")
    if recipe.quirks:
        lines += ["quirks:", *(f"  {quirk}" for quirk in recipe.quirks)]
    return "\n".join(lines)


def _fill(word: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        word = word.replace("{" + name + "}", value)
    return word

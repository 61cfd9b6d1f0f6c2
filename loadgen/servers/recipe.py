"""How to start a server, as data: `servers/NAME/recipe.toml` -> a command line, without a shell."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.errors import LoadgenError
from loadgen.files import data_dir

KnobValue = bool | int | float | str


class Knob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One setting of a server. A switch is on or off; every other type is the flag followed by its value."""

    flag: str | None = None
    """What a switch adds when it is on; what comes before the value of any other type."""
    off_flag: str | None = None
    """What a switch adds when it is off."""
    environment: str | None = None
    """The variable that carries the value, for settings that have no flag."""
    type: Literal["switch", "int", "float", "str"]
    default: KnobValue | None = None
    """What loadgen starts the server with; None leaves the choice to the server."""
    choices: list[str] = []
    help: str


class Speaks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a load generator can rely on; `make test-engines` asks every server that can be had."""

    ignore_eos: bool
    min_tokens: bool
    usage: bool
    token_id_prompts: bool
    tokenize: bool
    otlp: str | None = None
    """The flag that takes the URL for one span per request."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """recipe.toml. {python}, {folder}, {host}, {port} and {model} stand for what is known when the server starts."""

    name: str = ""
    folder: Path = Path()
    summary: str
    engine: str
    """What GET /v1/models says under owned_by."""
    command: list[str] = []
    """Empty: Docker only."""
    module: str | None = None
    """The Python module that has to be there for `command`."""
    install: str | None = None
    """How to get it."""
    image: str | None = None
    image_command: list[str] = []
    """The container's arguments, before the knobs' flags."""
    image_port: int = 8000
    model: str | None
    """What is served when no model is asked for."""
    health: str = "/health"
    metrics: str | None
    start_timeout_s: float = 60.0
    environment: dict[str, str] = {}
    secrets: list[str] = []
    """Variables that pass from the caller's environment to the server, and are never written anywhere."""
    speaks: Speaks
    quirks: list[str] = []
    knobs: dict[str, Knob] = {}


def names() -> list[str]:
    """Every server that has a recipe."""
    return sorted(path.parent.name for path in data_dir("servers").glob("*/recipe.toml"))


def read_recipe(name: str) -> Recipe:
    """The recipe called `name`. LoadgenError when there is none, or when it says what no recipe says."""
    if name not in (known := names()):
        raise LoadgenError(f"no server called {name!r}; there are: {', '.join(known)}")
    path = data_dir("servers") / name / "recipe.toml"
    return parse_recipe(path.read_text(encoding="utf-8"), path)


def parse_recipe(text: str, path: Path) -> Recipe:
    try:
        table: dict[str, Any] = tomllib.loads(text)
        given = msgspec.convert(table | {"name": path.parent.name, "folder": str(path.parent)}, Recipe, dec_hook=_path)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as err:
        raise LoadgenError(f"{path}: {err}") from err
    return given


def _path(kind: type, value: Any) -> Any:
    return kind(value)


def knob_values(recipe: Recipe, asked: Mapping[str, KnobValue]) -> dict[str, KnobValue]:
    """Every knob that is set: the recipe's defaults, then what was asked, each of its knob's type."""
    for name in asked:
        if name not in recipe.knobs:
            raise LoadgenError(f"{recipe.name} has no knob {name!r}; it has: {', '.join(recipe.knobs) or 'none'}")
    values = {name: knob.default for name, knob in recipe.knobs.items() if knob.default is not None}
    return values | {name: _typed(recipe, name, value) for name, value in asked.items()}


def _typed(recipe: Recipe, name: str, value: KnobValue) -> KnobValue:
    knob, text = recipe.knobs[name], str(value).strip()
    try:
        match knob.type:
            case "switch":
                return {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}[text.lower()]
            case "int":
                return int(text)
            case "float":
                return float(text)
    except (KeyError, ValueError):
        expected = {"switch": "on or off", "int": "a whole number", "float": "a number"}[knob.type]
        raise LoadgenError(f"knob {name} of {recipe.name}: {text!r} is not {expected}") from None
    if knob.choices and text not in knob.choices:
        raise LoadgenError(f"knob {name} of {recipe.name}: {text!r} is none of {', '.join(knob.choices)}")
    return text


def flags(recipe: Recipe, values: Mapping[str, KnobValue]) -> list[str]:
    """The knobs as arguments, in the recipe's order."""
    out: list[str] = []
    for name, knob in recipe.knobs.items():
        match values.get(name):
            case None:
                pass
            case True:
                out += [knob.flag] if knob.flag else []
            case False:
                out += [knob.off_flag] if knob.off_flag else []
            case value if knob.flag:
                out += [knob.flag, str(value)]
    return out


def variables(recipe: Recipe, values: Mapping[str, KnobValue], places: Mapping[str, str]) -> dict[str, str]:
    """What the server's environment gets besides the caller's own."""
    fixed = {name: _fill(value, places) for name, value in recipe.environment.items()}
    return fixed | {
        knob.environment: str(values[name])
        for name, knob in recipe.knobs.items()
        if knob.environment and values.get(name) is not None
    }


def command(recipe: Recipe, values: Mapping[str, KnobValue], places: Mapping[str, str]) -> list[str]:
    """The command line. places: python, host, port, model; LoadgenError when the recipe is Docker only."""
    if not recipe.command:
        docker = " ".join(docker_command(recipe, values, places))
        raise LoadgenError(f"{recipe.name} runs in Docker only; start it with: {docker}")
    return [_fill(word, {**places, "folder": str(recipe.folder)}) for word in recipe.command] + flags(recipe, values)


def docker_command(recipe: Recipe, values: Mapping[str, KnobValue], places: Mapping[str, str]) -> list[str]:
    """`docker run` of the recipe's image. Secrets go by name only: Docker takes their values from its caller."""
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


def _fill(word: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        word = word.replace("{" + name + "}", value)
    return word

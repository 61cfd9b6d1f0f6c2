"""The settings of a search over engine options: each is one way to start the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import msgspec

from loadgen.client.redact import redact_setting, redact_value
from loadgen.errors import LoadgenError
from loadgen.servers.recipe import option_values, read_recipe


@dataclass(frozen=True)
class Setting:
    """Engine options with which the server is started."""

    name: str = ""
    """The options that differ between the settings, as "max_num_seqs=64 prefix_caching=on", without secrets."""
    options: dict[str, str] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """Return the options as `loadgen serve` takes them."""
        return [word for key, value in self.options.items() for word in ("--engine-option", f"{key}={value}")]

    @property
    def recorded_options(self) -> dict[str, str]:
        """Return the options as they may be written down: without the values of secrets."""
        return {key: redact_value(key, value) for key, value in self.options.items()}


def settings_of(serve: str | None, over: Sequence[str]) -> tuple[Setting, ...]:
    """Return the product of the options, the last one varying fastest; a single setting without any.

    over: KEY=V1,V2,... A list in JSON stands for values that hold a comma.
    Raises LoadgenError for what the server's recipe does not have, before a server starts.
    """
    if not over:
        return (Setting(),)
    if serve is None:
        raise LoadgenError("--over needs --serve: a server that already runs cannot be started with other options")
    values: dict[str, list[str]] = {}
    for text in over:
        key, mark, listed = text.partition("=")
        if not mark or not key.strip() or not listed.strip():
            raise LoadgenError(f"--over {text!r} is not KEY=V1,V2,...")
        if key.strip() in values:
            raise LoadgenError(f"--over has {key.strip()} twice: list its values in one, as {key.strip()}=V1,V2")
        values[key.strip()] = _values(text, listed.strip())
    recipe = read_recipe(serve)
    typed = {key: [option_values(recipe, {key: value})[key] for value in values[key]] for key in values}
    for key, converted in typed.items():
        for index, value in enumerate(converted):
            if value in converted[:index]:
                raise LoadgenError(f"--over {redact_setting(key, values[key][index])} is there twice")
    varied = [key for key in values if len(values[key]) > 1]
    return tuple(_setting(dict(zip(values, chosen, strict=True)), varied) for chosen in product(*values.values()))


def _values(text: str, listed: str) -> list[str]:
    """Return the values of an option: separated by commas, or a list in JSON."""
    if not listed.startswith("["):
        values = [value.strip() for value in listed.split(",")]
    else:
        try:
            decoded = msgspec.json.decode(listed.encode(), type=list[str | int | float | bool])
        except msgspec.DecodeError as err:
            raise LoadgenError(f"--over {text!r}: not a list in JSON: {err}") from None
        values = [str(value) for value in decoded]
    if not values or not all(values):
        raise LoadgenError(f"--over {text!r} has an empty value")
    return values


def _setting(options: dict[str, str], varied: Sequence[str]) -> Setting:
    return Setting(" ".join(redact_setting(key, options[key]) for key in varied), options)

"""Options of a program, held against the types and ranges of a struct."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from loadgen.errors import LoadgenError

Options = TypeVar("Options", bound=msgspec.Struct)


def checked(options: Mapping[str, Any], kind: type[Options]) -> Options:
    """Return options as a struct; numbers may be numpy's. LoadgenError: one has a value that it cannot have."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as err:
        fault, _, place = str(err).partition(" - at `$.")
        name = re.match(r"\w*", place)
        option = name[0] if name else ""
        if fault.startswith("Invalid enum value"):
            choices = ", ".join(_choices(kind, option))
            raise LoadgenError(f"{option}: {plain[option]!r} is none of {choices}") from err
        raise LoadgenError(f"{option}: {fault[:1].lower()}{fault[1:]}") from err


def _choices(kind: type[msgspec.Struct], option: str) -> list[str]:
    """Return the values of an option that is a Literal, or one or None."""
    hint = get_type_hints(kind)[option]
    return [value for part in (hint, *get_args(hint)) if get_origin(part) is Literal for value in get_args(part)]

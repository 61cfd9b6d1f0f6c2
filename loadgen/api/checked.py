"""Options of a program, held against the types and ranges of a struct."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

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
        raise LoadgenError(f"{name[0] if name else ''}: {fault[:1].lower()}{fault[1:]}") from err

"""Reads single values of the kernel's file trees, with the reason when there is none."""

import errno
from pathlib import Path

from loadgen.errors import MeterError

_TRIES = 3
"""Reads of a value before it counts as none: one that is being written may be empty."""
_MAX_BYTES = 4096
"""Longest value in the tree, which the kernel keeps to one page."""
_MAX_DIGITS = 20
"""The kernel's numbers have at most 64 bits."""


def read_number(path: Path, *, remedy: str = "run as root") -> int:
    """Return the file's number. Raises MeterError when it is none."""
    for _ in range(_TRIES):
        text = read_text(path, remedy=remedy)
        if len(text) <= _MAX_DIGITS and text.isascii() and text.isdecimal():
            return int(text)
    raise MeterError(f"{path} is not a number")


def read_text(path: Path, *, remedy: str = "run as root") -> str:
    """Return the file's text without white space around it. Raises MeterError with the reason when there is none.

    remedy: what to do where the file may not be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace").strip()
    except PermissionError as err:
        raise MeterError(f"{path}: permission denied ({remedy})") from err
    except OSError as err:
        reason = errno.errorcode.get(err.errno or 0, "") or err
        raise MeterError(f"{path}: cannot be read ({reason})") from err

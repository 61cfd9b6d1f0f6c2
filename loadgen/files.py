"""Where the data files are: beside the package in a checkout, inside it when installed from a wheel."""

from pathlib import Path
from typing import TypeVar

import msgspec

from loadgen.errors import LoadgenError

Content = TypeVar("Content")

_PACKAGE = Path(__file__).parent


def data_dir(name: str) -> Path:
    """The folder of `name` ("profiles", "servers" or "traces")."""
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def profile_path(kind: str, name: str, suffix: str) -> Path:
    """`profiles/KIND/NAME.SUFFIX`, or `name` itself when it is a path to a file."""
    if (given := Path(name)).is_file():
        return given
    folder = data_dir("profiles") / kind
    path = folder / f"{name}.{suffix}"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob(f"*.{suffix}"))) or "none"
        raise LoadgenError(
            f"no {kind} profile called {name!r}; there are: {known} (or give a path to a .{suffix} file)"
        )
    return path


def read_json(path: Path, kind: type[Content], what: str) -> Content:
    """The file's content; a LoadgenError when it cannot be read or is not `what`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as err:
        raise LoadgenError(f"cannot read {path}: {err.strerror or err}") from err
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise LoadgenError(f"{path}: not {what}: {err}") from err

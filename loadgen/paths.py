"""Where the data files are: beside the package in a checkout, inside it when installed from a wheel."""

from pathlib import Path

from loadgen.errors import LoadgenError

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

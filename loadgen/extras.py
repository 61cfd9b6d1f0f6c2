"""Optional dependencies: importing them, and the command that installs those that are missing."""

import importlib.util
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from loadgen.errors import LoadgenError

_CHECKOUT = Path(__file__).parents[1]


@contextmanager
def importing(purpose: str, extra: str) -> Iterator[None]:
    """Turn the failure of an import in the block into a LoadgenError that names the extra and its command.

    A module of loadgen's own that is missing is a bug, and stays an ImportError.
    """
    try:
        yield
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] == "loadgen":
            raise
        raise LoadgenError(f"{purpose} needs the extra {extra!r}: {install_command(extra)}") from err
    except ImportError as err:
        raise LoadgenError(f"{purpose} needs {err.name or 'a package'}, which cannot be imported: {err}") from err


def install_command(extra: str, python: str = sys.executable) -> str:
    """Return the command that installs an extra for the interpreter `python`, to be pasted into a shell.

    In a checkout it is the checkout with the extra. Elsewhere it is the packages of the extra: loadgen is on no package
    index, so a command with its name would fail, or install what somebody else registered under it.
    """
    if python == sys.executable and _is_checkout():
        place = "." if Path.cwd() == _CHECKOUT else str(_CHECKOUT)
        return f"{pip_install(python)} -e {shlex.quote(f'{place}[{extra}]')}"
    return " ".join([pip_install(python), *map(shlex.quote, _requirements(extra))])


def pip_install(python: str = sys.executable) -> str:
    """Return the words before the packages: the shortest that are certain to install for the interpreter `python`."""
    if python == sys.executable:
        if importlib.util.find_spec("pip") is None:  # an environment made by uv
            return f"uv pip install --python {shlex.quote(python)}"
        on_path = shutil.which("pip")
        if on_path and Path(on_path).parent == Path(python).parent:
            return "pip install"
    return f"{shlex.quote(python)} -m pip install"


def _is_checkout() -> bool:
    return (_CHECKOUT / "pyproject.toml").is_file()


def _requirements(extra: str) -> list[str]:
    if _is_checkout():
        project = tomllib.loads((_CHECKOUT / "pyproject.toml").read_text())["project"]
        return list(project["optional-dependencies"][extra])
    pairs = (line.partition(";")[::2] for line in metadata.requires("loadgen") or ())
    return [package.strip() for package, marker in pairs if marker.replace("'", '"').strip() == f'extra == "{extra}"']

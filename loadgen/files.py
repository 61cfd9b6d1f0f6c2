"""Data files of the package, and reading and replacing whole files."""

import errno
import fcntl
import filecmp
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from loadgen.errors import LoadgenError

Content = TypeVar("Content")

_PACKAGE = Path(__file__).parent

LOCK_NAME = ".lock"
"""File of a folder that `locked` locks."""


def data_dir(name: str) -> Path:
    """Return the folder of `name` ("profiles", "servers", "studies" or "traces").

    It is inside the package when that was installed from a wheel, and beside the package in a checkout.
    """
    installed = _PACKAGE / "_data" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def study_path(name: str) -> Path:
    """Return the path of a study's file, or that of the shipped study of that name. Raises LoadgenError."""
    path, folder = Path(name), data_dir("studies")
    if path.is_file():
        return path
    shipped = folder / f"{name}.toml"
    if path.name == name and shipped.is_file():
        return shipped
    names = ", ".join(sorted(study.stem for study in folder.glob("*.toml")))
    raise LoadgenError(f"no file or study called {name!r}; there are: {names} (or give the path of a .toml file)")


def profile_path(kind: str, name: str, suffix: str) -> Path:
    """Return `profiles/KIND/NAME.SUFFIX`, or `name` itself when it is a path to a file.

    Raises LoadgenError with the names that exist when there is no such profile.
    """
    if (path := Path(name)).is_file():
        return path
    folder = data_dir("profiles") / kind
    path = folder / f"{name}.{suffix}"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob(f"*.{suffix}"))) or "none"
        raise LoadgenError(
            f"no {kind} profile called {name!r}; there are: {names} (or give a path to a .{suffix} file)"
        )
    return path


def read_json(path: Path, kind: type[Content], what: str) -> Content:
    """Decode a JSON file. Raises LoadgenError when it cannot be read or is not `what` (`kind`, in words)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as err:
        raise LoadgenError(f"cannot read {path}: {err.strerror or err}") from err
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        raise LoadgenError(f"{path}: not {what}: {err}") from err


def sha256_of(path: Path) -> str | None:
    """Return the SHA-256 of a file's bytes in hexadecimal; None for a pipe and whatever else is no regular file."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise LoadgenError(f"cannot read {path}: {err.strerror or err}") from err


@contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Raise LoadgenError, which is one line, for an OSError while a folder is written: a full disk, for example.

    what: the folder in words, such as "the study's folder".
    """
    try:
        yield
    except OSError as err:
        raise LoadgenError(f"cannot write {what} {folder}: {err.strerror or err}") from err


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of an existing folder during the block; LoadgenError if another process, or thread, holds it.

    The kernel frees the lock when its process ends, be it by `kill -9`; the file `.lock` stays. On a file system
    without locks there is none.
    """
    with ExitStack() as stack:
        with writing(folder, what):
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe would be waited for
            file = stack.enter_context(os.fdopen(os.open(folder / LOCK_NAME, flags, 0o644), "wb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LoadgenError(
                    f"another process writes {what} {folder}: wait for its end, or choose another"
                ) from None
            except OSError as err:
                if err.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                    raise
        yield


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the content of `path` in one step: a reader sees all of the old bytes or all of `data`.

    The name of the draft is random, so that threads and processes may write the same path. Raises OSError, and leaves
    no draft behind.
    """
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


@contextmanager
def replacing(path: Path, *, overwrite: bool = True) -> Iterator[IO[bytes]]:
    """Yield a file that replaces `path` when the block ends well, and leaves no trace when it does not.

    For content that is written piece by piece. Without `overwrite`, an existing file that would change is a
    LoadgenError, and one with the same bytes is left alone. An OSError becomes a LoadgenError too.
    """
    target = path.resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise LoadgenError(f"cannot write {path}: it exists and is not a file")
        with draft.open("wb") as file:
            yield file
        if target.exists() and not overwrite and not filecmp.cmp(draft, target, shallow=False):
            raise LoadgenError(f"{path} exists and would change; pass --overwrite to replace it")
        draft.replace(target)
    except OSError as err:
        raise LoadgenError(f"cannot write {path}: {err.strerror or err}") from err
    finally:
        with suppress(OSError):  # where no draft could be made, there is none to remove
            draft.unlink()


def replace_file(path: Path, content: bytes) -> None:
    """Replace the content of `path` in one step. Raises LoadgenError, as `replacing` does."""
    with replacing(path) as file:
        file.write(content)

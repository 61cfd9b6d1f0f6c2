"""Public names and their signatures are frozen: a program that works with this version works with the next."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loadgen

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FROZEN = HERE / "public_names.txt"
"""One line for each public name, parameter and member. Whoever changes the library changes this file, and CHANGELOG.md
says so; `python tests/api/test_stability.py` writes it."""

GROWS = {"Summary", "RunInfo", "Verdict"}
"""Types whose fields are those of a file, which has a version and a schema of its own."""


def public_names() -> Iterator[str]:
    """Yield a line for each name, each parameter of a function, and each member of a class."""
    for name in sorted(loadgen.__all__):
        value: Any = getattr(loadgen, name)
        if inspect.isclass(value):
            yield f"class {name}"
            if name not in GROWS:
                yield from (f"class {name}.{line}" for line in sorted(members(value)))
        elif callable(value):
            yield from signature(name, value)


def members(kind: type) -> Iterator[str]:
    fields = getattr(kind, "__struct_fields__", getattr(kind, "_fields", tuple(inspect.get_annotations(kind))))
    yield from (name for name in fields if not name.startswith("_"))
    for name, member in vars(kind).items():
        if (name.startswith("_") and name not in ("__getitem__", "__len__", "__iter__")) or name in fields:
            continue
        yield from signature(name, member) if inspect.isfunction(member) else [name]


def signature(name: str, function: Any) -> Iterator[str]:
    made = inspect.signature(function)
    yield f"{name} -> {made.return_annotation}"
    yield from (f"{name}({parameter})" for parameter in made.parameters.values() if parameter.name != "self")


def test_the_public_names_and_signatures_are_those_that_were_agreed() -> None:
    assert list(public_names()) == FROZEN.read_text().splitlines()


@pytest.mark.timeout(300)  # without a cache, mypy reads the whole package
def test_a_typed_program_is_accepted_and_its_mistakes_are_found() -> None:
    """A `type: ignore` that finds no mistake is an error too."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache")]
    result = subprocess.run([*command, HERE / "typed_program.py"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


if __name__ == "__main__":
    FROZEN.write_text("".join(f"{line}\n" for line in public_names()))

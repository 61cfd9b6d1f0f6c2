"""The names of the library: what a program may rely on, and what importing them costs."""

import subprocess
import sys
from typing import Any

import pytest

import loadgen


def test_every_name_that_is_listed_exists_and_is_defined_once() -> None:
    for name in loadgen.__all__:
        value: Any = getattr(loadgen, name)
        assert name in dir(loadgen)
        assert name == "__version__" or value.__name__ == name
        assert name == "__version__" or value.__doc__, f"{name} has no docstring"


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'loadgen' has no attribute 'find'"):
        getattr(loadgen, "find")  # noqa: B009 (a type checker refuses it otherwise)


def test_importing_the_package_imports_nothing_that_is_not_in_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import loadgen; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["loadgen"]

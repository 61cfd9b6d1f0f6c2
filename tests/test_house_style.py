"""Docstrings begin with a verb or with the noun they describe, and a module does not outgrow its package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAGMENTS = {
    *("of", "as", "what", "who", "how", "whether", "when", "where", "those", "that", "by", "for", "from", "with"),
    *("in", "to", "so", "more", "less", "none", "other", "others", "between", "after", "before", "on", "only"),
}
"""First words of a docstring that is only a part of a sentence."""
MODULES = sorted((ROOT / "loadgen").rglob("*.py"))
DOCUMENTED = sorted([*MODULES, *(ROOT / "benchmarks").rglob("*.py")])


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string that stands alone: docstrings, and descriptions below a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def first_word(text: str) -> str:
    return (text.split() or [""])[0].strip(".,:;`").lower()


@pytest.mark.parametrize("path", DOCUMENTED, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_as_a_fragment(path: Path) -> None:
    lines = [line for line, text in docstrings(ast.parse(path.read_text())) if first_word(text) in FRAGMENTS]
    assert not lines, f"{path.relative_to(ROOT)}, lines {lines}: begin with a verb or with the noun that is described"


@pytest.mark.parametrize(
    ("text", "is_fragment"),
    [
        ("Return the mean.", False),
        ("Requests in flight.", False),
        ("Of requests in flight.", True),
        ("What is left of the budget.", True),
        ("Whether it is open.", True),
        ("Between two updates.", True),
        ("Information about the host.", False),
        ("", False),
    ],
)
def test_the_first_word_makes_a_fragment(text: str, is_fragment: bool) -> None:
    assert (first_word(text) in FRAGMENTS) == is_fragment


def test_the_top_of_the_package_holds_few_modules() -> None:
    flat = [path.name for path in MODULES if path.parent == ROOT / "loadgen" and not path.name.startswith("__")]
    assert len(flat) <= 10, f"{sorted(flat)}: give a new module to the package it is about"


def test_no_module_imports_more_than_14_others_of_the_package() -> None:
    """But for the list of the library's names, which imports none of them until it is used."""
    for path in (path for path in MODULES if path != ROOT / "loadgen" / "__init__.py"):
        imported = {
            f"{node.module}.{name.name}"
            if (ROOT / node.module.replace(".", "/") / f"{name.name}.py").exists()
            else node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "loadgen"
            for name in node.names
        }
        assert len(imported) <= 14, f"{path.relative_to(ROOT)} imports {len(imported)}: {sorted(imported)}"

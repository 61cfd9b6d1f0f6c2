"""The names that a shell completes: servers, traces, profiles, and files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from click.shell_completion import CompletionItem

_FILES = {
    "servers": ("servers", "*/recipe.toml"),
    "studies": ("studies", "*.toml"),
    "traces": ("traces", "*.jsonl"),
    "mixes": ("traces", "*.toml"),
    "workloads": ("profiles", "workloads/*.json"),
    "energy": ("profiles", "energy/*.json"),
    "hardware": ("profiles", "hardware/*.toml"),
    "models": ("profiles", "models/*.toml"),
}
"""Folder of the package and pattern below it, by kind of name."""


def complete_names(
    *kinds: str, files: bool = False
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return the completion of a parameter that takes a name of these kinds, or with `files` the path of a file."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = [name for kind in kinds for name in names_of(kind) if name.startswith(incomplete)]
        # First, because bash forgets what came before a file. It completes files where no name fits.
        paths = [CompletionItem(incomplete, type="file")] if files else []
        return paths + [CompletionItem(name) for name in names]

    return complete


def complete_energy(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the energy sources that have a name."""
    from click.shell_completion import CompletionItem

    from loadgen.energy.choose import CHOICES

    return [CompletionItem(choice) for choice in CHOICES if choice.startswith(incomplete)]


def names_of(kind: str) -> list[str]:
    """Return the names that the package ships of a kind: of a recipe that of its folder, else the stem of the file."""
    from loadgen.files import data_dir

    folder, pattern = _FILES[kind]
    paths: list[Path] = sorted(data_dir(folder).glob(pattern))
    return [path.parent.name if kind == "servers" else path.stem for path in paths]

"""Read the result of a search from its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.errors import LoadgenError
from loadgen.files import read_json
from loadgen.results.run_folder import check_format
from loadgen.results.search_result import SearchResult

if TYPE_CHECKING:
    from pathlib import Path


def read_search_result(folder: Path) -> SearchResult:
    """Return the contents of search.json.

    LoadgenError: the folder is no search, or its search.json is damaged, or of a newer format.
    """
    file = folder / "search.json"
    if not file.is_file():
        raise LoadgenError(f"{folder} is not the folder of a search: it has no search.json")
    result = read_json(file, SearchResult, "the result of a search")
    check_format(file, result.schema_version, result.loadgen_version)
    return result

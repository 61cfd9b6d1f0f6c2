"""The examples of docs/reference/formats.md are read as the format that they are examples of."""

import re
from collections import Counter
from pathlib import Path

import pytest

from loadgen.workload.worded_formats import READERS, worded_format
from loadgen.workload.worded_import import imported_rows

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text()
EXAMPLES = dict(re.findall(r"```json (\S+)\n(.*?)\n```", PAGE, re.DOTALL))


def test_every_format_has_an_example_and_a_row_of_the_table() -> None:
    assert set(EXAMPLES) == set(READERS) - {"jsonl"}
    assert all(f"| `{format}` |" in PAGE for format in EXAMPLES)


@pytest.mark.parametrize("format", EXAMPLES)
def test_an_example_is_detected_and_asks_what_the_page_says(tmp_path: Path, format: str) -> None:
    (path := tmp_path / "example.jsonl").write_text(EXAMPLES[format] + "\n")
    left_out: Counter[str] = Counter()
    rows = list(imported_rows(str(path), None, {}, left_out) or ())
    assert worded_format(path, EXAMPLES[format]) == format
    assert len(rows) == (2 if format == "conversations" else 1)
    assert not left_out

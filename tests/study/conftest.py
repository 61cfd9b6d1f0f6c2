from pathlib import Path

import pytest

from support.small_study import SMALL


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file

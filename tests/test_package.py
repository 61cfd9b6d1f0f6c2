"""Laws of the package's names."""

import sys
from pathlib import Path

import loadgen


def test_no_module_of_the_package_hides_one_of_the_standard_library() -> None:
    """Locust puts the folder of its locustfile, which is the package, first on the path."""
    names = {path.stem for path in Path(loadgen.__file__).parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not names & set(sys.stdlib_module_names)

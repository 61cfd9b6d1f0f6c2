"""The engines that can be had on this machine: sim and llama.cpp always, the rest under .engines or by URL.

`make test` runs the suite on the first two; `make test-engines` (LOADGEN_ENGINES=all) on every one.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadgen.servers.launcher import served
from loadgen.servers.recipe import names, read_recipe
from support.engines import ENGINE_OPTIONS, ENGINES, QUICK, SEEN, Engine, missing


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made with the transformers environment."""
    if why := missing("transformers"):
        pytest.skip(f"a tiny model needs transformers: {why}")
    folder = tmp_path_factory.mktemp("tiny")
    python = ENGINES / "transformers" / "bin" / "python"
    subprocess.run([python, Path(__file__).parent / "make_tiny.py", folder], check=True, capture_output=True)
    return folder


@contextmanager
def started(name: str, request: pytest.FixtureRequest) -> Iterator[str]:
    if name == "tgi":
        yield os.environ["LOADGEN_TGI_URL"]
        return
    options = QUICK.get(name)
    if options is None:
        model = request.getfixturevalue("tiny_model")
        flags = [word for option in ENGINE_OPTIONS[name] for word in ("--engine-option", option)]
        options = ["--python", str(ENGINES / name / "bin" / "python"), "--model", str(model), *flags]
    with served(name, *options) as url:
        yield url


@pytest.fixture(scope="session", params=names())
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if why := missing(request.param):
        SEEN.setdefault(request.param, {})["not tested"] = why
        pytest.skip(why)
    with started(request.param, request) as url:
        yield Engine(read_recipe(request.param), url)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("LOADGEN_ENGINES") != "all":
        return
    columns = list(dict.fromkeys(key for seen in SEEN.values() for key in seen if key != "not tested"))
    terminalreporter.section("engines")
    widths = [max(len(column), *(len(seen.get(column, "-")) for seen in SEEN.values())) for column in columns]
    terminalreporter.line(f"{'':<14}" + "  ".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True)))
    for name, seen in sorted(SEEN.items()):
        if why := seen.get("not tested"):
            terminalreporter.line(f"{name:<14}not tested: {why}")
            continue
        cells = (f"{seen.get(c, '-'):>{w}}" for c, w in zip(columns, widths, strict=True))
        terminalreporter.line(f"{name:<14}" + "  ".join(cells))

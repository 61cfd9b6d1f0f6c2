"""Laws of what is built to be installed: the sdist, and the wheels that are built from it."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import loadgen
from loadgen.extras import install_command

ROOT = Path(__file__).parents[2]
EXTENSION = "loadgen/client/_token_reader.abi3.so"
DATA = ("profiles", "servers", "studies", "traces")


def built(source: Path, target: str, out: Path, **variables: str) -> Path:
    """Build in `source`, without a network; return the only file of `out`."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    subprocess.run(command, cwd=source, env=os.environ | variables, check=True, capture_output=True)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is in the sdist. What a checkout collects beside its files is put into the package first."""
    folder = tmp_path_factory.mktemp("sdist")
    path = built(ROOT, "sdist", folder / "dist")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (entry for entry in folder.iterdir() if entry.name != "dist")
    for litter in ("runs/a/run.json", "servers/sim/__pycache__/a.pyc", "loadgen/__pycache__/a.pyc"):
        (unpacked / litter).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / litter).touch()
    return unpacked


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True, capture_output=True)
    return folder


def names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def run(site: Path, folder: Path, *arguments: str) -> str:
    """Run the installed package as a user without a checkout, in an empty folder that is the home too."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_the_code_the_pages_and_the_data(wheel: Path) -> None:
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "loadgen").rglob("*.py")}
    data = {f"loadgen/_data/{path.relative_to(ROOT)}" for folder in DATA for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "loadgen").rglob("*")
             if path.suffix in (".html", ".css", ".json", ".typed") and "script" not in path.parts}  # fmt: skip
    scripts = {"loadgen/report/charts/charts.min.js", "loadgen/locust/panel.js"}
    assert len(data) > 40
    assert {"loadgen/py.typed", "loadgen/report/page.html"} <= pages
    assert {EXTENSION, *package, *data, *pages, *scripts} <= names(wheel)


def test_the_wheel_has_nothing_else(wheel: Path) -> None:
    found = names(wheel)
    assert {name.split("/")[0] for name in found} == {"loadgen", f"loadgen-{loadgen.__version__}.dist-info"}
    assert not [name for name in found if "/runs/" in name or "__pycache__" in name or name.endswith((".c", ".mjs"))]


def test_the_sdist_has_no_runs_and_no_caches(source: Path) -> None:
    (archive,) = (source.parent / "dist").iterdir()
    with tarfile.open(archive) as opened:
        parts = {part for name in opened.getnames() for part in Path(name).parts}
    assert {"LICENSE", "README.md", "SECURITY.md", "_token_reader.c", "hatch_build.py"} <= parts
    assert not parts & {"runs", ".venv", "__pycache__", ".git", "tests", "_token_reader.abi3.so"}


@pytest.mark.skipif(sys.platform != "linux", reason="the extension is for Linux")
def test_the_extension_loads_with_any_python_from_3_11_and_any_glibc_from_2_17(wheel: Path) -> None:
    assert wheel.name.startswith(f"loadgen-{loadgen.__version__}-cp311-abi3-linux_")
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r'platform tag:\s+"manylinux_2_(5|12|17)_', shown.stdout), shown.stdout


@pytest.mark.parametrize("variables", [{"LOADGEN_PURE": "1"}, {"CC": "/nonexistent/cc"}], ids=["asked", "no compiler"])
def test_without_the_extension_the_wheel_is_for_any_platform(
    source: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    wheel = built(source, "wheel", tmp_path, **variables)
    assert wheel.name == f"loadgen-{loadgen.__version__}-py3-none-any.whl"
    assert EXTENSION not in names(wheel)
    assert "loadgen/client/token_template.py" in names(wheel)


def test_the_version_has_one_source(site: Path, tmp_path: Path) -> None:
    program = "import importlib.metadata, loadgen; print(importlib.metadata.version('loadgen'), loadgen.__version__)"
    assert run(site, tmp_path, "-c", program).split() == [loadgen.__version__] * 2
    assert {run(site, tmp_path, "-m", "loadgen", option) for option in ("-V", "--version")} == {
        f"loadgen, version {loadgen.__version__}\n"
    }
    assert f"\n## {loadgen.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_a_shipped_trace_is_replayed_where_there_is_no_checkout(site: Path, tmp_path: Path) -> None:
    run(site, tmp_path, "-m", "loadgen", "replay", "chat", "--rps", "20", "--num-requests", "2",
        "--serve", "sim", "--out", "out", "--idle", "0.5")  # fmt: skip
    assert (tmp_path / "out/report.html").stat().st_size > 100_000
    assert (tmp_path / "out/summary.json").exists()


def test_shipped_studies_are_planned_where_there_is_no_checkout(site: Path, tmp_path: Path) -> None:
    assert len(run(site, tmp_path, "-m", "loadgen", "study", "rate-sweep", "--plan").splitlines()) > 3


def test_a_missing_extra_is_installed_by_its_packages_where_there_is_no_checkout(site: Path, tmp_path: Path) -> None:
    program = "from loadgen.extras import install_command; print(install_command('locust'))"
    hint = run(site, tmp_path, "-c", program)
    assert "'locust<3,>=2.47'" in hint
    assert "loadgen" not in hint.split("install")[-1]
    assert "[locust]" in install_command("locust")

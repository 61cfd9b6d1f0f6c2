"""Laws of the hints that name an extra."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from loadgen import extras
from loadgen.errors import LoadgenError
from loadgen.extras import importing, install_command, pip_install
from loadgen.servers import recipe

ROOT = Path(__file__).parents[1]
METADATA = ["aiohttp>=3.11", 'grpcio>=1.60; extra == "sidecar"', "locust>=2.47; extra == 'locust'"]
BY_EXTRA = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installation from a wheel, with no checkout around it."""
    monkeypatch.setattr(extras, "_CHECKOUT", tmp_path)
    monkeypatch.setattr(extras.metadata, "requires", lambda _name: METADATA)


def test_a_missing_package_names_its_extra_in_one_line() -> None:
    with pytest.raises(LoadgenError, match=r"^the sidecar needs the extra 'sidecar': .*install.*$"), \
            importing("the sidecar", "sidecar"):  # fmt: skip
        import google.no_such_module  # noqa: F401


def test_a_package_that_cannot_be_loaded_is_not_called_missing() -> None:
    with pytest.raises(LoadgenError, match=r"needs libx, which cannot be imported: no libx\.so"), \
            importing("the sidecar", "sidecar"):  # fmt: skip
        raise ImportError("no libx.so", name="libx")


def test_a_missing_module_of_loadgen_is_a_bug_not_a_hint() -> None:
    with pytest.raises(ModuleNotFoundError), importing("the sidecar", "sidecar"):
        import loadgen.no_such_module  # noqa: F401


@pytest.mark.parametrize(("folder", "requirement"), [(ROOT, "'.[sidecar]'"), (ROOT / "docs", f"'{ROOT}[sidecar]'")])
def test_in_a_checkout_the_command_installs_the_checkout(
    monkeypatch: pytest.MonkeyPatch, folder: Path, requirement: str
) -> None:
    monkeypatch.chdir(folder)
    assert install_command("sidecar").endswith(f" install -e {requirement}")


@pytest.mark.usefixtures("installed")
def test_elsewhere_the_command_installs_the_packages_and_never_the_name_loadgen() -> None:
    assert install_command("sidecar").endswith(" install 'grpcio>=1.60'")
    assert install_command("locust").endswith(" install 'locust>=2.47'")


def test_another_interpreter_gets_the_packages() -> None:
    assert install_command("vllm", "/opt/a b/python") == f"'/opt/a b/python' -m pip install '{BY_EXTRA['vllm'][0]}'"


def test_an_environment_without_pip_is_installed_into_by_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda _name: None)
    assert pip_install() == f"uv pip install --python {sys.executable}"


def test_pip_is_named_alone_only_if_it_is_the_one_of_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras.shutil, "which", lambda _name: str(Path(sys.executable).parent / "pip"))
    assert pip_install() == "pip install"
    monkeypatch.setattr(extras.shutil, "which", lambda _name: "/elsewhere/pip")
    assert pip_install() == f"{sys.executable} -m pip install"


def test_recipes_name_extras_that_exist() -> None:
    recipes = [recipe.read_recipe(name) for name in recipe.names()]
    extras_named = {server.name: server.extra for server in recipes if server.module}
    assert len(extras_named) >= 3
    assert set(extras_named.values()) <= set(BY_EXTRA)


def test_the_extras_that_the_code_names_exist() -> None:
    code = "".join(path.read_text() for path in (ROOT / "loadgen").rglob("*.py"))
    named = re.findall(r'(?:importing\("[^"]+", |install_command\()["\'](\w+)', code)
    assert len(named) >= 8
    assert set(named) <= set(BY_EXTRA)
    assert "pip install 'loadgen" not in code
    assert "pip install loadgen" not in code


def test_the_page_on_installing_has_the_extras_of_users() -> None:
    for_developers = {"check", "docs", "mutants", "package", "test"}
    named = set(re.findall(r"(?m)^\| (`[^|]+`) \|", (ROOT / "docs/how-to/install.md").read_text()))
    assert set(re.findall(r"`(\w+)`", " ".join(named))) == set(BY_EXTRA) - for_developers


def test_the_locustfile_without_locust_is_one_line() -> None:
    program = "import sys; sys.modules['locust'] = sys.modules['gevent'] = None; import loadgen.locustfile"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("loadgen: loadgen's locustfile needs the extra 'locust': ")
    assert done.stderr.count("\n") == 1

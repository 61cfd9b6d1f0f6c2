"""docker-compose.yml by its text: what Compose would refuse, and what must never be opened."""

import json
import re
import shutil
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadgen.servers.recipe import flags, option_values, read_recipe, variables

ROOT = Path(__file__).parents[2]
SCHEMA = Path("/usr/lib/python3/dist-packages/compose/config/compose_spec.json")
"""The compose-spec schema, as Debian's docker-compose ships it."""
TEXT = (ROOT / "docker-compose.yml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]


def test_it_follows_the_compose_spec() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")
    if not SCHEMA.exists():
        pytest.skip("needs the schema of Debian's docker-compose")
    faults = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).iter_errors(FILE)
    assert [f"{fault.json_path}: {fault.message}" for fault in faults] == []


@pytest.mark.parametrize("options", [[], *(["--profile", name] for name in ("vllm", "tgi", "sim"))], ids=" ".join)
def test_compose_accepts_the_file_with_nothing_in_the_environment(options: list[str]) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("needs docker-compose (Debian: apt-get install docker-compose)")
    done = subprocess.run(["docker-compose", *options, "config", "-q"], cwd=ROOT, env={"PATH": "/usr/bin:/bin"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr


@pytest.mark.parametrize("profile", ["vllm", "tgi", "sim"])
def test_each_profile_has_one_engine_and_one_sidecar(profile: str) -> None:
    selected = {name: service for name, service in SERVICES.items() if profile in service["profiles"]}
    names = [
        alias
        for service in selected.values()
        for alias in service.get("networks", {}).get("default", {}).get("aliases", [])
    ]
    assert sorted(names) == ["engine", "sidecar"]
    assert {dependency for service in selected.values() for dependency in service.get("depends_on", {})} <= set(
        selected
    )
    ended = {
        name
        for service in selected.values()
        for name, wait in service.get("depends_on", {}).items()
        if wait["condition"] == "service_completed_successfully"
    }
    assert {name for name, service in selected.items() if "healthcheck" not in service} == ended


@pytest.mark.parametrize("engine", ["vllm", "tgi"])
def test_an_engine_is_started_as_its_recipe_does(engine: str) -> None:
    """The same variables and flags: prefix caching and usage statistics are off in both."""
    recipe = read_recipe(engine)
    values = option_values(recipe, {})
    service = SERVICES[engine]
    assert variables(recipe, values, {}).items() <= service["environment"].items()
    words = [*recipe.image_command, ""]
    fixed = {word for word, next_word in pairwise(words) if word.startswith("--") and "{" not in next_word}
    assert {*fixed, *flags(recipe, values)} <= set(service["command"])


def test_services_that_reserve_a_gpu_start_after_the_check_for_one() -> None:
    """Directly, or behind an engine that does."""
    look = "gpu-or-profile-sim"
    after = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
    gpu = [name for name, service in SERVICES.items() if "deploy" in service]
    assert sorted(gpu) == ["sidecar-tgi", "sidecar-vllm", "tgi", "vllm"]
    assert all(look in after[name] or any(look in after[one] for one in after[name]) for name in gpu)
    assert "docker compose --profile sim up" in SERVICES[look]["command"][0]


def test_ports_are_on_loopback_unless_configured_otherwise() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("${BIND:-127.0.0.1}:") for port in ports)


def test_images_are_pinned_and_by_digest_but_for_one() -> None:
    """No digest of TGI's image was found in public files."""
    images = dict(re.findall(r"\$\{([A-Z_]+)_IMAGE:-([^}]*)\}", TEXT))
    assert all(re.search(r":v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?$", image) for image in images.values())
    assert {name for name, image in images.items() if "@" not in image} == {"TGI"}
    bases = re.findall(r"^FROM (\S+)", (ROOT / "servers/stack/Dockerfile").read_text(), re.MULTILINE)
    assert len(set(bases)) == 1 and re.search(r":\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", bases[0])


def test_the_committed_environment_has_the_defaults_and_no_secret() -> None:
    lines = (ROOT / ".env").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))
    defaults = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", TEXT))
    assert {name: defaults.get(name) for name in environment} == environment | {
        "COMPOSE_PROJECT_NAME": None,
        "COMPOSE_PROFILES": None,
    }
    secrets = set(defaults) - set(environment) - {name for name in defaults if name.endswith("_IMAGE")}
    assert secrets == {"GRAFANA_PASSWORD", "HF_TOKEN", "OPENAI_API_KEY"}
    assert {defaults[name] for name in secrets} == {""}
    tracked = subprocess.run(["git", "ls-files", ".env"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert tracked.stdout == ".env\n"


@pytest.mark.parametrize(("password", "logins"), [("", False), ("of-a-test", True)])
def test_grafana_has_a_login_only_with_a_password(password: str, logins: bool) -> None:
    """What the container's command exports before Grafana starts, with `env` in Grafana's place."""
    script = SERVICES["grafana"]["command"][0].replace("$$", "$").replace("exec /run.sh", "exec env")
    environment = {"PATH": "/usr/bin:/bin", "GF_SECURITY_ADMIN_PASSWORD": password}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    closed = {"GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION=true", "GF_AUTH_DISABLE_LOGIN_FORM=true",
              "GF_AUTH_BASIC_ENABLED=false"}  # fmt: skip
    assert closed & set(done.stdout.splitlines()) == (set() if logins else closed)


def test_mounted_files_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                assert (ROOT / volume.split(":")[0]).exists(), volume


def test_every_build_has_its_dockerfile() -> None:
    for name, service in yaml.safe_load(TEXT)["services"].items():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file(), name


def test_the_image_holds_all_that_the_wheel_is_made_of() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = re.findall(r"^COPY (\S+) \1$", (ROOT / "servers/stack/Dockerfile").read_text(), re.MULTILINE)
    assert {*wheel["packages"], *wheel["force-include"]} <= set(copied)

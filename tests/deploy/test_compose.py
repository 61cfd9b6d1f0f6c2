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


@pytest.mark.parametrize("profile", ["vllm", "tgi", "cpu"])
def test_compose_resolves_every_profile(profile: str) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("needs docker-compose (Debian: apt-get install docker-compose)")
    command = ["docker-compose", "--profile", profile, "config", "--services"]
    env = {"PATH": "/usr/bin:/bin", "GRAFANA_PASSWORD": "x"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(
        command, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0 and "GRAFANA_PASSWORD" in refused.stderr


@pytest.mark.parametrize("profile", ["vllm", "tgi", "cpu"])
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
    look = "gpu-or-profile-cpu"
    after = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
    gpu = [name for name, service in SERVICES.items() if "deploy" in service]
    assert sorted(gpu) == ["sidecar-tgi", "sidecar-vllm", "tgi", "vllm"]
    assert all(look in after[name] or any(look in after[one] for one in after[name]) for name in gpu)
    assert "COMPOSE_PROFILES=cpu" in SERVICES[look]["command"][0]


def test_ports_are_on_loopback_unless_configured_otherwise() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("${BIND:-127.0.0.1}:") for port in ports)


def test_images_are_pinned_and_the_example_names_every_variable() -> None:
    example = dict(
        line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if re.match(r"[A-Z_]+=", line)
    )
    knobs = dict(re.findall(r"\$\{([A-Z_]+):[-?]([^}]*)\}", TEXT))
    assert set(knobs) <= set(example)
    for name, default in knobs.items():
        if name.endswith("_IMAGE"):
            assert default == example[name] and re.search(r":v?\d+\.\d+\.\d+$", default), name
    assert example["GRAFANA_PASSWORD"] == ""


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

"""servers/kubernetes by its text: what a cluster would refuse, what must never be allowed, and what its job decides."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadgen.servers.launcher import served
from loadgen.sidecar.app import OPEN_PATHS

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (extra: test)")
operator = pytest.importorskip(
    "cloudcoil.models.prometheus_operator.v1", reason="needs cloudcoil-models-prometheus-operator (extra: test)"
)

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "servers" / "kubernetes"
MONITORING = ROOT / "servers" / "stack" / "monitoring"
TARGETS = ["base", "monitoring", "replay", "sim"]
VERSIONS = ["1.30", "1.37"]
"""The oldest and the newest Kubernetes that the files are held to."""


def documents(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the resources that a kustomization lists, and those of the folders that it lists. Patches are left out."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for name in listed.get("resources", []):
        path = folder / name
        yield from documents(path) if path.is_dir() else yaml.safe_load_all(path.read_text())


def built(folder: Path) -> list[dict[str, Any]]:
    """Return what `kubectl apply -k` would send."""
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return list(yaml.safe_load_all(done.stdout))
    pytest.skip("needs kubectl or kustomize")


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Return every pod's specification, with a name for the report."""
    found = [(f"{target}/{one['kind']}", one["spec"]["template"]["spec"]) for target in TARGETS
             for one in documents(FOLDER / target) if "template" in one["spec"]]  # fmt: skip
    assert len(found) == 5
    return found


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def check(one: dict[str, Any], version: str) -> None:
    """Raise if Kubernetes, or the Prometheus Operator, does not have a field that the resource sets."""
    if one["apiVersion"].startswith("monitoring.coreos.com/"):
        back = (
            getattr(operator, one["kind"])
            .model_validate(one)
            .model_dump(mode="json", by_alias=True, exclude_unset=True)
        )
        assert back == one
    else:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_resources_follow_the_schemas_of_kubernetes_and_the_operator(target: str, version: str) -> None:
    for one in documents(FOLDER / target):
        check(one, version)


@pytest.mark.parametrize("target", TARGETS)
def test_kustomize_builds_what_the_schemas_allow(target: str) -> None:
    resources = built(FOLDER / target)
    assert resources
    for one in resources:
        check(one, VERSIONS[-1])


def test_the_overlays_of_the_page_are_built(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text()
    overlays = [
        yaml.safe_load(text) for text in re.findall(r"```yaml\n(# kustomization.yaml\n.*?)```", page, re.DOTALL)
    ]
    merged = {key: value for overlay in overlays for key, value in overlay.items()}
    merged["resources"] = [path for overlay in overlays for path in overlay.get("resources", [])]
    text = yaml.safe_dump(merged).replace("PATH/loadgen", os.path.relpath(ROOT, tmp_path.resolve()))
    (tmp_path / "kustomization.yaml").write_text(text)
    resources = {one["kind"]: one for one in built(tmp_path)}
    assert len(overlays) == 3 and {one["metadata"]["namespace"] for one in resources.values()} == {"llm"}
    assert all(one["metadata"]["labels"]["release"] == "kube-prometheus-stack" for one in resources.values())
    replay, gate = containers(resources["Job"]["spec"]["template"]["spec"])
    assert replay["args"][2:4] == ["--rps", "12"] and gate["args"][3:5] == ["--fail-if", "ttft_s.p99>500ms"]
    assert replay["image"] == gate["image"] == "registry.example.com/loadgen:0.2.0"


def test_a_misspelt_field_is_found() -> None:
    pod, monitor = [next(one for one in documents(FOLDER / target)) for target in ("replay", "monitoring")]
    pod["spec"]["template"]["spec"]["containers"][0]["agrs"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        check(pod, VERSIONS[-1])
    monitor["spec"]["endpoints"][0]["intervall"] = "5s"
    with pytest.raises(AssertionError):
        check(monitor, VERSIONS[-1])


@pytest.mark.parametrize(("name", "pod"), pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_pods_have_no_rights(name: str, pod: dict[str, Any]) -> None:
    """What the Pod Security Standard `restricted` demands, and no account, no folder of the host, no writable root."""
    assert pod["automountServiceAccountToken"] is False and "serviceAccountName" not in pod
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all(set(volume) <= {"name", "emptyDir"} for volume in pod.get("volumes", []))
    for one in containers(pod):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(one["resources"]["requests"]) and "memory" in one["resources"]["limits"]
        assert not any(key.startswith("nvidia.com/gpu") for part in one["resources"].values() for key in part)
        assert all("value" not in variable for variable in one.get("env", []) if "KEY" in variable["name"])


def test_no_resource_gives_a_right_to_anybody() -> None:
    kinds = {one["kind"] for target in TARGETS for one in documents(FOLDER / target)}
    assert kinds == {"DaemonSet", "Deployment", "Job", "Service", "ServiceMonitor", "PrometheusRule"}


def test_services_probes_and_the_monitor_name_what_exists() -> None:
    base = list(documents(FOLDER / "base"))
    services = {one["metadata"]["name"]: one for one in base if one["kind"] == "Service"}
    (sidecar,) = [one for one in base if one["kind"] == "DaemonSet"]
    (container,) = sidecar["spec"]["template"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    labels = sidecar["spec"]["template"]["metadata"]["labels"]
    assert services["loadgen-sidecar"]["spec"]["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in services["loadgen-sidecar"]["spec"]["ports"]} == ports
    assert container["readinessProbe"]["httpGet"]["path"] in OPEN_PATHS
    assert all(service["spec"]["internalTrafficPolicy"] == "Local" for service in services.values()), (
        "a sidecar reads its own engine"
    )

    (monitor,) = [one for one in documents(FOLDER / "monitoring") if one["kind"] == "ServiceMonitor"]
    selected = monitor["spec"]["selector"]["matchLabels"].items()
    jobs = set()
    for service in services.values():
        assert selected <= service["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
        jobs.add(service["metadata"]["labels"][monitor["spec"]["jobLabel"]])
    scraped = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs == {job["job_name"] for job in scraped}, "the rules and dashboards name these jobs"


def test_the_job_runs_beside_an_engine_that_the_service_finds() -> None:
    (job,) = documents(FOLDER / "replay")
    pod = job["spec"]["template"]["spec"]
    (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (engine,) = [one for one in documents(FOLDER / "base") if one["metadata"]["name"] == "engine"]
    (simulated,) = [one for one in documents(FOLDER / "sim") if one["kind"] == "Deployment"]
    assert term["labelSelector"]["matchLabels"] == engine["spec"]["selector"]
    assert engine["spec"]["selector"].items() <= simulated["spec"]["template"]["metadata"]["labels"].items()
    assert job["spec"]["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"


def test_the_simulated_cluster_needs_no_gpu() -> None:
    (sidecar,) = [one for one in built(FOLDER / "sim") if one["kind"] == "DaemonSet"]
    pod = sidecar["spec"]["template"]["spec"]
    assert not {"runtimeClassName", "nodeSelector"} & set(pod)
    assert "env" not in pod["containers"][0] and pod["containers"][0]["args"][-2:] == ["--energy", "auto"]


def test_dashboards_are_a_configmap_for_grafana() -> None:
    (config,) = [one for one in built(FOLDER / "monitoring") if one["kind"] == "ConfigMap"]
    boards = {board.name: json.loads(board.read_text()) for board in (MONITORING / "grafana/dashboards").glob("*.json")}
    assert {name: json.loads(text) for name, text in config["data"].items()} == boards
    assert config["metadata"]["labels"] == {"grafana_dashboard": "1"}


def test_the_rules_are_those_of_the_stack() -> None:
    spec = importlib.util.spec_from_file_location("make_rule_resource", MONITORING / "make_rule_resource.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.resource(), "run servers/stack/monitoring/make_rule_resource.py"
    groups = [group for name in ("loadgen", "alerts")
              for group in yaml.safe_load((MONITORING / "rules" / f"{name}.yml").read_text())["groups"]]  # fmt: skip
    assert yaml.safe_load(module.resource())["spec"] == {"groups": groups}


def test_promtool_accepts_the_rules_of_the_resource(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump(yaml.safe_load((FOLDER / "monitoring/prometheusrule.yaml").read_text())["spec"]))
    done = subprocess.run(["promtool", "check", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("limit", "status"), [("ttft_s.p99>60s", 0), ("ttft_s.p99>0ms", 1)])
def test_the_job_succeeds_or_fails_with_its_limits(limit: str, status: int, tmp_path: Path) -> None:
    """The arguments of its two containers, against a simulated server, with a short run and another limit.

    The gate takes a run whose client had to wait for a core, as it may here.
    """
    (job,) = documents(FOLDER / "replay")
    pod = job["spec"]["template"]["spec"]
    with served("sim") as url:
        paths = {"http://engine:8000/v1": url, "http://loadgen-sidecar:9478": url.removesuffix("/v1"), "60": "3",
                 "/runs/new": str(tmp_path / "new"), "ttft_s.p99>2s": limit}  # fmt: skip
        assert set(paths) <= {argument for one in containers(pod) for argument in one["args"]}
        statuses = [
            subprocess.run(
                [sys.executable, "-m", "loadgen", *(paths.get(argument, argument) for argument in one["args"]),
                 *(["--allow", "failed"] if one["name"] == "gate" else [])],
                cwd=ROOT, capture_output=True, check=False,
            ).returncode
            for one in containers(pod)
        ]  # fmt: skip
    assert statuses == [0, status]

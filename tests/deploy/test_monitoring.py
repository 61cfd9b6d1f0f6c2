"""Prometheus, its rules and the dashboards, with the real programs: what they show agrees with the summary."""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from loadgen.results.read_ledger import LedgerFile, ledger_files
from loadgen.servers.launcher import served

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "servers" / "stack" / "monitoring"
BOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs prometheus and promtool (Debian: apt-get install prometheus)",
)


def panels(board: Path) -> list[dict[str, Any]]:
    found = json.loads(board.read_text())["panels"]
    assert found
    return list(found)


@needs_prometheus
@pytest.mark.parametrize(
    "command",
    [["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]],
    ids=lambda c: " ".join(c[:2]),
)
def test_promtool_accepts_the_configuration_and_passes_the_rules(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_unit_test() -> None:
    rules = [rule for file in (FOLDER / "rules").glob("*.yml") for group in yaml.safe_load(file.read_text())["groups"]
             for rule in group["rules"]]  # fmt: skip
    tests = (FOLDER / "rules_test.yml").read_text()
    untested = {name for rule in rules if (name := rule.get("record") or rule["alert"]) not in tests}
    assert untested == {"loadgen:gpu_power_watts:sum"}  # inside EnergyBudgetExceeded


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_dashboards_are_valid_for_grafana(board: Path) -> None:
    """Grafana's own types read it and write back every field of it: none is misspelt, misplaced or of another type."""
    given = json.loads(board.read_text())
    back = json.loads(json.dumps(Dashboard.from_json(given), cls=JSONEncoder))
    assert _lost(given, back) == []


def _lost(given: Any, back: Any, at: str = "") -> list[str]:
    match given, back:
        case dict(), dict():
            return [
                loss
                for key in given
                for loss in (_lost(given[key], back[key], f"{at}.{key}") if key in back else [at + "." + key])
            ]
        case list(), list() if len(given) == len(back):
            return [loss for k, pair in enumerate(zip(given, back, strict=True)) for loss in _lost(*pair, f"{at}[{k}]")]
    return [] if given == back else [f"{at}: {given!r} became {back!r}"]


def test_dashboards_are_generated_from_their_tables() -> None:
    spec = importlib.util.spec_from_file_location("make_dashboards", FOLDER / "make_dashboards.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert {board.name for board in BOARDS} == set(module.DASHBOARDS)
    for board in BOARDS:
        assert json.loads(board.read_text()) == module.DASHBOARDS[board.name], (
            "run servers/stack/monitoring/make_dashboards.py"
        )


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_panels_do_not_overlap(board: Path) -> None:
    taken = set()
    for panel in panels(board):
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


# -- live ---------------------------------------------------------------------------------------------------------


class Prometheus:
    """The real one, asked over its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def rows(self, query: str, at_s: float) -> list[tuple[dict[str, str], float]]:
        data = self.get("/api/v1/query", query=query, time=f"{at_s:.3f}")
        rows = [(row["metric"], float(row["value"][1])) for row in data["result"]]
        return [(labels, value) for labels, value in rows if value == value]

    def samples(self, query: str, at_s: float) -> list[list[tuple[float, float]]]:
        """Return (Unix time, value) of each sample of each series of a range vector."""
        data = self.get("/api/v1/query", query=query, time=f"{at_s:.3f}")
        return [[(t_s, float(value)) for t_s, value in row["values"]] for row in data["result"]]

    def await_growth(self) -> None:
        """Wait until scrapes from now on have seen energy being attributed."""
        begin_s = time.time()
        for _ in range(300):
            with suppress(urllib.error.URLError):
                rows = self.samples("loadgen_gpu_energy_joules_total[1m]", time.time())
                new = [joules for series in rows for t_s, joules in series if t_s > begin_s]
                if new and new[-1] > new[0]:
                    return
            time.sleep(0.2)
        raise AssertionError("no growing counter was scraped within a minute")

    def one(self, query: str, at_s: float) -> float:
        ((_, value),) = self.rows(query, at_s)
        return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def program(*command: str, ready: str, cwd: Path = ROOT) -> Iterator[subprocess.Popen[bytes]]:
    """Runs while the block does, once `ready` answers."""
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            for _ in range(300):
                assert process.poll() is None, process.stderr and process.stderr.read().decode()[-2000:]
                try:
                    with urllib.request.urlopen(ready, timeout=2) as answer:
                        if answer.status == 200:
                            break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.1)
            else:
                raise AssertionError(f"{ready} never answered")
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=20)


def settled(sidecar: str, requests: int) -> bool:
    with urllib.request.urlopen(sidecar + "/metrics", timeout=10) as answer:
        page = answer.read().decode()
    lines = [
        line
        for line in page.splitlines()
        if line.startswith("loadgen_requests_total") and 'outcome="completed"' in line
    ]
    return sum(float(line.split()[-1]) for line in lines) == requests


@needs_prometheus
@pytest.mark.timeout(180)
def test_panels_and_rules_agree_with_the_summary(tmp_path: Path) -> None:
    sidecar, prometheus_port = f"http://127.0.0.1:{free_port()}", free_port()
    with ExitStack() as stack:
        engine = stack.enter_context(served("sim")).removesuffix("/v1")
        stack.enter_context(
            program(sys.executable, "-m", "loadgen", "sidecar", "--engine-url", engine,
                    "--port", sidecar.rsplit(":", 1)[1], "--label", "tenant=loadgen.tag.tenant",
                    ready=sidecar + "/healthz")
        )  # fmt: skip
        stack.enter_context(
            program("prometheus", f"--config.file={_config(tmp_path, sidecar, engine)}",
                    f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{prometheus_port}",
                    ready=f"http://127.0.0.1:{prometheus_port}/-/ready")
        )  # fmt: skip
        prometheus = Prometheus(f"http://127.0.0.1:{prometheus_port}")
        subprocess.run(
            [sys.executable, "-m", "loadgen", "replay", "traces/chat.jsonl", "--rps", "8", "--duration", "10",
             "--base-url", engine + "/v1", "--otlp", sidecar, "--out", str(tmp_path / "run"), "--ui", "none",
             "--tag", "tenant=a"],
            cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        for _ in range(300):
            if settled(sidecar, summary["requests"]["completed"]):
                break
            time.sleep(0.1)
        time.sleep(3)  # two scrapes of the settled page and an evaluation of the rules
        _agree(prometheus, summary, time.time())
        _panels_answer(prometheus, time.time())
        _labels_answer(prometheus, time.time())


@needs_prometheus
@pytest.mark.timeout(180)
def test_prometheus_has_the_ledger_though_it_and_the_sidecar_were_killed(tmp_path: Path) -> None:
    """Prometheus is killed under load and started again on its data, and then the sidecar on its ledger. Prometheus has
    of each session of the sidecar what the ledger had at the last scrape of it, and lacks what was committed later."""
    sidecar, prometheus_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    engine = f"http://127.0.0.1:{free_port()}"
    watch = [sys.executable, "-m", "loadgen", "sidecar", "--engine-url", engine, "--ledger", str(tmp_path / "ledger"),
             "--port", sidecar.rsplit(":", 1)[1]]  # fmt: skip
    scrape = ["prometheus", f"--config.file={_config(tmp_path, sidecar, engine)}",
              f"--storage.tsdb.path={tmp_path / 'data'}",
              f"--web.listen-address={prometheus_url.removeprefix('http://')}"]  # fmt: skip
    load = [sys.executable, "-m", "loadgen", "replay", "traces/chat.jsonl", "--rps", "8", "--duration", "30",
            "--base-url", engine + "/v1", "--otlp", sidecar, "--out", str(tmp_path / "run"),
            "--ui", "none"]  # fmt: skip
    prometheus = Prometheus(prometheus_url)
    with ExitStack() as stack:
        serve = [sys.executable, "-m", "loadgen", "serve", "sim", "--port", engine.rsplit(":", 1)[1]]
        stack.enter_context(program(*serve, ready=engine + "/health"))
        first_sidecar = stack.enter_context(program(*watch, ready=sidecar + "/healthz"))
        first_prometheus = stack.enter_context(program(*scrape, ready=prometheus_url + "/-/ready"))
        replay = stack.enter_context(subprocess.Popen(load, cwd=ROOT, stdout=subprocess.DEVNULL))
        prometheus.await_growth()
        first_prometheus.kill()
        time.sleep(2)
        stack.enter_context(program(*scrape, ready=prometheus_url + "/-/ready"))
        prometheus.await_growth()
        first_sidecar.kill()
        stack.enter_context(program(*watch, ready=sidecar + "/healthz"))
        assert replay.wait(90) == 0
        time.sleep(6)
        at_s = time.time()
        samples = {metric: prometheus.samples(f"{metric}[10m]", at_s) for metric in COUNTERS}
        shown = {metric: prometheus.one(f"sum(increase({metric}[10m]))", at_s) for metric in COUNTERS}
    sessions = [[batch.period for batch, _ in LedgerFile(path).batches()] for path in ledger_files(tmp_path / "ledger")]
    [gpu] = samples["loadgen_gpu_energy_joules_total"]
    assert max(after - before for (before, _), (after, _) in pairwise(gpu)) > 2, "Prometheus was away"
    [start] = [k for k in range(1, len(gpu)) if gpu[k][1] < gpu[k - 1][1]]
    for metric, field in COUNTERS.items():
        [series] = samples[metric]
        values = [round(1000 * joules) for _, joules in series]
        ledger = [list(accumulate(getattr(period, field) for period in periods)) for periods in sessions]
        assert values[0] == 0 and values[start - 1] in ledger[0] and values[-1] in ledger[1]
        assert shown[metric] == pytest.approx((values[start - 1] + values[-1]) / 1000, rel=0.05), "it extrapolates"


def _config(folder: Path, sidecar: str, engine: str) -> Path:
    """The shipped configuration with other addresses, once a second."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / "rules" / "*.yml")]
    for job, url in zip(config["scrape_configs"], (sidecar, engine), strict=True):
        job["static_configs"] = [{"targets": [url.removeprefix("http://")]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def _agree(prometheus: Prometheus, summary: dict[str, Any], at_s: float) -> None:
    """Within 2 %, as the live books and the run folder look back on the same requests."""
    energy, tokens = summary["energy"], summary["tokens"]
    expected = {
        "sum(loadgen_output_tokens_total)": tokens["output"],
        "sum(loadgen_input_tokens_total)": tokens["input"],
        "sum(loadgen_requests_total)": summary["requests"]["completed"],
        "sum(loadgen_attributed_energy_joules_total)": energy["attributed_joules"],
        "sum(loadgen_request_energy_joules_sum)": energy["attributed_joules"],
        "model_workload:loadgen_joules_per_output_token:rate5m": energy["joules_per_output_token"],
        "model_workload:loadgen_joules_per_request:rate5m": energy["joules_per_request"]["mean"],
        "1 / loadgen:output_tokens_per_joule:rate5m": energy["joules_per_output_token"],
        "sum(loadgen_request_ttft_seconds_sum) / sum(loadgen_request_ttft_seconds_count)": summary["ttft_s"]["mean"],
    }
    shown = {query: prometheus.one(query, at_s) for query in expected}
    assert shown == {query: pytest.approx(value, rel=0.02) for query, value in expected.items()}
    whole = prometheus.one(
        "sum(loadgen_gpu_energy_joules_total) - sum(loadgen_attributed_energy_joules_total)"
        " - sum(loadgen_idle_energy_joules_total) - sum(loadgen_unattributed_energy_joules_total)", at_s,
    )  # fmt: skip
    assert abs(whole) < 1e-3
    for group in prometheus.get("/api/v1/rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
            if rule["type"] == "recording":
                assert prometheus.rows(rule["name"], at_s), rule["name"]
    assert [alert["labels"]["alertname"] for alert in prometheus.get("/api/v1/alerts")["alerts"]] == []


def test_the_variable_of_labels_offers_those_of_the_user_and_of_requests() -> None:
    board = json.loads((FOLDER / "grafana" / "dashboards" / "energy-by-label.json").read_text())
    (variable,) = (one for one in board["templating"]["list"] if one["name"] == "label")
    names = ["__name__", "account", "engine", "instance", "job", "model", "tenant", "workload", "account_id"]
    shown = [name for name in names if re.search(variable["regex"].strip("/"), name)]
    assert shown == ["engine", "model", "tenant", "workload", "account_id"]
    assert variable["current"]["value"] in shown


COUNTERS = {
    "loadgen_gpu_energy_joules_total": "counter_mj",
    "loadgen_idle_energy_joules_total": "idle_mj",
    "loadgen_unattributed_energy_joules_total": "unattributed_mj",
}
"""Counters, and the same in a period of the ledger."""

VARIABLES = {
    "$__rate_interval": "2m",
    "$model": ".*",
    "$workload": ".*",
    "$label": "tenant",
    "$value": ".*",
    "$__range": "2m",
    "$carbon_g_per_kwh": "400",
    "$price_per_kwh": "0.2",
}
SILENT = {"{{reason}}"}
"""Legends whose query may have nothing to show."""


def _panels_answer(prometheus: Prometheus, at_s: float) -> None:
    """Every query of every panel gives numbers that are sane for what it says it shows."""
    shares = {"percentunit": 1.0, "watt": 2000.0}
    for board in BOARDS:
        for panel in panels(board):
            unit = panel["fieldConfig"]["defaults"]["unit"]
            for target in panel["targets"]:
                query = target["expr"]
                for name, value in VARIABLES.items():
                    query = query.replace(name, value)
                rows = prometheus.rows(query, at_s)
                assert rows or target["legendFormat"] in SILENT, (panel["title"], query)
                assert all(-1e-3 <= value <= shares.get(unit, 1e7) for _, value in rows), (panel["title"], rows)


def _labels_answer(prometheus: Prometheus, at_s: float) -> None:
    """The values of a label, requests without one, idle and unattributed energy make up all power."""
    assert "tenant" in prometheus.get("/api/v1/labels", **{"match[]": "loadgen_attributed_energy_joules_total"})
    (panel,) = (panel for board in BOARDS for panel in panels(board) if panel["title"].startswith("Power by $label"))
    counted = prometheus.one(f"sum(rate(loadgen_gpu_energy_joules_total[{VARIABLES['$__rate_interval']}]))", at_s)
    for label, shown in (("tenant", {"a"}), ("nobodys", {"(none)"})):
        queries = [target["expr"] for target in panel["targets"]]
        for name, value in (VARIABLES | {"$label": label}).items():
            queries = [query.replace(name, value) for query in queries]
        rows = [row for query in queries for row in prometheus.rows(query, at_s)]
        assert {labels[label] for labels, _ in rows if label in labels} == shown
        assert sum(value for _, value in rows) == pytest.approx(counted, rel=0.02)  # rate extrapolates each series

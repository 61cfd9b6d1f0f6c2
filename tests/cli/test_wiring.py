"""The options of a command reach what they are about."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from loadgen.cli import cli
from loadgen.cli.options import Header
from loadgen.energy.named_engine import NamedEngine
from loadgen.energy_model import measure
from loadgen.energy_model.energy_profile import EnergyProfile, GridPoint, read_energy_profile
from loadgen.energy_model.profiling_plan import StoppingRule, journal_path
from loadgen.errors import LoadgenError
from loadgen.sidecar import server as sidecar_server
from loadgen.sidecar.options import SidecarOptions
from loadgen.sidecar.watermark import AllowedLateness
from loadgen.simulator import app as simulator_app
from loadgen.simulator.experts import Routing
from loadgen.units import NS_PER_MS
from loadgen.workload.schedule import Schedule

ROOT = Path(__file__).parents[2]


def loadgen(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


# -- profile ----------------------------------------------------------------------------------------------------------


def test_a_profile_of_a_served_simulator_is_measured_and_its_journal_removed(tmp_path: Path) -> None:
    quick = "--serve sim --bins 16x4,8 --batch 4 --repeat-s 0.1 --max-repeats 1 --settle-s 0 --cap-s 0.1 --within 1e-9"
    output = loadgen("profile", *quick.split(), "--note", "flags=none", "--out", tmp_path / "p.json").output
    assert "2 cells, wrote" in output and "2 of them with an interval wider than ±0%" in output
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]
    profile = read_energy_profile(str(tmp_path / "p.json"))
    assert {tuple(point.key) for point in profile.cells} == {(16, 4, 4), (16, 8, 4)}
    assert (profile.engine, profile.simulated, profile.provenance["flags"]) == ("sim", True, "none")


@pytest.mark.parametrize("complete", [True, False])
def test_the_options_of_a_profile_reach_it_and_an_incomplete_one_keeps_its_journal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, complete: bool
) -> None:
    point = GridPoint(input=8, output=2, batch=4, joules_per_request=1.5)
    measured = EnergyProfile(
        gpu="g", engine="e", model="m", simulated=False, idle_w=None, provenance={"complete": complete}, cells=(point,)
    )
    calls: list[tuple[Any, ...]] = []

    async def profile_server(*arguments: Any) -> EnergyProfile:
        calls.append(arguments)
        return measured

    monkeypatch.setattr(measure, "profile_server", profile_server)
    journal_path(out := tmp_path / "p.json").write_text("")
    loadgen(
        "profile", "--bins", "8x2", "--batch", "4", "--base-url", "http://h/v1", "--api-key", "k", "--served-model",
        "s", "--gpu", "g", "--model", "m", "--engine", "e", "--endpoint", "chat", "--tokenizer", "t.json", "--energy",
        "none", "--within", 0.1, "--repeat-s", 2, "--max-repeats", 3, "--cap-s", 4, "--settle-s", 5, "--static",
        "--budget-s", 6, "--seed", 7, "--note", "a=b", "--out", out,
    )  # fmt: skip
    ((bins, batches, path, options, _),) = calls
    assert (bins, batches, path) == ([(8, 2)], [4], out)
    assert options == measure.ProfileOptions(
        base_url="http://h/v1", api_key="k", served_model="s", gpu_name="g", model="m", engine="e", endpoint="chat",
        tokenizer=Path("t.json"), energy="none", seed=7, notes={"a": "b"},
        rule=StoppingRule(
            within=0.1, repeat_s=2, max_repeats=3, cap_s=4, settle_s=5, static=True, budget_s=6
        ),
    )  # fmt: skip
    assert read_energy_profile(str(out)) == measured
    assert journal_path(out).exists() == (not complete)


def test_a_profile_in_virtual_time_needs_no_server_and_makes_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "new" / "p.json"
    grid = ("--bins", "16x4 32x2", "--batch", "2,1", "--gpu", "l4")
    assert "4 cells, wrote" in loadgen("profile", "--virtual-time", *grid, "--note", "a=b", "--out", out).output
    profile = read_energy_profile(str(out))
    assert [tuple(point.key) for point in profile.cells] == [(16, 4, 1), (32, 2, 1), (16, 4, 2), (32, 2, 2)]
    assert (profile.gpu, profile.provenance["a"]) == ("l4", "b")


@pytest.mark.parametrize("note", ["a", "=1"])
def test_a_note_without_a_key_is_refused(tmp_path: Path, note: str) -> None:
    result = loadgen("profile", "--virtual-time", "--bins", "8x8", "--note", note, "--out", tmp_path / "p.json")
    assert result.exit_code == 2 and f"{note!r} is not KEY=VALUE" in result.output


@pytest.mark.parametrize("command", ["replay chat", "profile --bins 8x2 --batch 4 --out p.json"])
def test_a_run_has_one_server(command: str) -> None:
    with pytest.raises(LoadgenError, match="--serve starts the server of this run, --base-url names another"):
        loadgen(*command.split(), "--serve", "sim", "--base-url", "http://h/v1")


# -- serve ------------------------------------------------------------------------------------------------------------


def test_every_option_of_the_simulator_reaches_its_own_field(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[simulator_app.ServerOptions, bool]] = []
    monkeypatch.setattr(simulator_app, "run_simulator", lambda options, parent: started.append((options, parent)))
    loadgen(
        "serve", "sim", "--host", "::1", "--port", 0, "--model", "qwen3-8b", "--hardware", "l4", "--max-num-seqs", 7,
        "--max-num-batched-tokens", 512, "--tensor-parallel", 2, "--prefix-caching", "--kv-cache-tokens", 4096,
        "--max-model-len", 2048,
        "--counter-period-ms", 20, "--counter-noise", 0.125, "--counter-gain", 1.5, "--seed", 3, "--api-key", "k",
        "--otlp-traces-endpoint", "http://h/v1/traces", "--fault", "stall:0.25", "--exit-with-parent",
        "--draft-model", "llama-3.2-1b", "--draft-tokens", 3, "--draft-acceptance", "0.5",
        "--expert-parallel", "--expert-skew", 1.5, "--expert-repeat", 0.2,
    )  # fmt: skip
    ((options, with_parent),) = started
    assert with_parent
    assert (options.host, options.port, options.model, options.hardware) == ("::1", 0, "qwen3-8b", "l4")
    assert (options.seed, options.api_key, options.otlp_traces_endpoint) == (3, "k", "http://h/v1/traces")
    engine, counter = options.engine, options.counter
    assert (engine.max_num_seqs, engine.max_num_batched_tokens, engine.tensor_parallel) == (7, 512, 2)
    assert (engine.prefix_caching, engine.kv_cache_tokens, engine.max_model_len) == (True, 4096, 2048)
    assert engine.speculation is not None
    assert (engine.speculation.draft.name, engine.speculation.acceptance) == ("llama-3.2-1b", (0.5, 0.5, 0.5))
    assert engine.routing == Routing(skew=1.5, repeat=0.2, parallel=True)
    assert (counter.period_ns, counter.noise, counter.gain) == (20 * NS_PER_MS, 0.125, 1.5)
    assert "stall" in repr(options.faults) and "0.25" in repr(options.faults)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draft-acceptance", "0.7,1"], "is not a number above 0 and below 1"),
        (["--draft-acceptance", "high"], "is not a number above 0 and below 1"),
        (["--draft-acceptance", "0.7,0.6"], "2 chances for 4 draft tokens"),
        (["--max-num-batched-tokens", "4"], "does not hold 4 draft tokens and one more"),
        (["--draft-model", "nobody"], "nobody"),
    ],
)
def test_drafts_that_cannot_be_simulated_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["serve", "sim", "--draft-model", "llama-3.2-1b", *options])
    assert result.exit_code != 0 and message in result.output + str(result.exception)


def test_engine_options_of_the_simulator_become_its_own_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def execv(path: str, command: list[str]) -> None:
        commands.append(command)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    loadgen("serve", "sim", "--engine-option", "max_num_seqs=9", "--port", 81, "--exit-with-parent", "-v")
    (command,) = commands
    assert command[0] == sys.executable and command[-2:] == ["--exit-with-parent", "--verbose"]
    assert command[command.index("--max-num-seqs") + 1] == "9" and command[command.index("--port") + 1] == "81"


def test_a_recipe_is_run_with_its_place_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from loadgen.servers import launcher

    runs: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(launcher, "run_recipe", lambda recipe, values, **places: runs.append((values, places)))
    loadgen("serve", "vllm", "--model", "m", "--port", 81, "--python", "py", "--engine-option", "max_num_seqs=9")
    ((values, places),) = runs
    assert values["max_num_seqs"] == 9
    assert places == {"host": "127.0.0.1", "port": 81, "model": "m", "python": "py", "exit_with_parent": False}


# -- sidecar ----------------------------------------------------------------------------------------------------------


def test_several_engines_reach_the_sidecar_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[SidecarOptions] = []
    monkeypatch.setattr(sidecar_server, "run_sidecar", started.append)
    loadgen("sidecar", "--engine", "b=http://h:1/v1,gpus=0:1", "--engine", "a=http://g:2,energy=http://g:9478")
    assert started[0].engine_url is None
    assert started[0].engines == (
        NamedEngine(name="b", url="http://h:1", gpus=("0", "1")),
        NamedEngine(name="a", url="http://g:2", energy="http://g:9478"),
    )


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (("--engine-url", "http://h:1"), "--engine and --engine-url exclude each other"),
        (("--gpu", "0"), "--engine and --gpu exclude each other"),
        (("--engine", "b=http://h:2,gpus=1:0"), "GPU 0 is of two engines"),
        (("--engine", "a=http://h:2"), "has the name a twice"),
        (("--engine", "b=http://h:2,role=decode"), "go together"),
    ],
)
def test_engines_that_do_not_go_together_are_refused_in_one_line(other: tuple[str, ...], problem: str) -> None:
    with pytest.raises(LoadgenError, match=problem) as refused:
        loadgen("sidecar", "--engine", "a=http://h:1,gpus=0", *other)
    assert "\n" not in str(refused.value)


def test_the_options_of_the_sidecar_reach_it_without_the_api_path(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[SidecarOptions] = []
    monkeypatch.setattr(sidecar_server, "run_sidecar", started.append)
    monkeypatch.setenv("LOADGEN_SIDECAR_TOKEN", "open sesame")
    monkeypatch.setenv("LOADGEN_ENERGY_TOKEN", "meter")
    loadgen(
        "sidecar", "--engine-url", "http://h:1/v1/", "--energy", "none", "--gpu", 0, "--gpu", "GPU-1", "--model", "m",
        "--host", "::1", "--port", 0, "--grpc-port", 4317, "--hold", 9, "--max-hold", 5,
        "--label", "tenant=x-tenant:a,b", "--account", "m=chat,code",
    )  # fmt: skip
    assert started == [
        SidecarOptions(
            host="::1", port=0, grpc_port=4317, engine_url="http://h:1", energy="none", gpus=("0", "GPU-1"), model="m",
            token="open sesame", energy_token="meter", lateness=AllowedLateness(blind_s=9.0, max_s=9.0),
            labels={"tenant": "x-tenant"}, stated_values={"tenant": frozenset("ab")},
            accounts=(("m", "chat"), ("m", "code")),
        )
    ]  # fmt: skip


def test_collectors_are_those_of_the_options_and_that_of_metrics_may_be_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is not read: beside an engine it is the sidecar."""
    started: list[SidecarOptions] = []
    monkeypatch.setattr(sidecar_server, "run_sidecar", started.append)
    for signal in ("METRICS", "TRACES"):
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "http://h:1/of-the-environment")
    loadgen("sidecar", "--otlp-interval", 5)
    loadgen("sidecar", "--otlp-metrics-endpoint", "http://m", "--otlp-traces-endpoint", "http://t")
    assert [(made.otlp_metrics_endpoint, made.otlp_traces_endpoint, made.otlp_interval_s) for made in started] == [
        ("http://h:1/of-the-environment", None, 5.0), ("http://m", "http://t", 10.0),
    ]  # fmt: skip


def test_half_of_a_tls_pair_is_refused(tmp_path: Path) -> None:
    (certificate := tmp_path / "c.pem").write_text("")
    with pytest.raises(LoadgenError, match="--tls-cert and --tls-key go together"):
        loadgen("sidecar", "--tls-cert", certificate)


def test_the_reference_of_metrics_is_printed_without_an_engine() -> None:
    output = loadgen("sidecar", "--reference").output
    assert "loadgen_" in output and "_joules" in output


def test_the_files_for_prometheus_and_grafana_are_written_into_a_new_folder(tmp_path: Path) -> None:
    folder = tmp_path / "monitoring"
    written = [
        str(Path(line).relative_to(folder)) for line in loadgen("sidecar", "--monitoring", folder).output.split()
    ]
    assert written == [
        "grafana/dashboards/energy-by-label.json",
        "grafana/dashboards/energy-per-token.json",
        "grafana/dashboards/serving.json",
        "prometheus.yml",
        "rules/alerts.yml",
        "rules/loadgen.yml",
    ]
    shipped = ROOT / "servers" / "stack" / "monitoring"
    assert all((folder / name).read_bytes() == (shipped / name).read_bytes() for name in written)
    with pytest.raises(LoadgenError, match="exists: name a new folder"):
        loadgen("sidecar", "--monitoring", folder)
    with pytest.raises(LoadgenError, match="cannot write"):
        loadgen("sidecar", "--monitoring", "/proc/none/here")


# -- selftest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "count"), [((), 40), ((ROOT / "traces" / "code.jsonl",), 40)], ids=["even lengths", "a trace"]
)
def test_a_self_test_that_is_interrupted_exits_like_a_signal(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[Path, ...], count: int
) -> None:
    from loadgen.run import selftest

    planned: list[tuple[Schedule, selftest.Plan, int]] = []

    def run_selftest(schedule: Schedule, plan: selftest.Plan, processes: int, view: object) -> None:
        planned.append((schedule, plan, processes))

    monkeypatch.setattr(selftest, "run_selftest", run_selftest)
    options = ("--rps", 20, "--itl", 10, "--ttft", 40, "--duration", 2, "--processes", 3, "--seed", 5, "--json")
    assert loadgen("selftest", *arguments, *options).exit_code == 130
    ((schedule, plan, processes),) = planned
    assert (plan.rps, plan.itl_s, plan.ttft_s, processes, schedule.seed) == (20, 0.01, 0.04, 3, 5)
    assert schedule.arrival == ("trace" if arguments else "poisson")
    assert len(schedule.requests) == pytest.approx(count, rel=0.5)
    if not arguments:
        assert {(r.input_tokens, r.output_tokens) for r in schedule.requests} == {(1000, 200)}


# -- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to replay"),
        (("--stream", "chat:1", "--rps", "2"), "--rps is shared out by weight, and stream chat has none"),
        (("--stream", "chat:1", "--input", "2"), "--input is for one trace"),
        (("--input", "2", "--output", "3", "chat"), "give a trace, or lengths"),
        (("--input", "2", "--duration", "3", "--rps", "1"), "--input and --output: give both"),
        (("--input", "2", "--output", "3", "--rps", "1"), "drawn lengths have no end"),
        (("--input", "2", "--output", "3", "--duration", "1"), "no mean rate of its own; say one with --rps"),
        (("azure-2023-chat", "--rps", "1"), "drawn lengths have no end"),
        (("cht", "--rps", "1"), "no file, trace or workload called 'cht'; did you mean chat?"),
        (("traces/chat.json", "--rps", "1"), "there is no such file; of the shipped sources, did you mean chat?"),
        (("t.jsonl", "--stream", "chat:1"), "give a trace, or streams"),
        (("--extra-body", "[1]", "t.jsonl"), "is not a JSON object"),
    ],
)
def test_what_contradicts_itself_is_not_replayed(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(LoadgenError, match=message):
        loadgen("replay", *arguments)


def test_a_full_disk_behind_the_output_is_one_line_and_no_failed_gate() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "loadgen", "schema", "summary"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (2, "loadgen: cannot write the output: No space left on device\n")


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "loadgen", "estimate", "azure-2023-chat", "--batch", "8", "--json", "--profile"]
    result = subprocess.run([*command, "h200-sim-llama-3.1-8b"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert msgspec.json.decode(result.stdout)["profile"] == "h200-sim-llama-3.1-8b"


# -- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("X-Tenant: a b", "X-Tenant", "a b"),
        ("Authorization: Basic abc=", "Authorization", "Basic abc="),
        ("x-gw-key=abc:def", "x-gw-key", "abc:def"),
        ("x-url=http://h/?a=b", "x-url", "http://h/?a=b"),
        ("X-Empty:", "X-Empty", ""),
    ],
)
def test_a_header_is_split_at_the_first_mark(text: str, name: str, value: str) -> None:
    assert Header().convert(text, None, None) == (name, value)


@pytest.mark.parametrize("text", ["nothing", ":v", "=v", "two words: v", "X: a\r\nY: b", "X: \0", "é: v", "(a): v"])
def test_a_header_that_cannot_be_sent_is_refused_in_one_line(text: str) -> None:
    result = CliRunner().invoke(cli, ["replay", "t.jsonl", "--header", text])
    assert result.exit_code == 2
    assert "Invalid value for '--header'" in result.output


@pytest.mark.parametrize(
    "source", ["http://127.0.0.1:1", "http://127.0.0.1:1/metrics#a_watts", "redfish+http://127.0.0.1:1"]
)
def test_meters_states_once_why_a_source_cannot_be_read_without_advice_to_run_it(source: str) -> None:
    output = " ".join(loadgen("meters", "--seconds", 0.5, "--energy", source).output.split())
    assert output.count("http://127.0.0.1:1 cannot be read: Connection refused") == 1
    assert "lists what this machine has" not in output

"""NVML through the real pynvml, against scripted GPUs whose energy has a closed form (tests/support/fake_nvml.c)."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.energy.counter_clock import align_to_counter_clock
from loadgen.energy.nvml import Device, choose, visible_tokens
from loadgen.energy.series import EnergyDomain, EnergySample, series_by_domain
from loadgen.errors import MeterError
from loadgen.units import NS_PER_S
from support.energy_windows import windows_of

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-bbbbbbbb-0000-0000-0000-000000000002"
BEFORE_J = 5000
"""What a scripted counter shows at the start."""
STEADY = [f"gpu {A}", "point 0 0 300"]


@dataclass
class Said:
    """What the meter of a scripted machine said."""

    samples: list[EnergySample] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    resets: int = 0
    throttled: list[tuple[str, str | None]] = field(default_factory=list)
    reads: int = 0
    read_ns: int = 0
    domains: list[EnergyDomain] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    poll_s: float = 0
    power_w: dict[str, float] = field(default_factory=dict)
    refused: str | None = None

    def of(self, domain: str) -> list[EnergySample]:
        return [sample for sample in self.samples if sample.domain == domain]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1 that does as its script says."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to build the stand-in for NVML with")
    folder = tmp_path_factory.mktemp("nvml")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", folder / "libnvidia-ml.so.1", SUPPORT / "fake_nvml.c", "-lm"], check=True)
    return folder


@pytest.fixture
def environ(library: Path, tmp_path: Path) -> Callable[[list[str]], dict[str, str]]:
    """The environment in which NVML follows a script."""

    def scripted(script: list[str]) -> dict[str, str]:
        path = tmp_path / "script"
        path.write_text("\n".join(script) + "\n")
        paths = {"LD_LIBRARY_PATH": str(library), "PYTHONPATH": str(ROOT), "FAKE_NVML_SCRIPT": str(path)}
        return {**os.environ, **paths}

    return scripted


Run = Callable[..., Said]


@pytest.fixture
def run(environ: Callable[[list[str]], dict[str, str]]) -> Run:
    def scripted(
        script: list[str],
        until_s: float = 5.0,
        *,
        gpus: list[str] | None = None,
        visible: str | None = None,
        fork: bool = False,
        every_s: float = 0.0,
    ) -> Said:
        ask = json.dumps(
            {"until_s": until_s, "gpus": gpus, "visible": visible, "fork": fork, "every_s": every_s}
        ).encode()
        child = [sys.executable, str(SUPPORT / "nvml_child.py")]
        out = subprocess.run(child, input=ask, env=environ(script), capture_output=True, timeout=30)
        assert out.returncode == 0, out.stderr.decode()
        return msgspec.json.decode(out.stdout, type=Said)

    return scripted


def square_j(low: float, high: float, period: float) -> Callable[[float], float]:
    """Joules by t: `high` in the first half of each period."""

    def truth(t: float) -> float:
        whole, rest = divmod(t + 1e-12, period)
        return whole * period / 2 * (low + high) + high * min(rest, period / 2) + low * max(rest - period / 2, 0)

    return truth


# name: power script, joules by time, counter period, quantum in mJ
SHAPES: dict[str, tuple[list[str], Callable[[float], float], float, int]] = {
    "constant 300 W": (["point 0 0 300"], lambda t: 300 * t, 0.1, 1),
    "a step from 100 W to 700 W at 2.5 s": (
        ["point 0 2.5 100", "point 0 2.5 700"],
        lambda t: 100 * t + 600 * max(t - 2.5, 0),
        0.1,
        1,
    ),
    "a ramp of 100 W/s": (["point 0 0 0", "point 0 100 10000"], lambda t: 50 * t * t, 0.1, 1),
    "a square wave of 90 ms": (["square 0 100 700 0.09"], square_j(100, 700, 0.09), 0.1, 1),
    "a square wave of 100 ms": (["square 0 100 700 0.1"], square_j(100, 700, 0.1), 0.1, 1),
    "a square wave of 110 ms": (["square 0 100 700 0.11"], square_j(100, 700, 0.11), 0.1, 1),
    "a counter that moves every 20 ms": (["point 0 0 300"], lambda t: 300 * t, 0.02, 1),
    "a counter in whole joules": (["point 0 0 317"], lambda t: 317 * t, 0.1, 1000),
}


def moves_within(sample: EnergySample, period_s: float) -> list[float]:
    """When the counter truly moved, of the moments that the sample allows."""
    first = math.ceil((sample.t_ns - sample.slack_ns - 1) / 1e9 / period_s)
    last = math.floor((sample.t_ns + sample.slack_ns + 1) / 1e9 / period_s)
    return [move * period_s for move in range(first, last + 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_point_is_a_move_of_the_counter(run: Run, shape: str) -> None:
    script, truth_j, period_s, quantum_mj = SHAPES[shape]
    said = run([f"gpu {A}", *script, f"counter 0 {period_s} {quantum_mj}", "latency 0.004"])
    [domain] = said.domains
    assert (domain.name, domain.source, domain.uuid) == ("gpu:0", "nvml-counter", A)
    assert domain.device == "GPU of a script"
    assert domain.period_s == pytest.approx(period_s, rel=0.2)
    for sample in said.samples:
        assert any(
            abs(sample.joules - BEFORE_J - truth_j(moved_s)) <= quantum_mj / 1000 + 1e-9
            for moved_s in moves_within(sample, period_s)
        )
    assert len(said.samples) >= 0.9 * 5.0 / max(period_s, 0.025)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_interval_is_right_within_its_stated_uncertainty(run: Run, shape: str) -> None:
    script, truth_j, period_s, quantum_mj = SHAPES[shape]
    said = run([f"gpu {A}", *script, f"counter 0 {period_s} {quantum_mj}", "latency 0.004"])
    series = series_by_domain(said.samples)["gpu:0"]
    for start_s, end_s in [(0.5, 4.5), (1.03, 1.07), (1.0, 1.1), (2.41, 2.59)]:
        edges_ns = round(start_s * 1e9), round(end_s * 1e9)
        measured, u = series.energy_mj(*edges_ns), series.uncertainty_mj(*edges_ns)
        assert measured is not None and u is not None
        assert abs(measured / 1000 - (truth_j(end_s) - truth_j(start_s))) <= (u + quantum_mj) / 1000 + 1e-6
        assert u <= 4 * max(window.millijoules for window in windows_of(series))


def test_reading_takes_at_most_a_fifth_of_the_time(run: Run) -> None:
    said = run([*STEADY, "latency 0.004"])
    assert said.read_ns / 5e9 <= 0.21
    assert said.reads <= 5.0 / 0.02


def test_a_regular_counter_is_read_less_than_twice_a_move(run: Run) -> None:
    """Once 40 moves, finely polled, have shown its clock."""
    short, long = run(STEADY, 5.0), run(STEADY, 25.0)
    assert (long.reads - short.reads) / 200 < 2
    assert len(long.samples) - len(short.samples) == pytest.approx(200, abs=10)


@pytest.mark.parametrize("every_s", [0.5, 1.0])
def test_reads_may_be_rarer_than_updates_and_no_energy_is_lost(every_s: float, run: Run) -> None:
    said = run([*STEADY, "latency 0.004"], 35.0, every_s=every_s)
    learning_s = 5.0
    late = [sample for sample in said.samples if sample.t_ns > learning_s * 1e9]
    assert len(late) == pytest.approx((35 - learning_s) / every_s, rel=0.35)
    series = series_by_domain(said.samples)["gpu:0"]
    measured, u = series.energy_mj(6_000_000_000, 32_000_000_000), series.uncertainty_mj(6_000_000_000, 32_000_000_000)
    assert measured is not None
    assert u is not None
    assert abs(measured - 26 * 300 * 1000) <= u
    assert max(sample.slack_ns for sample in late) <= 0.08e9, "the newest update is at most a period old"


def test_eight_gpus_that_take_long_to_read_are_each_right_within_their_uncertainty(run: Run) -> None:
    script = [line for i in range(8) for line in (f"gpu GPU-{i}", f"point {i} 0 {100 + i}")]
    said = run([*script, "latency 0.004"])
    for i, series in enumerate(series_by_domain(said.samples).values()):
        measured, u = (
            series.energy_mj(1_000_000_000, 4_000_000_000),
            series.uncertainty_mj(1_000_000_000, 4_000_000_000),
        )
        assert measured is not None and u is not None
        assert abs(measured - 3000 * (100 + i)) <= u + 1
        assert u <= 4 * 1.5 * 0.1 * 1000 * (100 + i)
    assert len(said.domains) == 8


def test_why_clocks_are_low_is_asked_once_a_second(run: Run) -> None:
    """0x44: a thermal slowdown at the power cap; the graver one is told."""
    said = run([*STEADY, "clocks 0 2 3.5 68"], 6.0)
    hot = said.throttled.count(("gpu:0", "hardware thermal slowdown"))
    assert len(said.throttled) in (5, 6)
    assert hot in (1, 2)
    assert said.throttled.count(("gpu:0", None)) == len(said.throttled) - hot


def test_a_driver_that_does_not_say_why_clocks_are_low_costs_nothing_else(run: Run) -> None:
    said = run([*STEADY, "fault clocks 0 0 999 13"])
    assert (said.throttled, said.errors) == ([], [])
    assert len(said.samples) > 40


def test_each_update_has_the_clocks_and_the_time_at_the_power_limit(run: Run) -> None:
    said = run([*STEADY, "limit 0 700", "capped 0 2 4 1500"], 6.0)
    assert said.domains[0].limit_w == 700
    assert {sample.sm_mhz for sample in said.samples if 2.2 < sample.t_ns / 1e9 < 3.8} == {1500}
    assert {sample.sm_mhz for sample in said.samples if sample.t_ns / 1e9 > 4.2} == {1980}
    counted = [sample.capped_ns or 0 for sample in said.samples]
    assert (counted[0], counted[-1]) == (0, 2 * NS_PER_S) and counted == sorted(counted)


def test_a_driver_that_does_not_count_time_at_the_power_limit_leaves_it_unknown(run: Run) -> None:
    said = run(STEADY)
    assert said.domains[0].limit_w is None
    assert {(sample.capped_ns, sample.sm_mhz) for sample in said.samples} == {(None, None)}
    assert len(said.samples) > 40 and not said.errors


def test_a_group_of_four_is_the_sum_of_its_own_gpus_and_not_of_the_hosts(run: Run) -> None:
    script = [line for i in range(8) for line in (f"gpu GPU-{i}", f"point {i} 0 {100 * (i + 1)}")]
    said = run([*script, "latency 0.001"], 10.0, visible="4,5,6,7")
    assert [domain.name for domain in said.domains] == ["gpu:4", "gpu:5", "gpu:6", "gpu:7"]
    edges_ns = 1_000_000_000, 9_000_000_000
    series = [align_to_counter_clock(one) for one in series_by_domain(said.samples).values()]
    measured = [one.energy_mj(*edges_ns) or 0.0 for one in series]
    assert sum(measured) == pytest.approx(8 * (500 + 600 + 700 + 800) * 1000, rel=0.002)
    assert any("4 of this host's 8 GPUs" in note for note in said.notes)


def test_a_counter_that_restarts_leaves_a_gap_and_never_a_negative(run: Run) -> None:
    said = run([*STEADY, "reset 0 2.55"])
    assert said.resets == 1
    [gap] = [sample for sample in said.samples if sample.gap]
    assert abs(gap.t_ns - 2.6e9) <= gap.slack_ns + 1
    series = series_by_domain(said.samples)["gpu:0"]
    assert series.energy_mj(2_400_000_000, 3_000_000_000) is None
    assert series.energy_mj(3_000_000_000, 4_000_000_000) == pytest.approx(300_000, rel=0.03)
    known_s = (series.t_ns[-1] - series.t_ns[0] - series.unknown_ns) / 1e9
    assert series.total_mj == pytest.approx(300_000 * known_s, rel=0.01)
    assert [w.known for w in windows_of(series)].count(False) == 1


def test_a_counter_that_stops_moving_gives_no_more_points(run: Run) -> None:
    said = run([*STEADY, "freeze 0 2"])
    assert max(sample.t_ns for sample in said.samples) <= 2.02e9
    assert said.errors == []


def test_a_counter_that_never_moves_gives_no_point_at_all(run: Run) -> None:
    assert run([*STEADY, "freeze 0 0"]).samples == []


def test_a_lost_gpu_is_reported_once_and_the_other_one_goes_on(run: Run) -> None:
    said = run([f"gpu {A}", f"gpu {B}", "point 0 0 300", "point 1 0 200", "fault counter 0 2 999 15"])
    assert said.errors == ["gpu:0: the GPU is lost (NVML 15); it is not read any more"]
    assert max(sample.t_ns for sample in said.of("gpu:0")) < 2.03e9
    other = series_by_domain(said.samples)["gpu:1"]
    assert other.energy_mj(1_000_000_000, 4_500_000_000) == pytest.approx(700_000, rel=0.01)


@pytest.mark.parametrize("code", [10, 21, 27, 999])
def test_after_an_outage_the_counter_has_counted_on(run: Run, code: int) -> None:
    said = run([*STEADY, f"fault counter 0 2 3.03 {code}"])
    assert len(said.errors) > 10 and f"NVML {code}" in said.errors[0]
    series = series_by_domain(said.samples)["gpu:0"]
    assert series.energy_mj(1_000_000_000, 4_500_000_000) == pytest.approx(1_050_000, rel=0.01)
    assert max(window.end_ns - window.start_ns for window in windows_of(series)) > 1_000_000_000


# which calls say NOT_SUPPORTED, what is asked instead
FALLBACKS = [
    (["counter"], "nvml-power-instant", "field 186"),
    (["counter", "instant"], "nvml-power-average", "field 185"),
    (["counter", "fields"], "nvml-power-usage", "nvmlDeviceGetPowerUsage"),
]


@pytest.mark.parametrize(("unsupported", "source", "note"), FALLBACKS)
def test_without_a_counter_power_is_integrated_and_says_so(
    run: Run, unsupported: list[str], source: str, note: str
) -> None:
    script = ["point 0 2.5 100", "point 0 2.5 700"]
    said = run([f"gpu {A}", *script, *(f"fault {call} 0 0 999 3" for call in unsupported)])
    assert [domain.source for domain in said.domains] == [source]
    assert note in said.notes[0] and "5 %" in said.notes[0]
    series = series_by_domain(said.samples)["gpu:0"]
    assert series.energy_mj(1_000_000_000, 4_000_000_000) == pytest.approx(150_000 + 1_050_000, rel=0.02)


def test_integrated_power_does_not_guess_what_it_did_not_see(run: Run) -> None:
    said = run([*STEADY, "fault counter 0 0 999 3", "fault instant 0 2 3.5 10"])
    series = series_by_domain(said.samples)["gpu:0"]
    assert series.energy_mj(1_500_000_000, 4_000_000_000) is None
    assert series.energy_mj(4_000_000_000, 4_500_000_000) == pytest.approx(150_000, rel=0.01)


def test_one_failing_field_does_not_take_the_counter_with_it(run: Run) -> None:
    said = run([*STEADY, "fault instant 0 0 999 3"])
    assert said.domains[0].source == "nvml-counter"
    assert said.power_w == {"gpu:0": 300}


def test_mig_joules_are_the_whole_gpus_and_say_so(run: Run) -> None:
    said = run([*STEADY, "mig 0 MIG-11111111"], visible="MIG-11111111")
    assert [domain.uuid for domain in said.domains] == [A]
    assert any("MIG" in note and "whole GPU" in note for note in said.notes)


TWO = [f"gpu {A}", f"gpu {B}", "point 0 0 300", "point 1 0 200"]


@pytest.mark.parametrize(
    ("gpus", "visible", "domains"),
    [
        (None, None, ["gpu:0", "gpu:1"]),
        (None, "1", ["gpu:1"]),
        (None, B, ["gpu:1"]),
        (None, f"{B},{A}", ["gpu:1", "gpu:0"]),
        (None, "1,-1,0", ["gpu:1"]),
        (["0", "GPU-aaaa"], None, ["gpu:0"]),
        (["0"], "1", ["gpu:0"]),
    ],
)
def test_gpus_are_chosen_by_index_uuid_or_cuda_visible_devices(
    run: Run, gpus: list[str] | None, visible: str | None, domains: list[str]
) -> None:
    said = run(TWO, 0.1, gpus=gpus, visible=visible)
    assert [domain.name for domain in said.domains] == domains
    assert f"{len(domains)} of this host's 2 GPUs" in said.notes[0]


# script, chosen GPUs, words of the reason
REFUSALS: list[tuple[list[str], list[str] | None, str]] = [
    ([], None, "lists no GPU"),
    ([*STEADY, "fault init 0 0 999 9"], None, "driver is not loaded"),
    ([*STEADY, "fault init 0 0 999 18"], None, "driver and library differ"),
    ([*STEADY, "fault counter 0 0 999 4"], None, "NVML 4"),
    ([*STEADY, *(f"fault {c} 0 0 999 3" for c in ("counter", "fields", "usage"))], None, "not supported (NVML 3)"),
    (STEADY, ["3"], "no GPU '3' here; there are: 0 (GPU-aaaa"),
    (TWO, ["GPU-"], "begins the UUID of 2 GPUs"),
]


@pytest.mark.parametrize(("script", "gpus", "reason"), REFUSALS)
def test_what_cannot_be_measured_is_refused_with_the_reason(
    run: Run, script: list[str], gpus: list[str] | None, reason: str
) -> None:
    refused = run(script, gpus=gpus).refused
    assert refused is not None and reason in refused


def test_a_gpu_that_cannot_be_measured_is_left_out_by_name(run: Run) -> None:
    said = run([*TWO, "fault counter 1 0 999 4"], 0.1)
    assert [domain.name for domain in said.domains] == ["gpu:0"]
    assert any(note.startswith("gpu:1 is left out") for note in said.notes)


@pytest.mark.parametrize(("timeouts", "kept"), [(2, True), (3, False)])
def test_a_timeout_or_two_at_the_start_do_not_lose_the_counter(run: Run, timeouts: int, kept: bool) -> None:
    said = run([*STEADY, f"first counter 0 {timeouts} 10"], 0.1)
    assert (said.refused is None) == kept
    assert [domain.source for domain in said.domains] == ["nvml-counter"] * kept


def test_after_a_fork_the_child_reads_on(run: Run) -> None:
    said = run(STEADY, fork=True)
    assert said.errors == []
    series = series_by_domain(said.samples)["gpu:0"]
    assert series.energy_mj(1_000_000_000, 4_000_000_000) == pytest.approx(900_000, rel=0.01)


HANGS = """
import sys, threading
from loadgen.energy.nvml import open_nvml
from loadgen.energy.sampler import Sampler, STOPPED_ANSWERING
samples, some = [], threading.Event()
sampler = Sampler(open_nvml(), lambda s: (samples.extend(s), len(samples) > 2 and some.set()), answer_s=0.3)
sampler.start()
assert some.wait(20)
while not sampler.hangs:
    threading.Event().wait(0.05)
assert sampler.latest().joules["gpu:0"] > 0
report = sampler.stop()
assert report.errors == {STOPPED_ANSWERING: 1}, report
assert report.silence_s["gpu:0"] > 0.3
print("ended")
"""


def test_a_call_that_never_returns_does_not_hang_the_program(
    environ: Callable[[list[str]], dict[str, str]],
) -> None:
    env = environ([*STEADY, "real", "hang counter 0 0.6"])
    out = subprocess.run([sys.executable, "-c", HANGS], env=env, capture_output=True, timeout=40, text=True)
    assert (out.returncode, out.stdout) == (0, "ended\n"), out.stderr


def test_meters_lists_the_gpu_with_its_period_and_agreement(
    environ: Callable[[list[str]], dict[str, str]],
) -> None:
    command = [sys.executable, "-m", "loadgen", "meters", "--seconds", "1"]
    env = environ([*STEADY, "real"])
    out = subprocess.run([*command, "--json"], env=env, capture_output=True, timeout=40, check=True)
    listed = json.loads(out.stdout)
    nvml: dict[str, Any] = listed["sources"][0]
    assert (listed["auto"], nvml["name"], nvml["usable"]) == ("nvml", "nvml", True)
    [gpu] = nvml["domains"]
    assert gpu["period_s"] == pytest.approx(0.1, rel=0.3)
    assert gpu["watts"] == pytest.approx(300, rel=0.25)
    assert gpu["power_ratio"] == pytest.approx(1.0, abs=0.25)
    text = subprocess.run(command, env=env, capture_output=True, timeout=40, check=True, text=True).stdout
    assert "gpu:0 (nvml-counter)" in text and "--energy auto takes: nvml" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("visible", "seen"), [(None, [A, B]), ("1", [B]), (f"{B},0", [B, A]), ("-1", [])])
def test_a_study_watches_the_gpus_that_its_servers_may_use(
    visible: str | None, seen: list[str], environ: Callable[[list[str]], dict[str, str]]
) -> None:
    """Another's GPU that is hot is not waited for."""
    env = environ([*STEADY, f"gpu {B}", "point 1 0 500"]) | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    code = "from loadgen.energy import gpu_state; print(*[one.uuid for one in gpu_state.states()])"
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=40, check=True, text=True)
    assert out.stdout.split() == seen


@pytest.mark.parametrize(
    ("value", "tokens"),
    [(None, None), ("", []), ("0, 1", ["0", "1"]), ("-1", []), ("2,-1,0", ["2"]), ("GPU-a,MIG-b", ["GPU-a", "MIG-b"])],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(value: str | None, tokens: list[str] | None) -> None:
    assert visible_tokens(value) == tokens


def test_slices_of_one_gpu_count_it_once() -> None:
    devices = [Device(0, A), Device(1, B)]
    assert choose(devices, ["MIG-1", "MIG-2", A], lambda slice_uuid: A) == [Device(0, A)]
    with pytest.raises(MeterError, match="no GPU 'GPU-c'"):
        choose(devices, ["GPU-c"], lambda slice_uuid: A)


@pytest.mark.parametrize(
    ("extra", "jump_mj", "gaps"),
    [
        ([], 1_900_000, 0),  # 10 kW for a period of 0.1 s, as much again for the counter's age, and the reads' slack
        ([], 4_000_000, 1),
        (["limit 0 700"], 300_000, 0),
        (["limit 0 700"], 1_000_000, 1),  # three times 700 W for the same time
        (["limit 0 0"], 1_000_000, 0),
    ],
)
def test_a_jump_past_the_cards_power_is_a_gap_and_not_joules(
    run: Run, extra: list[str], jump_mj: int, gaps: int
) -> None:
    said = run([*STEADY, *extra, f"jump 0 2.5 {jump_mj}"])
    samples = said.of("gpu:0")
    assert sum(sample.gap for sample in samples) == said.resets == gaps
    known_s = (samples[-1].t_ns - samples[0].t_ns) / 1e9 - 0.1 * gaps
    counted_j = 300 * known_s + (0 if gaps else jump_mj / 1000)
    assert samples[-1].joules - samples[0].joules == pytest.approx(counted_j, abs=300 * 0.02)


def test_a_power_that_no_card_draws_is_an_error_and_no_joules(run: Run) -> None:
    said = run(
        [
            f"gpu {A}",
            "point 0 2 300",
            "point 0 2 30000",
            "point 0 2.5 30000",
            "point 0 2.5 300",
            "fault counter 0 0 1e9 3",
        ]
    )
    assert any("is not read: no card draws it" in error for error in said.errors)
    samples = said.of("gpu:0")
    assert samples[-1].joules - samples[0].joules <= 301 * (samples[-1].t_ns - samples[0].t_ns) / 1e9


@pytest.mark.parametrize(
    ("visible", "reason"),
    [
        ("7", "CUDA_VISIBLE_DEVICES=7: there is no GPU '7' here; there are: 0"),
        ("", "CUDA_VISIBLE_DEVICES='' hides every GPU"),
        ("-1", "CUDA_VISIBLE_DEVICES='-1' hides every GPU"),
    ],
)
def test_a_variable_that_hides_every_gpu_is_named(run: Run, visible: str, reason: str) -> None:
    said = run(STEADY, visible=visible)
    assert said.refused is not None and said.refused.startswith(reason)

"""The boundary names every part of what serving takes, and adds none of them twice."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from loadgen.attribution.host_share import SHARE_HOST
from loadgen.energy.series import EnergyDomain, EnergySample, series_by_domain
from loadgen.results import run_folder
from loadgen.results.bill import BillSums
from loadgen.results.bill_boundary import bill_boundary
from loadgen.results.energy_boundary import boundary_of
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.results.summary import Boundary, EnergySummary
from loadgen.units import NS_PER_S, mj_from_j
from support import sample_runs
from support.fleet_runs import replicas

HOST = [
    EnergyDomain(name="cpu:package-0", source="rapl"),
    EnergyDomain(name="cpu:package-0/core", source="rapl", within="cpu:package-0"),
    EnergyDomain(name="dram:0", source="rapl"),
]
WATTS = {"cpu:package-0": 150.0, "cpu:package-0/core": 100.0, "dram:0": 20.0, "machine:plug": 10_000.0}
PLUG = EnergyDomain(name="machine:plug", source="meter")


def run_with(domains: list[EnergyDomain], **config: Any) -> RunResult:
    """Return the sample run, analysed, with these domains beside its own, each at its constant power."""
    run = sample_runs.single()
    t_ns = sorted({sample.t_ns for sample in run.energy})
    samples = [
        EnergySample(at_ns, domain.name, WATTS[domain.name] * (at_ns - t_ns[0]) / NS_PER_S)
        for domain in domains
        for at_ns in t_ns
    ]
    info = msgspec.structs.replace(
        run.info, domains=[*run.info.domains, *domains], config={**run.info.config, **config}
    )
    schedule = [msgspec.structs.replace(item, tags={"tenant": "ab"[item.index % 2]}) for item in run.schedule]
    return analyse_run(RunResult(info, schedule, run.records, [*run.energy, *samples], run.engine, None, None))


def energy_of(run: RunResult) -> EnergySummary:
    assert run.summary is not None
    return run.summary.energy


def bases(boundary: Boundary | None) -> dict[str, str]:
    assert boundary is not None
    return {part.part: part.basis for part in boundary.parts}


def joules(boundary: Boundary | None) -> dict[str, float | None]:
    assert boundary is not None
    return {part.part: part.joules for part in boundary.parts}


@pytest.mark.parametrize(
    ("sources", "basis"),
    [
        (["nvml-counter", "rapl"], "measured"),
        (["nvml-counter", "estimate"], "estimated"),
        (["simulated", "nvml-counter"], "simulated"),
        (["estimate", "simulated rapl"], "simulated"),
    ],
)
def test_a_run_and_a_bill_have_one_word_for_mixed_sources(sources: list[str], basis: str) -> None:
    names = [f"gpu:{number}" for number in range(len(sources))]
    run = run_with([])
    domains = [EnergyDomain(name=name, source=source) for name, source in zip(names, sources, strict=True)]
    run = replace(run, info=msgspec.structs.replace(run.info, domains=domains))
    bill = BillSums((), {}, sources={f"{name} ({source})" for name, source in zip(names, sources, strict=True)})
    words = [bases(boundary)["accelerator"] for boundary in (boundary_of(run, energy_of(run)), bill_boundary(bill))]
    assert words == [basis, basis]


@pytest.mark.parametrize("share_by", SHARE_HOST)
def test_the_host_beside_the_gpus_changes_none_of_their_accounts(share_by: str) -> None:
    alone, beside = energy_of(run_with([])), energy_of(run_with(HOST, share_host=share_by))
    ours = ("domains", "host", "boundary")
    assert msgspec.structs.replace(beside, **{name: getattr(alone, name) for name in ours}) == alone
    assert alone.host is None
    assert beside.host is not None
    assert beside.host.share_by == share_by


def test_the_energy_of_a_host_is_shared_by_the_requests_of_its_own_engine() -> None:
    """Engine b has a host of its own, whose meter is read there."""
    fleet = replicas(requests=40)
    run, t_ns = fleet.result, sorted({sample.t_ns for sample in fleet.result.energy})
    a, b = run.info.engines
    engines = [a, msgspec.structs.replace(b, energy="http://b", gpus=())]
    domains = [
        run.info.domains[0],
        EnergyDomain(name="gpu:0@b", source="simulated"),
        EnergyDomain(name="cpu:package-0@b", source="rapl"),
    ]
    moved = [msgspec.structs.replace(s, domain="gpu:0@b") if s.domain == "gpu:1" else s for s in run.energy]
    host = [EnergySample(at_ns, "cpu:package-0@b", 150.0 * (at_ns - t_ns[0]) / NS_PER_S) for at_ns in t_ns]
    info = msgspec.structs.replace(run.info, engines=engines, domains=domains)
    result = analyse_run(replace(run, info=info, energy=[*moved, *host]))
    shares = [share.host_joules or 0.0 for share in result.shares.values()]
    assert all((joules > 0) == (name == "b") for joules, name in zip(shares, fleet.served_by, strict=True))
    host_energy = energy_of(result).host
    assert host_energy is not None
    assert host_energy.attributed_joules == pytest.approx(sum(shares))


@pytest.mark.parametrize("share_by", SHARE_HOST)
def test_the_hosts_accounts_add_up_and_its_cores_are_in_their_package(share_by: str) -> None:
    run = run_with(HOST, share_host=share_by)
    host, of_requests = energy_of(run).host, [share.host_joules for share in run.shares.values()]
    assert host is not None
    parts = (host.idle_joules, host.attributed_joules, host.unattributed_joules)
    assert sum(map(mj_from_j, parts)) == mj_from_j(host.measured_joules)
    assert sum(mj_from_j(part or 0.0) for part in of_requests) == mj_from_j(host.attributed_joules)
    known = {domain.name: domain.joules or 0.0 for domain in energy_of(run).domains}
    assert host.measured_joules == pytest.approx(known["cpu:package-0"] + known["dram:0"])
    assert known["cpu:package-0/core"] < known["cpu:package-0"]


@pytest.mark.parametrize("part", ["by_workload", "by_tag"])
def test_the_parts_of_a_run_share_the_hosts_energy_whole(part: str) -> None:
    summary, alone = run_with(HOST).summary, run_with([]).summary
    assert summary is not None and summary.energy.host is not None and alone is not None
    parts = getattr(summary, part).values()
    assert parts
    shared = sum(mj_from_j(of_part.host_joules or 0.0) for of_part in parts)
    assert shared == mj_from_j(summary.energy.host.attributed_joules)
    assert {of_part.host_joules for of_part in getattr(alone, part).values()} == {None}


def test_requests_have_no_energy_of_a_host_without_a_meter() -> None:
    assert {share.host_joules for share in run_with([]).shares.values()} == {None}


def test_the_boundary_says_what_is_not_included() -> None:
    parts = ["accelerator", "host", "idle", "chassis", "overhead"]
    for run, expected in (
        (run_with([]), ["simulated", "not included", "simulated", "not included", "not included"]),
        (run_with([*HOST, PLUG], pue=1.2), ["simulated", "measured", "simulated", "measured", "estimated"]),
    ):
        assert bases(energy_of(run).boundary) == dict(zip(parts, expected, strict=True))


def test_a_meter_of_the_whole_machine_adds_only_what_no_other_has_counted() -> None:
    energy = energy_of(run_with([*HOST, PLUG]))
    [plug] = [domain for domain in energy.domains if domain.name == "machine:plug"]
    assert energy.boundary is not None
    assert energy.boundary.total_joules == pytest.approx(plug.joules)


def test_a_meter_that_counted_less_than_the_parts_contains_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WATTS, "machine:plug", 1.0)
    boundary = energy_of(run_with([*HOST, PLUG])).boundary
    assert boundary is not None
    assert bases(boundary)["chassis"] == "not included"
    counted = [joules(boundary)[part] or 0.0 for part in ("accelerator", "host")]
    assert boundary.total_joules == pytest.approx(sum(counted))


def test_stated_factors_apply_to_all_that_is_included() -> None:
    plain = energy_of(run_with(HOST)).boundary
    stated = energy_of(run_with(HOST, pue=1.5, grid_intensity=360.0, grid_source="UK 2025", price=0.3)).boundary
    assert plain is not None
    assert stated is not None
    assert stated.total_joules == pytest.approx(1.5 * plain.total_joules)
    assert stated.co2e_grams == pytest.approx(stated.total_joules / 1e4)
    assert stated.cost == pytest.approx(stated.total_joules / 3.6e6 * 0.3)
    assert (plain.co2e_grams, plain.cost, plain.cost_per_million_output_tokens) == (None, None, None)


def test_a_run_without_a_gpu_has_its_joules_in_the_host() -> None:
    run = run_with(HOST)
    info = msgspec.structs.replace(run.info, domains=HOST)
    samples = [sample for sample in run.energy if sample.domain in WATTS]
    energy = energy_of(analyse_run(RunResult(info, run.schedule, run.records, samples, run.engine, None, None)))
    assert energy.host is None
    assert bases(energy.boundary)["accelerator"] == "not included"
    assert joules(energy.boundary)["host"] == energy.measured_joules


def test_the_samples_of_a_run_become_series_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(samples: Any, domains: Any) -> Any:
        calls.append(len(samples))
        return series_by_domain(samples, domains)

    monkeypatch.setattr(run_folder, "series_by_domain", counted)
    run = run_with(HOST)
    assert calls == [len(run.energy)]

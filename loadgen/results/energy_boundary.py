"""The energy beside the accelerators', and the boundary: which parts of what serving takes the joules of a run have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from loadgen.attribution.host_share import HostAccounts, ShareHost, share_host_energy, sum_of_hosts
from loadgen.energy.series import EnergyDomain, EnergySeries, accelerators, host_domains, scope
from loadgen.results import metrics
from loadgen.results.energy_summary import MIN_TIME_COVERAGE, summarize_energy, time_coverage, token_coverage
from loadgen.results.engine_energy import engine_energies
from loadgen.results.factors import Factors, basis_of, boundary_by
from loadgen.results.summary import BoundaryPart, DomainEnergy, EnergySummary, HostEnergy
from loadgen.units import NS_PER_S, j_from_mj

if TYPE_CHECKING:
    from loadgen.attribution.shapley import RunAttribution
    from loadgen.record import RequestRecord
    from loadgen.results.run_folder import RunResult
    from loadgen.results.summary import Boundary


def share_host(
    result: RunResult, attribution: RunAttribution | None, start_ns: int, end_ns: int
) -> tuple[RunAttribution | None, HostEnergy | None]:
    """Return the attribution with each request's share of the host's energy, and the accounts of that energy; both as
    they are where no meter counts the host beside the GPUs."""
    domains = host_domains(result.info.domains)
    if attribution is None or not domains:
        return attribution, None
    series = [result.series[domain.name] for domain in domains if len(result.series.get(domain.name, ())) > 1]
    if not series:
        return attribution, None
    share_by: ShareHost = result.info.config.get("share_host") or "time"
    own_share = token_coverage(result)
    hosts: dict[str, list[EnergySeries]] = {}
    for domain in series:
        hosts.setdefault(domain.domain.partition("@")[2], []).append(domain)
    accounts = sum_of_hosts(
        [
            share_host_energy(
                own, records_at_host(result, attribution, host), start_ns, end_ns,
                share_by=share_by, own_share=1.0 if own_share is None else min(own_share, 1.0),
            )
            for host, own in hosts.items()
        ]
    )  # fmt: skip
    requests = [
        msgspec.structs.replace(share, host_joules=j_from_mj(int(mj)))
        for share, mj in zip(attribution.requests, accounts.requests_mj, strict=True)
    ]
    host = _host_energy(result, domains, series, accounts, share_by, start_ns, end_ns)
    return msgspec.structs.replace(attribution, requests=requests), host


def records_at_host(result: RunResult, attribution: RunAttribution, host: str) -> Sequence[RequestRecord]:
    """Return the records, those of requests that another host served as if they had not been sent.

    host: the engine whose own energy source the host's meter is; empty for that of all other engines.
    """
    engines = {engine.name for engine in result.info.engines if (engine.name if engine.energy else "") == host}
    if not engines or len(engines) == len(result.info.engines):
        return result.records
    return [
        record if engines & {share.engine, share.prefill_engine} else msgspec.structs.replace(record, sent_ns=None)
        for share, record in zip(attribution.requests, result.records, strict=True)
    ]


def _host_energy(
    result: RunResult,
    domains: Sequence[EnergyDomain],
    series: Sequence[EnergySeries],
    accounts: HostAccounts,
    share_by: str,
    start_ns: int,
    end_ns: int,
) -> HostEnergy:
    covered = min(time_coverage(domain.clip(start_ns, end_ns), start_ns, end_ns) for domain in series)
    counted = {domain.domain for domain in series}
    silent = [domain.name for domain in domains if domain.name not in counted]
    reasons = [f"{', '.join(silent)} gave no energy"] if silent else []
    if covered < MIN_TIME_COVERAGE:
        reasons.append(f"the host's meters cover {covered:.1%} of the run's time")
    attributed_mj, tokens = int(accounts.requests_mj.sum()), sum(record.output_tokens or 0 for record in result.records)
    return HostEnergy(
        source=", ".join(sorted({domain.source for domain in domains})),
        share_by=share_by,
        measured_joules=j_from_mj(accounts.measured_mj),
        idle_joules=j_from_mj(accounts.idle_mj),
        attributed_joules=j_from_mj(attributed_mj),
        unattributed_joules=j_from_mj(accounts.unattributed_mj),
        joules_per_request=metrics.distribution(
            j_from_mj(int(mj)) for mj, record in zip(accounts.requests_mj, result.records, strict=True) if record.ok
        ),
        joules_per_output_token=j_from_mj(attributed_mj) / tokens if tokens else None,
        coverage=covered,
        reasons=reasons,
    )


def summarize_boundary(
    result: RunResult,
    attribution: RunAttribution | None,
    series: Sequence[EnergySeries],
    host: HostEnergy | None,
    start_ns: int,
    end_ns: int,
    *,
    prompts_counted: bool,
) -> EnergySummary:
    """Return the energy of the run with its domains and engines side by side, the host's accounts, and what all of it
    includes."""
    energy = summarize_energy(result, attribution, series, start_ns, end_ns, prompts_counted=prompts_counted)
    domains = domain_energies(result, start_ns, end_ns)
    engines = engine_energies(result, attribution)
    whole = msgspec.structs.replace(energy, domains=domains, host=host, engines=engines)
    return msgspec.structs.replace(whole, boundary=boundary_of(result, whole))


def domain_energies(result: RunResult, start_ns: int, end_ns: int) -> list[DomainEnergy]:
    """Return the energy of every domain between its updates around [start, end]."""
    energies = []
    for domain in result.info.domains:
        series = result.series[domain.name].clip(start_ns, end_ns) if domain.name in result.series else None
        described = DomainEnergy(name=domain.name, source=domain.source, scope=scope(domain), within=domain.within)
        if series is not None and len(series) > 1:
            seconds = float(series.t_ns[-1] - series.t_ns[0]) / NS_PER_S
            spent = j_from_mj(series.total_mj)
            described = msgspec.structs.replace(described, joules=spent, mean_watts=spent / seconds)
        energies.append(described)
    return energies


def boundary_of(result: RunResult, energy: EnergySummary) -> Boundary | None:
    """Return what the joules of the run include, with the factors that the run's options state; None without joules."""
    if energy.measured_joules is None:
        return None
    factors = Factors(**{name: result.info.config.get(name) for name in Factors.__struct_fields__})
    measured = accelerators(result.info.domains)
    own = _part("accelerator", energy.measured_joules, measured)
    if not any(scope(domain) == "accelerator" for domain in measured):
        own = _part("host", energy.measured_joules, measured)
        parts = [BoundaryPart(part="accelerator", basis="not included", note="no meter has a GPU"), own]
    elif energy.host is None:
        note = "--energy nvml,rapl or nvml,hwmon counts it beside the GPUs"
        parts = [own, BoundaryPart(part="host", basis="not included", note=note)]
    else:
        parts = [own, _host_part(energy.host, host_domains(result.info.domains))]
    parts.append(_chassis(energy, sum(part.joules or 0.0 for part in parts)))
    parts.insert(2, _idle_part(energy, own.basis))
    return boundary_by(factors, parts, sum(record.output_tokens or 0 for record in result.records))


def _part(part: str, joules: float, domains: Sequence[EnergyDomain]) -> BoundaryPart:
    sources = sorted({domain.source for domain in domains})
    note = f"{', '.join(domain.name for domain in domains)} ({', '.join(sources)})"
    return BoundaryPart(part=part, basis=basis_of(sources), joules=joules, note=note)


def _host_part(host: HostEnergy, domains: Sequence[EnergyDomain]) -> BoundaryPart:
    part = _part("host", host.measured_joules, domains)
    way = "time in flight" if host.share_by == "time" else "tokens"
    return msgspec.structs.replace(part, note=f"{part.note}; the requests' parts, by {way}, are an estimate")


def _idle_part(energy: EnergySummary, basis: str) -> BoundaryPart:
    known = [energy.idle_joules, energy.host.idle_joules if energy.host else None]
    note = "of the rows above, and in no request"
    return BoundaryPart(part="idle", basis=basis, joules=metrics.sum_known(known), note=note)


def _chassis(energy: EnergySummary, counted_joules: float) -> BoundaryPart:
    """Return what one meter of the whole machine has beyond the GPUs and the host: fans, disks, conversion.

    psys is no such meter: whether it includes the cards differs between machines.
    """
    name = "chassis"
    wholes = [domain for domain in energy.domains if domain.name.startswith("machine:") and domain.within is None]
    if len(wholes) != 1 or wholes[0].joules is None:
        note = "fans, disks, power supplies: no meter, or several, of the whole machine"
        return BoundaryPart(part=name, basis="not included", note=note)
    whole, rest = wholes[0], wholes[0].joules - counted_joules
    if rest < 0:
        note = f"{whole.name} counted {-rest:,.0f} J less than the parts: it does not contain them"
        return BoundaryPart(part=name, basis="not included", note=note)
    note = f"{whole.name} ({whole.source}) less the rows above"
    return BoundaryPart(part=name, basis=basis_of([whole.source]), joules=rest, note=note)

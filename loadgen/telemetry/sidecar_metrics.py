"""Reads a sidecar's page back into energy per request and per token, by workload."""

from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families


class WorkloadEnergy(NamedTuple):
    """One workload's totals. They are over the same, closed requests, so that their ratios have a meaning."""

    requests: float = 0.0
    request_joules: float = 0.0
    """Energy of those requests."""
    joules: float = 0.0
    """Attributed energy, of requests still running too."""
    output_tokens: float = 0.0
    """Output tokens of the closed requests."""

    @property
    def joules_per_request(self) -> float | None:
        return self.request_joules / self.requests if self.requests else None

    @property
    def joules_per_token(self) -> float | None:
        """Joules per output token of those requests."""
        return self.request_joules / self.output_tokens if self.requests and self.output_tokens else None


class SidecarEnergy(NamedTuple):
    """The page's counters at one moment, or their growth between two. None is unknown."""

    watts: float | None
    simulated: bool
    lag_s: float | None
    """Delay of the counters: energy is committed when the spans of its requests have arrived."""
    workloads: dict[str, WorkloadEnergy]
    idle_joules: float
    unattributed_joules: float
    joules: float
    """The total: attributed + idle + unattributed."""

    @property
    def joules_per_token(self) -> float | None:
        """Joules per output token of all requests."""
        shares = self.workloads.values()
        return WorkloadEnergy(
            requests=sum(share.requests for share in shares),
            request_joules=sum(share.request_joules for share in shares),
            output_tokens=sum(share.output_tokens for share in shares),
        ).joules_per_token


def parse_metrics(page: str) -> SidecarEnergy | None:
    """Parse the page; None when it is not a sidecar's."""
    totals: dict[str, float] = {}
    workloads: dict[str, dict[str, float]] = {}
    sources: list[str] = []
    try:
        families = list(text_string_to_metric_families(page))
    except ValueError:
        return None
    for name, labels, value, *_ in (sample for family in families for sample in family.samples):
        if field := _WORKLOAD_FIELDS.get(name):
            share = workloads.setdefault(labels.get("workload", "?"), {})
            share[field] = share.get(field, 0.0) + value
        elif name == "loadgen_energy_source_info":
            sources.append(labels.get("source", ""))
        elif name == "loadgen_settlement_lag_seconds":
            totals[name] = max(totals.get(name, 0.0), value)  # that of the slowest engine
        else:
            totals[name] = totals.get(name, 0.0) + value
    if "loadgen_gpu_energy_joules_total" not in totals:
        return None
    return SidecarEnergy(
        watts=totals.get("loadgen_gpu_power_watts"),
        simulated=any("simulated" in source for source in sources),
        lag_s=totals.get("loadgen_settlement_lag_seconds"),
        workloads={name: WorkloadEnergy(**fields) for name, fields in sorted(workloads.items())},
        idle_joules=totals.get("loadgen_idle_energy_joules_total", 0.0),
        unattributed_joules=totals.get("loadgen_unattributed_energy_joules_total", 0.0),
        joules=totals["loadgen_gpu_energy_joules_total"],
    )


_WORKLOAD_FIELDS = {
    "loadgen_request_energy_joules_count": "requests",
    "loadgen_request_energy_joules_sum": "request_joules",
    "loadgen_attributed_energy_joules_total": "joules",
    "loadgen_output_tokens_total": "output_tokens",
}


def energy_since(start: SidecarEnergy | None, end: SidecarEnergy) -> SidecarEnergy:
    """Return the growth from `start` to `end`; all of `end` without a start, or when the sidecar has restarted."""
    if start is None or end.joules < start.joules:
        return end
    zero = WorkloadEnergy()
    return end._replace(
        workloads={
            name: WorkloadEnergy(*(b - a for a, b in zip(start.workloads.get(name, zero), share, strict=True)))
            for name, share in end.workloads.items()
        },
        idle_joules=end.idle_joules - start.idle_joules,
        unattributed_joules=end.unattributed_joules - start.unattributed_joules,
        joules=end.joules - start.joules,
    )


class EnergyRow(NamedTuple):
    """One line of the table, as text."""

    account: str
    requests: str = ""
    joules: str = ""
    per_request: str = ""
    per_token: str = ""


def energy_rows(energy: SidecarEnergy) -> list[EnergyRow]:
    """Return one row per workload, then idle, unattributed, total and current power."""
    kind = " (simulated)" if energy.simulated else ""
    table = [
        EnergyRow(
            name,
            f"{share.requests:.0f}",
            f"{share.joules:,.1f} J",
            _text(share.joules_per_request, "J"),
            _text(share.joules_per_token, "J"),
        )
        for name, share in energy.workloads.items()
        if share.requests or share.joules
    ]
    behind = "" if energy.lag_s is None else f", as of {energy.lag_s:.0f} s ago"
    return [
        *table,
        EnergyRow("idle", joules=f"{energy.idle_joules:,.1f} J"),
        EnergyRow("unattributed", joules=f"{energy.unattributed_joules:,.1f} J"),
        EnergyRow(f"all{kind}{behind}", joules=f"{energy.joules:,.1f} J"),
        EnergyRow(f"power now{kind}", joules="unknown" if energy.watts is None else f"{energy.watts:,.0f} W"),
    ]


def _text(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:,.4g} {unit}"


def energy_sentences(energy: SidecarEnergy) -> list[str]:
    """Return a line per workload, for a terminal."""
    kind = "simulated, " if energy.simulated else ""
    return [
        f"{name}: {_text(share.joules_per_request, 'J')}/request, {_text(share.joules_per_token, 'J')}/output token "
        f"({kind}{share.requests:.0f} requests settled, {share.request_joules:,.1f} J)"
        for name, share in energy.workloads.items()
        if share.requests
    ]

"""What a sidecar's page says, on pages that the sidecar's own exporter would write."""

from hypothesis import given
from hypothesis import strategies as st

from loadgen.telemetry.sidecar_metrics import (
    EnergyRow,
    SidecarEnergy,
    WorkloadEnergy,
    energy_rows,
    energy_sentences,
    energy_since,
    parse_metrics,
)

PAGE = """\
# HELP loadgen_gpu_energy_joules_total Energy settled so far.
# TYPE loadgen_gpu_energy_joules_total counter
loadgen_gpu_energy_joules_total{gpu="0",uuid="GPU-a"} 700.0
loadgen_gpu_energy_joules_total{gpu="1",uuid="GPU-b"} 300.0
loadgen_gpu_power_watts{gpu="0",uuid="GPU-a"} 410.5
loadgen_gpu_power_watts{gpu="1",uuid="GPU-b"} 100.0
loadgen_attributed_energy_joules_total{model="m",workload="chat",account="prefill"} 100.0
loadgen_attributed_energy_joules_total{model="m",workload="chat",account="decode"} 500.0
loadgen_attributed_energy_joules_total{model="m",workload="code",account="decode"} 200.0
loadgen_idle_energy_joules_total 150.0
loadgen_unattributed_energy_joules_total 50.0
loadgen_request_energy_joules_bucket{le="1.0",model="m",workload="chat"} 0.0
loadgen_request_energy_joules_count{model="m",workload="chat"} 5.0
loadgen_request_energy_joules_sum{model="m",workload="chat"} 590.0
loadgen_output_tokens_total{model="m",workload="chat"} 1180.0
loadgen_energy_source_info{gpu="0",uuid="GPU-a",source="simulated"} 1.0
loadgen_settlement_lag_seconds 6.4
"""


def test_a_page_is_read_and_its_series_are_added() -> None:
    energy = parse_metrics(PAGE)
    assert energy == SidecarEnergy(
        watts=510.5,
        simulated=True,
        lag_s=6.4,
        workloads={"chat": WorkloadEnergy(5, 590, 600, 1180), "code": WorkloadEnergy(0, 0, 200, 0)},
        idle_joules=150,
        unattributed_joules=50,
        joules=1000,
    )
    assert energy.workloads["chat"].joules_per_request == 118
    assert energy.workloads["chat"].joules_per_token == energy.joules_per_token == 0.5


def test_what_is_unknown_stays_unknown() -> None:
    energy = parse_metrics('loadgen_gpu_energy_joules_total{gpu="0"} 0.0\n')
    assert energy is not None
    assert (energy.watts, energy.lag_s, energy.simulated, energy.workloads) == (None, None, False, {})
    assert WorkloadEnergy().joules_per_request is None and WorkloadEnergy(output_tokens=9).joules_per_token is None
    assert energy_rows(energy)[-1] == EnergyRow("power now", joules="unknown")
    assert energy_sentences(energy) == []


def test_any_other_page_is_none() -> None:
    assert parse_metrics("vllm:num_requests_running 3.0\n") is None
    assert parse_metrics("<html>hello</html>") is None


def test_rows_say_simulated_and_the_accounts_of_nobody() -> None:
    energy = parse_metrics(PAGE)
    assert energy is not None
    assert energy_rows(energy) == [
        EnergyRow("chat", "5", "600.0 J", "118 J", "0.5 J"),
        EnergyRow("code", "0", "200.0 J", "", ""),
        EnergyRow("idle", joules="150.0 J"),
        EnergyRow("unattributed", joules="50.0 J"),
        EnergyRow("all (simulated), as of 6 s ago", joules="1,000.0 J"),
        EnergyRow("power now (simulated)", joules="510 W"),
    ]
    assert energy_sentences(energy) == [
        "chat: 118 J/request, 0.5 J/output token (simulated, 5 requests settled, 590.0 J)"
    ]


joules = st.integers(0, 10**6).map(float)
energies = st.builds(
    SidecarEnergy,
    watts=st.none(),
    simulated=st.just(False),
    lag_s=st.none(),
    workloads=st.dictionaries(
        st.sampled_from(["chat", "code"]), st.builds(WorkloadEnergy, joules, joules, joules, joules)
    ),
    idle_joules=joules,
    unattributed_joules=joules,
    joules=joules,
)


@given(energies, energies)
def test_growth_since_a_moment_adds_up_to_now(then: SidecarEnergy, growth: SidecarEnergy) -> None:
    names = {**then.workloads, **growth.workloads}
    zero = WorkloadEnergy()
    both = {
        name: WorkloadEnergy(
            *(a + b for a, b in zip(then.workloads.get(name, zero), growth.workloads.get(name, zero), strict=True))
        )
        for name in names
    }
    now = growth._replace(
        workloads=both,
        idle_joules=then.idle_joules + growth.idle_joules,
        unattributed_joules=then.unattributed_joules + growth.unattributed_joules,
        joules=then.joules + growth.joules,
    )
    grown = energy_since(then, now)
    assert grown.joules == growth.joules and grown.idle_joules == growth.idle_joules
    assert {name: share for name, share in grown.workloads.items() if share != WorkloadEnergy()} == {
        name: share for name, share in growth.workloads.items() if share != WorkloadEnergy()
    }


def test_a_sidecar_that_started_again_counts_from_its_start() -> None:
    now = parse_metrics(PAGE)
    assert now is not None
    assert energy_since(now._replace(joules=5000), now) == now
    assert energy_since(None, now) == now

"""The sidecar's metric families: names, labels, values and exemplars of one page."""

from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from loadgen.energy.series import EnergyDomain
from loadgen.sidecar.accounts import Accounts, OpenRequest
from loadgen.sidecar.exporter import METRICS, SidecarPage, gpu_label, metric_family
from loadgen.sidecar.ledger import DomainEnergy, Snapshot
from loadgen.sidecar.session_energy import SESSION_IDLE_S
from sidecar.test_accounts import REQUEST


def page(coverage: float | None = 0.75, engine_up: bool | None = True) -> SidecarPage:
    """Two domains, one closed request of 2 J and a failed one that no commit included."""
    accounts, entry = Accounts(), OpenRequest(REQUEST)
    accounts.charge(entry, 400, 1600)
    accounts.of(REQUEST).close(entry)
    failed = changed(REQUEST, key="b", ok=False)
    accounts.of(failed).close(OpenRequest(failed))
    ledger = Snapshot(
        domains=(
            DomainEnergy(EnergyDomain(name="gpu:0", source="nvml:counter", uuid="GPU-a"), 5000, 250),
            DomainEnergy(EnergyDomain(name="cpu:package-0", source="rapl"), 1000, 0),
        ),
        accounts=accounts.freeze(), idle_mj=3500, unattributed_mj=500, dropped={"late": 2, "future": 0}, merged=3,
        partial=4, open_requests=5, lag_s=6.5, coverage=coverage, foreign_tokens=None if coverage is None else 7,
    )  # fmt: skip
    return SidecarPage(
        engine=None, ledger=ledger, dropped=ledger.dropped, watts={"gpu:0": 312.5}, resets=8, read_errors=9,
        last_read_s=1.5e9, engine_up=engine_up, engine_understood=engine_up,
        engine_restarts=None if engine_up is None else 10,
        beside={EnergyDomain(name="cpu:package-1", source="rapl", within="psys"): 6.5,
                EnergyDomain(name="psys", source="rapl"): 9.0},
    )  # fmt: skip


def samples(name: str, page: SidecarPage) -> dict[tuple[str, ...], float]:
    """Value by label values of a metric on a page."""
    (declared,) = (metric for metric in METRICS if metric.name == name)
    rows = metric_family(declared, [page]).samples
    assert {row.name for row in rows} <= {name}, "the page shows the declared name"
    assert all(tuple(row.labels) == declared.labels for row in rows)
    return {tuple(row.labels.values()): row.value for row in rows}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loadgen_gpu_energy_joules_total", {("0", "GPU-a"): 5.0, ("cpu:package-0", ""): 1.0}),
        ("loadgen_gpu_energy_pending_joules", {("0", "GPU-a"): 0.25, ("cpu:package-0", ""): 0.0}),
        ("loadgen_gpu_power_watts", {("0", "GPU-a"): 312.5}),
        (
            "loadgen_host_energy_joules_total",
            {("cpu:package-1", "host", "psys"): 6.5, ("psys", "machine", ""): 9.0},
        ),
        ("loadgen_attributed_energy_joules_total", {("m", "chat", "prefill"): 0.4, ("m", "chat", "decode"): 1.6}),
        ("loadgen_idle_energy_joules_total", {(): 3.5}),
        ("loadgen_unattributed_energy_joules_total", {(): 0.5}),
        ("loadgen_input_tokens_total", {("m", "chat"): 200}),
        ("loadgen_output_tokens_total", {("m", "chat"): 100}),
        ("loadgen_requests_total", {("m", "chat", "completed"): 1, ("m", "chat", "failed"): 1}),
        ("loadgen_energy_attribution_coverage_ratio", {(): 0.75}),
        ("loadgen_foreign_output_tokens_total", {(): 7}),
        ("loadgen_energy_resets_total", {(): 8}),
        ("loadgen_energy_read_errors_total", {(): 9}),
        ("loadgen_energy_last_read_timestamp_seconds", {(): 1.5e9}),
        ("loadgen_energy_source_info", {("0", "GPU-a", "nvml:counter"): 1, ("cpu:package-0", "", "rapl"): 1}),
        ("loadgen_settlement_lag_seconds", {(): 6.5}),
        ("loadgen_spans_dropped_total", {("late",): 2, ("future",): 0}),
        ("loadgen_spans_merged_total", {(): 3}),
        ("loadgen_spans_partial_total", {(): 4}),
        ("loadgen_spans_open", {(): 5}),
        ("loadgen_engine_up", {(): 1.0}),
        ("loadgen_engine_metrics_understood", {(): 1.0}),
        ("loadgen_engine_restarts_total", {(): 10}),
    ],
)
def test_each_metric_shows_its_own_number(name: str, expected: dict[tuple[str, ...], float]) -> None:
    assert samples(name, page()) == expected


def test_labels_of_the_users_choosing_divide_joules_tokens_and_requests_alone() -> None:
    accounts = Accounts(labels=["tenant"])
    for tenant, energy_mj in (("b", 400), ("a", 1000), (None, 100), ("a", 500)):
        entry = OpenRequest(changed(REQUEST, labels={} if tenant is None else {"tenant": tenant}))
        accounts.charge(entry, energy_mj, energy_mj)
        accounts.close(entry)
    shown = page()
    ledger = replace(shown.ledger, accounts=accounts.freeze(), labels=("tenant",))
    rows = {
        (row.name.removeprefix("loadgen_"), *row.labels.values()): row.value
        for declared in METRICS
        for row in metric_family(declared, [replace(shown, ledger=ledger)]).samples
        if "tenant" in row.labels
    }
    assert {row[0] for row in rows} == {
        "attributed_energy_joules_total", "input_tokens_total", "output_tokens_total", "requests_without_tokens_total",
        "requests_total",
    }  # fmt: skip
    assert {row[3:]: value for row, value in rows.items() if row[0] == "attributed_energy_joules_total"} == {
        ("prefill", ""): 0.1, ("decode", ""): 0.1, ("prefill", "a"): 1.5, ("decode", "a"): 1.5, ("prefill", "b"): 0.4,
        ("decode", "b"): 0.4,
    }  # fmt: skip
    assert rows["output_tokens_total", "m", "chat", "a"] == 100
    assert rows["requests_total", "m", "chat", "completed", "a"] == 2


def test_the_energy_of_ended_sessions_is_by_outcome_and_names_none_of_them() -> None:
    accounts = Accounts()
    accounts.of(REQUEST).end_session(3_500, ok=True)
    made = page()
    shown = replace(made, ledger=replace(made.ledger, accounts=accounts.freeze()))
    (declared,) = (metric for metric in METRICS if metric.name == "loadgen_session_energy_joules")
    family = metric_family(declared, [shown])
    assert {tuple(row.labels.get(label) for label in declared.labels) for row in family.samples} == {
        ("m", "chat", "completed")
    }
    assert {row.name: row.value for row in family.samples if "le" not in row.labels} == {
        "loadgen_session_energy_joules_count": 1, "loadgen_session_energy_joules_sum": 3.5,
    }  # fmt: skip
    assert all(row.exemplar is None for row in family.samples)
    assert metric_family(declared, [made]).samples == [] and f"{SESSION_IDLE_S / 60:g} minutes" in declared.help


def test_an_unknown_value_has_no_row_and_an_engine_that_is_away_has_a_zero() -> None:
    unknown = page(coverage=None, engine_up=None)
    for name in (
        "energy_attribution_coverage_ratio", "foreign_output_tokens_total", "engine_up", "engine_metrics_understood",
        "engine_restarts_total",
    ):  # fmt: skip
        assert samples(f"loadgen_{name}", unknown) == {}
    assert samples("loadgen_engine_up", page(engine_up=False)) == {(): 0.0}


def test_a_histogram_counts_closed_requests_and_names_one_in_its_bucket() -> None:
    (declared,) = (metric for metric in METRICS if metric.name == "loadgen_request_energy_joules")
    rows = metric_family(declared, [page()]).samples
    buckets = {row.labels["le"]: row for row in rows if row.name.endswith("_bucket")}
    assert (buckets["1.0"].value, buckets["2.0"].value, buckets["+Inf"].value) == (0, 1, 1)
    assert buckets["1.0"].exemplar is None and buckets["5.0"].exemplar is None
    exemplar = buckets["2.0"].exemplar
    assert exemplar is not None and (exemplar.labels, exemplar.value) == ({"request_id": "run-1"}, 2.0)
    totals = {row.name: row.value for row in rows if not row.name.endswith("_bucket")}
    assert totals == {"loadgen_request_energy_joules_count": 1, "loadgen_request_energy_joules_sum": 2.0}


def test_metrics_of_engines_with_names_have_the_label_engine_and_those_of_the_sidecar_one_row() -> None:
    pages = [replace(page(), engine=name) for name in ("a", "b")]
    for declared in METRICS:
        alone = [row for row in metric_family(declared, [page()]).samples if row.name != f"{declared.name}_created"]
        rows = [row for row in metric_family(declared, pages).samples if row.name != f"{declared.name}_created"]
        if declared.by_engine:
            assert [(row.name, row.labels, row.value) for row in rows] == [
                (row.name, {"engine": name, **row.labels}, row.value) for name in ("a", "b") for row in alone
            ]
        else:
            assert rows == alone


def test_a_gpu_of_an_engines_own_source_is_labelled_by_its_index() -> None:
    assert [gpu_label(name) for name in ("gpu:0", "gpu:0@a", "cpu:package-0")] == ["0", "0", "cpu:package-0"]

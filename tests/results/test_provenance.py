"""The origin of a run: what a summary holds of it, so that it can be read alone."""

import msgspec
import pytest

from loadgen.clock import Anchor
from loadgen.energy.series import EnergyDomain
from loadgen.results.provenance import provenance_of
from loadgen.results.summarize import analyse_run
from loadgen.results.summary import Provenance
from support import sample_runs

INFO = sample_runs.run(num_requests=3).info


def test_a_summary_holds_the_origin_of_its_run() -> None:
    made = analyse_run(sample_runs.run(num_requests=3))
    assert made.summary is not None and made.summary.run == provenance_of(made.info)
    assert made.summary.run.simulated and made.summary.run.seed == made.info.seed


@pytest.mark.parametrize(
    ("start_ns", "started"),
    [
        (None, None),
        (5_000_000_000, "2026-11-28T00:00:00.000Z"),
        (6_234_000_000, "2026-11-28T00:00:01.234Z"),
        (4_000_000_000, "2026-11-27T23:59:59.000Z"),
    ],
)
def test_the_start_is_on_the_wall_clock_of_the_anchor(start_ns: int | None, started: str | None) -> None:
    anchor = Anchor(wall_ns=1_795_824_000_000_000_000, monotonic_ns=5_000_000_000)
    assert provenance_of(msgspec.structs.replace(INFO, anchor=anchor, start_ns=start_ns)).started == started


def test_a_device_is_named_with_its_model_where_that_is_known() -> None:
    domains = [
        EnergyDomain(name="gpu:0", source="nvml-counter", device="NVIDIA H200"),
        EnergyDomain(name="cpu:package-0", source="rapl"),
    ]
    made = provenance_of(msgspec.structs.replace(INFO, domains=domains))
    assert made.devices == ["gpu:0 NVIDIA H200", "cpu:package-0"]


def test_what_run_json_does_not_have_is_unknown() -> None:
    made = provenance_of(msgspec.structs.replace(INFO, server={}, config={}, host={}, domains=[]))
    known = {"loadgen_version", "command", "started", "simulated", "schedule_sha256", "seed", "devices"}
    assert {name for name in Provenance.__struct_fields__ if getattr(made, name) is not None} == known


def test_addresses_and_host_names_stay_in_the_folder() -> None:
    server = INFO.server | {"base_url": "http://inside.example:8000/v1", "addresses": ["10.0.0.7"]}
    info = msgspec.structs.replace(INFO, server=server, host={"hostname": "inside-host", "system": "Linux"})
    text = msgspec.json.encode(provenance_of(info)).decode()
    assert "inside" not in text and "10.0.0.7" not in text

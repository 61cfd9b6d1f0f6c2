"""A call with its joules: unknown is null, texts are escaped, labels are bounded."""

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from loadgen.errors import LoadgenError
from loadgen.integrations import call_energy as module
from loadgen.integrations.call_energy import EnergyCounters, EnergyLog, GatewayCall, call_energy
from loadgen.integrations.energy_lookup import RequestEnergy

MEASURED = RequestEnergy(
    joules=3.6e6, se_joules=2.0, prefill_joules=1e6, decode_joules=2.6e6, measured_joules=3.6e6, model="m",
    engine="e", input_tokens=7, output_tokens=3, cached_tokens=None, settled_unix_ns=9,
)  # fmt: skip
PARTIAL = RequestEnergy(
    joules=None, se_joules=None, prefill_joules=None, decode_joules=None, measured_joules=5.0, model="m", engine="e",
    input_tokens=7, output_tokens=3, cached_tokens=None, settled_unix_ns=9,
)  # fmt: skip


def call(**changes: Any) -> GatewayCall:
    fields: dict[str, Any] = {
        "call_id": "c", "request_id": "r", "ok": True, "requested_model": "llama", "team": "t1", "team_alias": "blue",
        "user": "u", "api_key_alias": "k", "end_user": "", "cost": 0.25, "begin_unix_ns": 1, "end_unix_ns": 5,
        "first_token_unix_ns": 3, "input_tokens": 6, "output_tokens": 2, "cached_tokens": 0,
    }  # fmt: skip
    return GatewayCall(**(fields | changes))


@pytest.mark.parametrize(
    ("measured", "price", "state", "joules", "energy_cost", "tokens"),
    [
        (MEASURED, 0.25, "settled", 3.6e6, 0.25, 3),
        (MEASURED, None, "settled", 3.6e6, None, 3),
        (PARTIAL, 0.25, "partial", None, None, 3),
        (None, 0.25, "unknown", None, None, None),
    ],
)
def test_what_is_unknown_has_no_joules_no_price_and_no_tokens(
    measured: RequestEnergy | None, price: float | None, state: str, joules: float | None,
    energy_cost: float | None, tokens: int | None,
) -> None:  # fmt: skip
    energy = call_energy(call(), measured, price)
    shown = (energy.state, energy.joules, energy.energy_cost, energy.output_tokens)
    assert shown == (state, joules, energy_cost, tokens)
    assert (energy.team_alias, energy.cost) == ("blue", 0.25)


def test_each_call_is_a_line_of_json_and_hostile_text_is_escaped(tmp_path: Path) -> None:
    log = EnergyLog(tmp_path / "energy.jsonl")
    for end_user in ('"}\n{"joules": 1', "\x1b[2J", "é"):
        log.add(call_energy(call(end_user=end_user), MEASURED, None))
    lines = [json.loads(line) for line in (tmp_path / "energy.jsonl").read_text().splitlines()]
    assert [line["end_user"] for line in lines] == ['"}\n{"joules": 1', "\x1b[2J", "é"]
    assert (tmp_path / "energy.jsonl").stat().st_mode & 0o077 == 0, "for its owner alone"


def test_a_log_that_exists_is_continued(tmp_path: Path) -> None:
    for _ in range(2):
        EnergyLog(tmp_path / "energy.jsonl").add(call_energy(call(), None, None))
    assert len((tmp_path / "energy.jsonl").read_text().splitlines()) == 2


def test_a_full_disk_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    log = EnergyLog(Path(os.devnull))
    monkeypatch.setattr(log, "_file", os.open("/dev/full", os.O_WRONLY))
    for _ in range(3):
        log.add(call_energy(call(), MEASURED, None))
    assert (log.lost, len(caplog.messages)) == (3, 1)


def test_a_log_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match=r"the log of joules .*none/energy.jsonl cannot be written: No such file"):
        EnergyLog(tmp_path / "none" / "energy.jsonl")


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> EnergyCounters:
    """Counters with a name of their own: names on the default page are there for good."""
    number = next(_NUMBERS)
    monkeypatch.setattr(module, "PREFIX", f"loadgen_test{number}_")
    monkeypatch.setattr(module, "_counters", module._counters.__wrapped__)
    return EnergyCounters(("team", "end_user"))


_NUMBERS = count()


def values(suffix: str) -> dict[tuple[str, ...], float]:
    """Return the values of the newest counter whose name ends so."""
    name = f"{module.PREFIX}{suffix}"
    (family,) = (family for family in REGISTRY.collect() if family.name == name.removesuffix("_total"))
    return {tuple(sample.labels.values()): sample.value for sample in family.samples if sample.name == name}


def test_joules_prices_and_calls_are_counted_by_team(counters: EnergyCounters) -> None:
    for team, measured in (("a", MEASURED), ("a", MEASURED), ("b", MEASURED), ("b", PARTIAL), ("b", None)):
        counters.add(call(team=team), call_energy(call(team=team), measured, 0.5))
    counters.add(call(team="b"), None)
    counters.add(call(team="c"), call_energy(call(team="c"), MEASURED, None))
    assert values("energy_joules_total") == {("a", ""): 7.2e6, ("b", ""): 3.6e6, ("c", ""): 3.6e6}
    assert values("energy_cost_total") == {("a", ""): 1.0, ("b", ""): 0.5}, "without a price there is none"
    assert values("calls_total") == {
        ("a", "", "settled"): 2, ("b", "", "settled"): 1, ("b", "", "partial"): 1, ("b", "", "unknown"): 1,
        ("b", "", "dropped"): 1, ("c", "", "settled"): 1,
    }  # fmt: skip


def test_labels_are_bounded_in_length_values_and_rows(
    counters: EnergyCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 60)
    for number in range(200):
        hostile = call(team=f"t{number}", end_user="x" * 65 if number == 0 else f"u{number % 3}\n" * (number % 2))
        counters.add(hostile, call_energy(hostile, MEASURED, None))
    rows = values("calls_total")
    assert sum(rows.values()) == 200 and len(rows) <= 61
    assert {len(value) for row in rows for value in row if value} <= set(range(1, 8))


def test_a_label_that_litellm_does_not_have_is_refused() -> None:
    with pytest.raises(LoadgenError, match=r"'hashed_api_key' is no label of LiteLLM's calls; the labels are requ"):
        EnergyCounters(("team", "hashed_api_key"))

"""loadgen bill: the same lines on a terminal, as CSV, JSON and Parquet, and from a program."""

import csv
import io
import json
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pyarrow import parquet

import loadgen
from loadgen.cli.bill import bill
from loadgen.errors import LoadgenError
from results.test_bill import period, request, start, write


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    folder = tmp_path / "ledger"
    folder.mkdir()
    evil = request("=cmd|' /C calc'!A0\x1b[2J", 300, whole=False)
    lines = (request("chat", 100), evil, period(10, 400, 2, idle_mj=99, other_mj=7))
    write(folder, "a.jsonl", start(), *lines)
    return folder


def output(*arguments: str) -> str:
    result = CliRunner().invoke(bill, [*arguments])
    if result.exception:
        raise result.exception
    return result.stdout


def test_all_forms_have_the_same_millijoules(ledger: Path, tmp_path: Path) -> None:
    file = tmp_path / "bill.parquet"
    as_json: dict[str, Any] = json.loads(output(str(ledger), "--json", "--parquet", str(file)))
    energy = [line["energy_mj"] for line in as_json["lines"]]
    assert energy == [300, 100, 99, 7, 0] and sum(energy) == as_json["counter_mj"]
    rows = list(csv.DictReader(io.StringIO(output(str(ledger), "--csv"))))
    assert [int(row["energy_mj"]) for row in rows] == energy
    assert parquet.read_table(file)["energy_mj"].to_pylist() == energy
    assert loadgen.bill(ledger).lines["energy_mj"].tolist() == energy


def test_a_terminal_and_a_spreadsheet_obey_no_name_of_a_workload(ledger: Path) -> None:
    shown, as_csv = output(str(ledger), "--by", "model,workload"), output(str(ledger), "--csv")
    assert "\x1b" not in shown + as_csv
    assert "'=cmd" in as_csv
    assert "1 request not measured whole: they used more than is billed." in " ".join(shown.split())
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_bill_of_a_time_without_periods_says_so(ledger: Path) -> None:
    assert "No period of the ledger ends in this time." in output(str(ledger), "--from", "2026-11-01")


@pytest.mark.parametrize(
    "end",
    ["1970-01-01T00:00:11Z", "1970-01-01T01:00:11+01:00", datetime(1970, 1, 1, 0, 0, 11), date(1970, 1, 2),
     datetime(1970, 1, 1, 2, 0, 11, tzinfo=timezone(timedelta(hours=2))), datetime(1970, 1, 1, 0, 0, 11, tzinfo=UTC)],
)  # fmt: skip
def test_a_time_is_utc_unless_it_has_a_zone(ledger: Path, end: Any) -> None:
    assert loadgen.bill(ledger, start="1970-01-01", end=end).counter_mj == 506
    assert loadgen.bill(ledger, start="1970-01-01T00:00:11", end=date(1970, 1, 3)).counter_mj == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--from", "yesterday\x1b"], "start: .* is no time in ISO 8601, such as 2026-11-01T00:00Z"),
        (["--from", "2026-01-02", "--to", "2026-01-02"], "would end before it begins"),
        (["--by", "tenant"], "no request of the bill has a label 'tenant'"),
        (["--csv", "--json"], "choose one of the two"),
    ],
)
def test_what_is_no_bill_is_one_line(ledger: Path, arguments: list[str], problem: str) -> None:
    with pytest.raises(LoadgenError, match=problem) as refused:
        output(str(ledger), *arguments)
    assert str(refused.value).isprintable()


def test_a_share_that_is_none_is_refused(ledger: Path) -> None:
    with pytest.raises(LoadgenError, match="share_idle: 'half' is none of none, by-tokens, by-energy"):
        loadgen.bill(ledger, share_idle="half")  # type: ignore[arg-type]


def test_stated_factors_are_columns_and_a_boundary_in_all_forms(ledger: Path) -> None:
    factors = ("--pue", "1.5", "--grid-intensity", "360", "--grid-source", "A\x1b[2J[red]", "--price", "7200000")
    shown = output(str(ledger), *factors)
    assert "CO2e g" in shown and "cost" in shown and "\x1b" not in shown
    assert "overhead" in shown and "PUE 1.5" in shown and "[red]" in shown
    rows = list(csv.DictReader(io.StringIO(output(str(ledger), "--csv", *factors))))
    assert [float(row["cost"]) for row in rows] == pytest.approx([0.9, 0.3, 0.297, 0.021, 0])
    as_json: dict[str, Any] = json.loads(output(str(ledger), "--json", *factors))
    assert as_json["boundary"]["cost"] == pytest.approx(sum(line["cost"] for line in as_json["lines"]))
    made = loadgen.bill(ledger, pue=1.5, grid_intensity=360.0, price=7_200_000.0)
    assert made.boundary.cost == pytest.approx(as_json["boundary"]["cost"])
    assert "Boundary" not in output(str(ledger))


def test_a_factor_that_is_none_is_refused(ledger: Path) -> None:
    with pytest.raises(LoadgenError, match="pue: Expected"):
        loadgen.bill(ledger, pue=0.5)
    assert CliRunner().invoke(bill, [str(ledger), "--price", "nan"]).exit_code == 2

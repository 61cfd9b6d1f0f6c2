"""The tables of a run agree with its summary and with the files they come from."""

from dataclasses import replace

import numpy as np
import pytest

from loadgen.energy.series import EnergySample
from loadgen.results.request_table import COLUMNS
from loadgen.results.run_folder import RunResult
from loadgen.results.run_tables import (
    ENERGY_COLUMNS,
    ENGINE_COLUMNS,
    SESSION_COLUMNS,
    energy_table,
    engine_table,
    requests_table,
    sessions_table,
)
from loadgen.results.summarize import analyse_run, span
from loadgen.results.table import Column
from loadgen.telemetry.engine_page import ENGINES
from support import sample_runs
from support.session_runs import agent_run

START_NS = 10_000_000_000


@pytest.fixture(scope="module")
def made() -> RunResult:
    return analyse_run(sample_runs.run(num_requests=60, failing=0.1))


def test_the_requests_are_those_of_the_table_that_is_exported(made: RunResult) -> None:
    table = requests_table(made)
    assert len(table) == len(made.schedule)
    assert list(table) == [column.name for column in COLUMNS]
    assert made.summary is not None
    assert np.nanpercentile(table["ttft_s"], 90) == pytest.approx(made.summary.ttft_s.p90)


def test_a_row_of_sessions_is_the_account_of_one() -> None:
    run = agent_run(3)
    table = sessions_table(run)
    assert list(table) == [column.name for column in SESSION_COLUMNS]
    assert [*table["session"]] == [account.session for account in run.sessions]
    assert [*table["joules"]] == [account.joules for account in run.sessions]
    assert [*table["tasks"]] == [len(account.tasks) for account in run.sessions]
    assert [*table["saved_joules"]] == [account.cache.saved_joules for account in run.sessions if account.cache]


def test_a_run_without_sessions_has_no_rows_of_them(made: RunResult) -> None:
    assert len(sessions_table(made)) == 0


def with_energy(made: RunResult, *samples: EnergySample) -> RunResult:
    return replace(made, energy=list(samples))


def test_power_is_that_since_the_previous_reading_of_the_same_counter(made: RunResult) -> None:
    start_ns, _ = span(made)
    second = 1_000_000_000
    run = with_energy(
        made,
        EnergySample(t_ns=start_ns - second, domain="gpu:0", joules=5.0),
        EnergySample(t_ns=start_ns, domain="gpu:1", joules=0.0),
        EnergySample(t_ns=start_ns + second, domain="gpu:0", joules=205.0, slack_ns=second // 1000),
        EnergySample(t_ns=start_ns + 2 * second, domain="gpu:1", joules=600.0),
        EnergySample(t_ns=start_ns + 3 * second, domain="gpu:0", joules=205.0, gap=True),
        EnergySample(start_ns + 4 * second, "gpu:0", 255.0, capped_ns=second // 2, sm_mhz=1500),
    )
    table = energy_table(run)
    np.testing.assert_allclose(table["t_s"], [-1, 0, 1, 2, 3, 4])
    np.testing.assert_allclose(table["watts"], [np.nan, np.nan, 100, 300, np.nan, 50])
    assert table["domain"].tolist() == ["gpu:0", "gpu:1", "gpu:0", "gpu:1", "gpu:0", "gpu:0"]
    assert table["gap"].tolist() == [False] * 4 + [True, False]
    assert table["slack_s"][2] == 0.001
    np.testing.assert_allclose(table["capped_s"], [np.nan] * 5 + [0.5])
    np.testing.assert_allclose(table["sm_mhz"], [np.nan] * 5 + [1500])
    np.testing.assert_allclose(table["unix_s"] - table["t_s"], table["unix_s"][1])


def test_all_tables_have_one_time(made: RunResult) -> None:
    start_ns, _ = span(made)
    run = replace(
        with_energy(made, EnergySample(t_ns=start_ns, domain="g", joules=0)), engine=[{"t_ns": start_ns, "running": 2}]
    )
    requests, energy, engine = requests_table(run), energy_table(run), engine_table(run)
    assert energy["t_s"].tolist() == engine["t_s"].tolist() == [0.0]
    assert energy["unix_s"][0] == engine["unix_s"][0]
    np.testing.assert_allclose(requests["sent_unix_s"] - requests["sent_s"], energy["unix_s"][0])


def test_every_field_of_every_engine_has_a_column_and_one_that_is_not_shown_is_unknown(made: RunResult) -> None:
    fields = {field for engine in ENGINES for field in engine.fields} - {"in_flight"}  # which becomes `running`
    assert fields <= {column.name for column in ENGINE_COLUMNS}
    table = engine_table(replace(made, engine=[{"t_ns": START_NS, "running": 3.0}]))
    assert table["running"].tolist() == [3.0]
    assert np.isnan(table["waiting"][0])


def test_without_a_meter_and_counters_the_tables_are_empty(made: RunResult) -> None:
    run = replace(made, energy=[], engine=[])
    assert (len(energy_table(run)), len(engine_table(run))) == (0, 0)
    assert energy_table(run)["watts"].tolist() == []


@pytest.mark.parametrize("column", [*ENERGY_COLUMNS, *ENGINE_COLUMNS], ids=lambda column: column.name)
def test_the_name_of_a_column_agrees_with_its_unit(column: Column) -> None:
    assert column.meaning.endswith(".")
    assert (column.unit == "s") == column.name.endswith("_s")
    assert (column.unit == "J") == (column.name == "joules")
    assert (column.unit == "W") == (column.name == "watts")
    assert (column.unit == "tokens") == column.name.endswith("_tokens")

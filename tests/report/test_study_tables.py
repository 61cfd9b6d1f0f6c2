"""The tables of a study, each alone."""

from dataclasses import replace

import msgspec
import pytest

from loadgen.report.study_tables import (
    arrivals_table,
    boundary_table,
    failed_table,
    limits_table,
    origin,
    overview_table,
    reductions_table,
    relative_range,
    runs_table,
    shares_table,
)
from loadgen.results.study_table import StudyInfo, groups
from report.test_run_page import Page
from support.study_rows import full_row, repeats

LIMITED = StudyInfo("t", limits_ms={"ttft": 200.0, "tpot": 10.0})


def text_of(*parts: str) -> str:
    return Page("".join(parts)).text


@pytest.mark.parametrize(
    ("values", "spread"), [([], None), ([5.0], None), ([5.0, 5.0], 0.0), ([1.0, 2.0, 3.0], 1.0), ([4.0, 2.0], 2 / 3)]
)
def test_a_spread_is_relative_to_the_mean(values: list[float], spread: float | None) -> None:
    assert relative_range(values) == spread


def test_every_configuration_is_a_row_with_its_spread() -> None:
    rows = [full_row(repeat=i, joules_per_output_token=energy) for i, energy in enumerate((1.0, 2.0, 3.0))]
    text = text_of(overview_table(groups(rows)))
    assert "plain 8/s 3 2.00 J [unknown] 100.0 % 400 W 800 10.0 ×" in text, "2 ± 2.5 J is no claim"
    assert "[unknown]: so few and so different repeats support no 95 % interval" in text
    assert "the arithmetic alone at the GPU's peak rate" in text


def test_columns_for_model_and_workload_only_where_there_are_several() -> None:
    rows = repeats((None, 2.0))
    assert "server load runs J/output token [95 %]" in text_of(overview_table(groups(rows)))
    several = groups(rows + repeats((None, 2.0), model="n", workload="code"))
    assert "server model workload load runs" in text_of(overview_table(several))
    assert "J/output token spread" in text_of(overview_table(groups(rows[:1]))), "one run has no interval"


def test_requests_within_limits_have_their_share_rate_and_cost() -> None:
    rows = repeats((None, 8.0), ttft_met_ratio=0.8, tpot_met_ratio=0.9)
    text = text_of(limits_table(groups(rows), LIMITED))
    assert "75.0 % [75.0 %, 75.0 %] 80.0 % 90.0 % 6.00 66.7 J [66.7 J, 66.7 J]" in text, "of 160 in 20 s; 0.015 a joule"
    alone = text_of(limits_table(groups(repeats((None, 8.0), ttft_met_ratio=0.75)), LIMITED))
    assert "TTFT alone" not in alone and "75.0 % [75.0 %, 75.0 %] 6.00" in alone


def test_requests_within_limits_need_no_energy() -> None:
    assert "75.0 % 6.00 -" in text_of(limits_table(groups([full_row(good_requests_per_joule=None)]), LIMITED))


def test_reductions_need_a_baseline_at_the_same_load() -> None:
    apart = groups([full_row(rps=2.0), full_row("other", rps=8.0)])
    assert "No configuration has a counterpart of plain" in text_of(reductions_table(apart, "plain"))
    same = [full_row(rps=2.0, joules_per_output_token=4.0), full_row("other", rps=2.0, joules_per_output_token=3.0)]
    assert "other 2/s 25.0 % 4.00 J 3.00 J" in text_of(reductions_table(groups(same), "plain"))
    other_model = [same[0], full_row("other", rps=2.0, joules_per_output_token=3.0, model="n")]
    assert "other n 2/s 25.0 %" in text_of(reductions_table(groups(other_model), "plain")), "by load, else"


def test_arrivals_are_in_the_order_of_the_load_and_closed_loops_have_none() -> None:
    rows = [full_row("b", rps=2.0), full_row("a", rps=8.0), full_row("c", batch=4, rps=None)]
    text = text_of(arrivals_table(groups(rows)))
    assert text.index("chat b poisson 2/s") < text.index("chat a poisson 8/s")
    assert "batch 4" not in text


def test_accounts_are_shares_of_their_sum() -> None:
    table = shares_table(groups([full_row()]))
    assert table is not None and "25.0 % 62.5 % 12.5 % 0.0 %" in text_of(table)
    unknown = dict.fromkeys(("prefill_joules", "decode_joules", "idle_joules", "unattributed_joules"))
    assert shares_table(groups([full_row(**unknown)])) is None


def test_what_is_beyond_the_gpus_is_a_table_of_what_is_known() -> None:
    gpus_alone = repeats((None, 8.0), measured_joules=100.0, total_joules=100.0)
    assert boundary_table(groups(gpus_alone)) is None
    assert boundary_table(groups([msgspec.structs.replace(row, total_joules=120.0) for row in gpus_alone])) is not None
    made = boundary_table(groups(repeats((None, 8.0), total_joules=1200.0, cost=0.25)))
    assert made is not None
    text = text_of(made)
    assert "server load total [95 %] cost [95 %]" in text and "CO2e, g" not in text
    assert "plain 8/s 1,200 J [1,200 J, 1,200 J] 0.250 [0.250, 0.250]" in text


def test_a_run_links_to_its_report_where_it_has_one() -> None:
    doubtful = {"energy_valid": False, "verdict": "warning", "remarks": "late"}
    rows = [full_row(cell="a-r0"), full_row(cell="b-r0", repeat=1, **doubtful)]
    found = Page("".join(runs_table(groups(rows), StudyInfo("t", pages=frozenset({"a-r0"})))))
    links = [attributes["href"] for name, attributes in found.elements if name == "a"]
    assert links == ["runs/a-r0/report.html"]
    assert "a-r0 8/s ok 160 8.00 200 ms 7.50 ms 1.00 J" in found.text
    assert "Remarks on 1 run b-r0 late" in found.text
    assert [name for name, _ in found.elements].count("s") == 1, "joules that are not valid are struck"


def test_failed_runs_have_the_first_line_of_the_reason() -> None:
    text = text_of(failed_table(StudyInfo("t", failed={"b": "no GPU\ntraceback", "a": "timeout"})))
    assert "a timeout b no GPU" in text and "traceback" not in text


def test_the_origin_has_versions_dates_engine_and_command() -> None:
    early, late = "2026-11-28T10:00:00+00:00", "2026-11-28T11:30:00+00:00"
    rows = [
        full_row(rps=rps, started=started, loadgen_version="0.1.0", engine="vllm 0.20", engine_options="max_num_seqs=8")
        for rps, started in ((2.0, late), (8.0, early))
    ]
    study = StudyInfo("t", seed=7, workloads={"chat": "8 input tokens"}, file="s.toml", sha256="ab")
    text = text_of(origin(rows, replace(study, command="loadgen study s.toml")))
    for fact in (
        "loadgen 0.1.0",
        "2 runs, the first began on 2026-11-28 10:00:00 UTC, the last on 2026-11-28 11:30:00 UTC",
        "Engine, plain vllm 0.20: max_num_seqs=8",
        "Workload, chat 8 input tokens",
        "Seed 7;",
        "s.toml, SHA-256 ab",
        "loadgen study s.toml",
    ):
        assert fact in text


def test_what_an_older_table_lacks_is_left_out_of_the_origin() -> None:
    text = text_of(origin([full_row(gpu=None)], StudyInfo("t")))
    assert "Runs 1 run Model m Arrivals poisson" in text and "-" not in text and "None" not in text

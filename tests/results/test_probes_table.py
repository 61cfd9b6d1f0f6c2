"""The table of a search's probes has what search.json says of each of them."""

import msgspec
import numpy as np

from loadgen.results.probes_table import PROBE_COLUMNS, probes_table
from loadgen.results.search_result import Probe, SearchResult, SettingResult

MEASURED = Probe(
    name="000", number=0, rate_rps=4.0, seed=7, stage="refine", planned_s=30, wall_s=33, from_s=2, until_s=22,
    requests=80, good=60, failed=2, met={"ttft": 70, "tpot": 65}, output_tokens=400, watts=300.0,
)  # fmt: skip
WITHOUT_REQUESTS = Probe(name="2-000", number=0, rate_rps=1.0, seed=7, stage="bracket", planned_s=10, wall_s=11)
SETTINGS = (
    SettingResult(name="a=1", probes=(MEASURED,)),
    SettingResult(name="a=2", probes=(WITHOUT_REQUESTS,)),
    SettingResult(name="a=3"),
)


def test_a_row_has_the_fields_of_its_probe_and_what_follows_from_them() -> None:
    table = probes_table(SearchResult(settings=SETTINGS))
    first, _ = table.rows()
    fields = {name: value for name, value in msgspec.to_builtins(MEASURED).items() if name in table.columns}
    assert {name: first[name] for name in fields} == fields
    assert (first["setting"], first["counted_s"], first["overloaded"]) == ("a=1", 20, False)
    assert (first["met_ttft"], first["met_tpot"], first["met_e2el"]) == (70, 65, None)
    assert (first["good_rps"], first["joules_per_good_request"], first["joules_per_output_token"]) == (3.0, 100.0, 15.0)


def test_what_a_probe_does_not_know_is_unknown() -> None:
    table = probes_table(SearchResult(settings=SETTINGS))
    assert table["setting"].tolist() == ["a=1", "a=2"]
    for name in ("good_rps", "watts", "ttft_p99_s", "output_tokens", "joules_per_good_request", "met_ttft"):
        assert np.isnan(table[name][1]), name


def test_a_search_without_a_probe_has_all_columns_and_no_rows() -> None:
    table = probes_table(SearchResult())
    assert (len(table), table.keys()) == (0, [column.name for column in PROBE_COLUMNS])

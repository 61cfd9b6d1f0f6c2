import json
from pathlib import Path

import pytest

from loadgen.cli.profile import parse_bins
from loadgen.energy_model.energy_profile import GridPoint
from loadgen.energy_model.measure import Spot, journal, journal_path, measurement_order, read_journal, seconds_left
from loadgen.energy_model.waves import RequestShape
from loadgen.errors import LoadgenError
from loadgen.servers.launcher import served

ON = {"model": "m", "engine": "e"}
CELL = GridPoint(input=8, output=2, batch=1, joules_per_request=1.5)


def test_bins_are_grids() -> None:
    assert parse_bins("1,2x3 4x5,6 1x3") == [
        RequestShape(1, 3),
        RequestShape(2, 3),
        RequestShape(4, 5),
        RequestShape(4, 6),
    ]


@pytest.mark.parametrize("text", ["", "8", "8x", "0x4", "8xfour", "8;9x1"])
def test_what_is_no_grid_is_said(text: str) -> None:
    with pytest.raises(LoadgenError, match="--bins"):
        parse_bins(text)


def test_a_plan_keeps_the_order_of_batches_and_shuffles_bins_by_seed() -> None:
    bins = parse_bins("1,2,3,4,5,6,7,8x1,2")
    first = measurement_order(bins, [32, 1], seed=0)
    assert [s.batch for s in first] == [32] * 16 + [1] * 16
    assert {s.lengths for s in first[:16]} == set(bins)
    assert first == measurement_order(bins, [32, 1], seed=0) != measurement_order(bins, [32, 1], seed=1)


def test_time_left_follows_what_cells_took() -> None:
    def took(spot: Spot) -> float:
        return 0.5 + 1e-5 * spot.lengths.input * spot.batch + 0.01 * spot.lengths.output

    spots = measurement_order(parse_bins("100,1000x10,100"), [1, 64], seed=0)
    left = seconds_left([(s, took(s)) for s in spots[:5]], spots[5:])
    assert left == pytest.approx(sum(map(took, spots[5:])), rel=0.02)
    assert seconds_left([], spots) is None


def test_the_journal_gives_back_whole_cells(tmp_path: Path) -> None:
    path = journal_path(tmp_path / "p.json")
    with journal(path, ON, []) as keep:
        keep(CELL)
    with path.open("a") as file:
        file.write('{"input": 9, "outp')
    assert read_journal(path, ON) == [CELL]
    with pytest.raises(LoadgenError, match="holds cells measured on"):
        read_journal(path, ON | {"model": "other"})


def run_profile(out: Path, url: str, *more: str) -> tuple[dict, list[str]]:  # type: ignore[type-arg]
    """The command's inside, without its own server; (the file, what was said)."""
    from click.testing import CliRunner

    from loadgen.cli import cli

    command = ["profile", "--bins", "64x8", "--batch", "4,2", "--base-url", url, "--out", str(out)]
    quick = ["--repeat-s", "0.3", "--cap-s", "0.5", "--settle-s", "0"]
    result = CliRunner().invoke(cli, [*command, *quick, *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text()), result.stderr.splitlines()


def test_a_live_profile_measures_resumes_and_defeats_prefix_caching(tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    with served("sim", "--prefix-caching", "--counter-period-ms", "20") as url:
        part, said = run_profile(out, url, "--budget-s", "0.01")
        assert len(part["cells"]) == 1 and not part["provenance"]["complete"] and "1 of 2 cells are not" in said[-1]
        whole, said = run_profile(out, url)
    assert "1 of 2 cells are there already" in said[0]
    assert {(c["input"], c["output"], c["batch"]) for c in whole["cells"]} == {(64, 8, 2), (64, 8, 4)}
    assert whole["simulated"] and whole["provenance"]["complete"] and not journal_path(out).exists()
    by_batch = {c["batch"]: c["joules_per_request"] for c in whole["cells"]}
    assert by_batch[4] < by_batch[2], "sharing the weights makes a request cheaper"


def test_static_batches_are_measured_whole(tmp_path: Path) -> None:
    with served("sim", "--counter-period-ms", "20") as url:
        made, _ = run_profile(tmp_path / "p.json", url, "--static")
    assert all(cell["requests"] % cell["batch"] == 0 and cell["joules_per_request"] > 0 for cell in made["cells"])
    assert len(made["cells"]) == 2 and "whole batches" in made["provenance"]["how"]


def test_a_failing_server_ends_the_profile_in_one_line(tmp_path: Path) -> None:
    with served("sim", "--fault", "http_500:1") as url, pytest.raises(LoadgenError, match="fail"):
        run_profile(tmp_path / "p.json", url)

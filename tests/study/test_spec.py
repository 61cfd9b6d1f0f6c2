"""A study file: read whole, or refused before anything starts."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from loadgen.cli.study import study as command
from loadgen.errors import LoadgenError
from loadgen.study.plan import plan_runs
from loadgen.study.runner import run_study
from loadgen.study.spec import Overrides, ServerSpec, problems, read_study
from support.small_study import SMALL


@pytest.mark.parametrize("flag", ["--engine-option", "--knob"])
def test_an_engine_option_beside_the_file_has_an_older_alias(flag: str, small: Path) -> None:
    result = CliRunner().invoke(command, [str(small), "--plan", flag, "speed=1"])
    assert isinstance(result.exception, LoadgenError)
    assert "has no engine option 'speed'" in str(result.exception)


def test_the_file_format_calls_engine_options_knobs() -> None:
    spec = msgspec.convert({"recipe": "sim", "knobs": {"seed": 3}}, ServerSpec)
    assert spec.engine_options == {"seed": 3}
    assert msgspec.to_builtins(Overrides(engine_options={"seed": "3"}))["knobs"] == {"seed": "3"}


def test_what_belongs_to_the_machine_is_given_beside_the_file(small: Path) -> None:
    given = Overrides(models=["mine"], engine_options={"max_num_seqs": "7"}, python="/engine/python")
    study = read_study(small, given)
    assert {cell.model for cell in plan_runs(study)} == {"mine"}
    for server in study.servers.values():
        assert (server.engine_options["max_num_seqs"], server.python) == ("7", "/engine/python")
        assert server.engine_options["counter_period_ms"] == 5, "other options stay"
    with pytest.raises(LoadgenError, match="sim has no engine option 'speed'"):
        read_study(small, Overrides(engine_options={"speed": "1"}))


WRONG = [
    ("unknown engine option", SMALL.replace("max_num_seqs = 1,", "speed = 1,"), "sim has no engine option 'speed'"),
    ("unknown recipe", SMALL.replace('"sim"', '"nonesuch"'), "no server called 'nonesuch'"),
    (
        "no such baseline",
        SMALL.replace('baseline = "one"', 'baseline = "two"'),
        "'two' is none of its servers: one, many",
    ),
    ("nothing to send", SMALL.replace("input = 32", ""), "workload short needs either a trace, or input and output"),
    ("no such workload", SMALL.replace("[workloads", 'workloads = ["long"]\n[workloads'), "many: no workload 'long'"),
    ("no load", SMALL.replace("batches = [4]", ""), "server one has nothing to do"),
    (
        "streams in batches",
        SMALL.replace("input = 32\noutput = 8", 'trace = "traces/mix.toml"'),
        "workload short: streams come at rates",
    ),
    (
        "streams have arrivals",
        SMALL.replace("input = 32\noutput = 8", 'trace = "m.toml"\nbatches = []\nrates = [1]\narrival = "constant"'),
        "each stream of m.toml has an arrival of its own",
    ),
    ("no such limit", SMALL.replace("tpot = 20", "tpto = 20"), "goodput has no limit 'tpto'; there are: ttft, tpot"),
    ("a share in per cent", SMALL.replace("repeats", "goodput_share = 99\nrepeats"), "goodput_share is a share of"),
    ("misspelt", SMALL.replace("repeats", "repetas"), "not a study: .*repetas"),
    ("not TOML", "title =", "not a study"),
]


@pytest.mark.parametrize(("said", "text", "error"), WRONG, ids=[row[0] for row in WRONG])
def test_a_wrong_study_is_refused_before_anything_starts(said: str, text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(LoadgenError, match=error):
        run_study(tmp_path / "s.toml", tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


def test_a_study_has_every_problem_it_can_have_and_a_whole_one_none(small: Path) -> None:
    study = read_study(small)
    assert list(problems(study)) == []
    wrong = msgspec.structs.replace(study, baseline="two", endpoint="edits", repeats=0)
    assert [problem.split()[0] for problem in problems(wrong)] == ["baseline", "endpoint", "repeats"]
    assert list(problems(msgspec.structs.replace(study, rounds=0))) == ["repeats and rounds are 1 at least"]

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from loadgen.cli import cli
from loadgen.errors import LoadgenError
from loadgen.workload.trace import read_trace
from support.agent_files import FORKED, talk, write_session

ROOT = Path(__file__).parents[2]
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3,8\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n6,GPT-4,9,0,9,API log\n"
)


def loadgen(*args: object) -> Result:
    return CliRunner().invoke(cli, ["trace", *map(str, args)], catch_exceptions=False)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    (path := tmp_path / "azure.csv").write_text(AZURE)
    return path


@pytest.mark.parametrize(("shipped", "rps", "seed"), [("chat", "5.5", "1"), ("code", "2.6", "2")])
def test_the_shipped_traces_are_drawn_again_to_the_same_bytes(
    tmp_path: Path, shipped: str, rps: str, seed: str
) -> None:
    bins = f"azure-2023-{shipped}"
    command = f"trace sample {bins} --num-requests 2000 --rps {rps} --seed {seed} --workload {shipped} --out "
    readme = (ROOT / "traces" / "README.md").read_text()
    assert f"loadgen {command}traces/{shipped}.jsonl" in readme
    loadgen(*command.split()[1:], tmp_path / "t.jsonl")
    drawn = (tmp_path / "t.jsonl").read_bytes()
    assert drawn == (ROOT / "traces" / f"{shipped}.jsonl").read_bytes()
    assert hashlib.sha256(drawn).hexdigest() in readme


def test_import_reports_the_rows_that_it_read_and_dropped(tmp_path: Path) -> None:
    (path := tmp_path / "b.csv").write_text(BURSTGPT)
    output = loadgen("import", path, "--out", tmp_path / "t.jsonl", "--workload", "chat").output
    assert "read 2 rows, dropped 1 (1 with 0 output tokens), wrote 1" in output
    assert json.loads((tmp_path / "t.jsonl").read_text()) == {
        "timestamp": 0.0,
        "input_length": 472,
        "output_length": 18,
        "workload": "chat",
    }


def test_sessions_of_several_files_and_folders_are_one_trace(tmp_path: Path) -> None:
    (folder := tmp_path / "sessions").mkdir()
    write_session(folder, talk("a", 2))
    alone, out = write_session(tmp_path, FORKED), tmp_path / "t.jsonl.gz"
    result = loadgen("import", folder, alone, "--out", out)
    assert result.output == f"wrote 10 requests of 2 sessions to {out}\n"
    assert {(r.session_id, r.model, r.workload) for r in read_trace(out).requests} == {
        ("a", None, "code"), ("forked", None, "code"),
    }  # fmt: skip
    loadgen("import", alone, "--out", out, "--keep-models", "--overwrite")
    assert {(r.model, r.workload) for r in read_trace(out).requests} == {("opus", "opus"), ("haiku", "haiku")}
    loadgen("import", alone, "--out", out, "--model", "m", "--workload", "w", "--overwrite")
    assert {(r.model, r.workload) for r in read_trace(out).requests} == {("m", "w")}
    shown = [json.loads(loadgen("show", source, "--json").output) for source in (alone, out, tmp_path / "sessions")]
    assert [facts["requests"] for facts in shown] == [8, 8, 2]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("azure.csv", "forked.json"), "forked.json: several files are imported at a time only if each has agent"),
        (("azure.csv", "--keep-models"), "--keep-models: azure.csv has no agent sessions"),
        (("forked.json", "--keep-models", "--model", "m"), "either --model or --keep-models"),
        (("forked.json", "--column", "prompt=a"), "agent sessions have no --column"),
        (("azure.csv", "--format", "weka"), "azure.csv:1: not a recorded session"),
    ],
)
def test_options_of_other_formats_are_refused(
    tmp_path: Path, csv: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_session(tmp_path, FORKED)
    with pytest.raises(LoadgenError, match=re.escape(fault)):
        loadgen("import", *arguments, "--out", "t.jsonl")


def test_a_bad_row_writes_nothing(tmp_path: Path, csv: Path) -> None:
    csv.write_text(AZURE + "2023-11-16 18:17:05,x,8\n")
    with pytest.raises(LoadgenError, match=r"azure\.csv:4: 'x' tokens"):
        loadgen("import", csv, "--out", tmp_path / "t.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["azure.csv"]


def test_import_fit_sample_show_make_a_round(tmp_path: Path, csv: Path) -> None:
    loadgen("import", csv, "--out", tmp_path / "t.jsonl.zst")
    loadgen("fit", tmp_path / "t.jsonl.zst", "--edges", "log2", "--licence", "CC-BY", "--out", tmp_path / "b.json")
    sampled = ("--num-requests", 100, "--rps", 10, "--arrival", "constant", "--out", tmp_path / "s.jsonl")
    loadgen("sample", tmp_path / "b.json", *sampled)
    facts = json.loads(loadgen("show", tmp_path / "s.jsonl", "--json").output)
    assert facts["requests"] == 100 and facts["workloads"] == {"b": 100}
    assert facts["mean_rps"] == pytest.approx(10) and facts["duration_s"] == pytest.approx(9.9)
    assert facts["index_of_dispersion_1s"] == pytest.approx(0, abs=0.02)
    assert 4096 < facts["input_max"] <= 8192  # the upper of the two bins
    of_bins = json.loads(loadgen("show", tmp_path / "b.json", "--json").output)
    assert (of_bins["requests"], of_bins["input_mean"], of_bins["licence"]) == (2, 2405.5, "CC-BY")


def test_show_counts_sessions_and_shared_blocks(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 0, "input_length": 1024, "output_length": 1, "session_id": "a", "hash_ids": [1, 2]},
        {"timestamp": 9, "input_length": 2000, "output_length": 1, "session_id": "a", "hash_ids": [1, 2, 3, 4]},
        {"timestamp": 9, "input_length": 1, "output_length": 0, "session_id": "b"},
    ]
    (path := tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    facts = json.loads(loadgen("show", path, "--json").output)
    assert facts["sessions"] == 1 and facts["dropped"] == 1
    assert facts["prefix_block_reuse"] == pytest.approx(2 / 6)
    assert facts["index_of_dispersion_10s"] is None and facts["spearman"] is None


def test_two_traces_are_compared_side_by_side(tmp_path: Path) -> None:
    output = loadgen("show", ROOT / "traces" / "chat.jsonl", "--compare", ROOT / "traces" / "code.jsonl").output
    assert (
        "chat.jsonl" in output
        and "code.jsonl" in output
        and "input tokens: Kolmogorov-Smirnov distance 0." in output
        and "\x1b" not in output
    )
    same = json.loads(loadgen("show", "azure-2023-chat", "--compare", "azure-2023-chat", "--json").output)
    assert (same["ks_input"], same["ks_output"], same["spearman_difference"]) == (0, 0, 0)


def test_an_existing_file_needs_overwrite(tmp_path: Path, csv: Path) -> None:
    out = tmp_path / "t.jsonl"
    for _ in range(2):
        loadgen("import", csv, "--out", out)
    with pytest.raises(LoadgenError, match="--overwrite"):
        loadgen("import", csv, "--workload", "w", "--out", out)
    loadgen("import", csv, "--workload", "w", "--out", out, "--overwrite")
    assert '"w"' in out.read_text()


@pytest.mark.parametrize(
    "args",
    [
        ("import", "none.csv", "--out", "t"),
        ("import", ".", "--out", "t"),
        ("import", "azure.csv", "--out", "t", "--format", "csv"),
        ("import", "azure.csv", "--out", "t", "--workload", "\x1b[2J"),
        ("import", "azure.csv", "--out", "none/t"),
        ("import", "azure.csv", "--out", "azure.csv/t"),
        ("import", "azure.csv", "--out", "t" * 300),
        ("fit", "none.jsonl", "--out", "b.json"),
        ("fit", "/dev/null", "--out", "b.json"),
        ("fit", "azure.csv", "--edges", "even", "--out", "b.json"),
        ("show", "none.jsonl"),
        ("show", "./none"),
        ("show", "."),
        ("show", "no-such-bins"),
        ("sample", "no-such-bins", "--num-requests", "1", "--rps", "1", "--out", "t"),
        ("sample", "azure.csv", "--num-requests", "1", "--rps", "1", "--out", "t"),
        ("sample", "azure-2023-chat", "--num-requests", "0", "--rps", "1", "--out", "t"),
        ("sample", "azure-2023-chat", "--num-requests", "1", "--rps", "nan", "--out", "t"),
        ("sample", "azure-2023-chat", "--num-requests", "1", "--rps", "-2", "--out", "t"),
        ("sample", "azure-2023-chat", "--num-requests", "1", "--rps", "1", "--seed", "-1", "--out", "t"),
    ],
)
def test_a_command_that_fails_exits_with_status_2_and_writes_nothing(
    tmp_path: Path,
    csv: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
) -> None:
    from loadgen.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["trace", *args])
    err = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "Traceback" not in err
    assert err.startswith("Usage: ") or (err.startswith("loadgen: ") and err.count("\n") == 1)
    assert [p.name for p in tmp_path.iterdir()] == ["azure.csv"]


def test_help_imports_neither_numpy_nor_rich() -> None:
    code = "import sys; from loadgen.cli.trace import trace; print({'numpy', 'rich', 'zstandard'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "set()"


def test_show_draws_the_rate_over_time(tmp_path: Path) -> None:
    lines = [{"timestamp": t, "input_length": 5, "output_length": 5} for t in (*range(0, 1000, 10), 2000, 4800)]
    (path := tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rates = json.loads(loadgen("show", path, "--json").output)["rate_over_time_rps"]
    assert sum(rates) * 4.8 / len(rates) == pytest.approx(102)
    assert rates[0] == max(rates) and rates[30] == 0
    assert "\u2588\u2588\u2588" in loadgen("show", path).output


def test_show_reports_turns_gaps_and_tokens_reused(tmp_path: Path) -> None:
    turns = [(0, "a", [1, 2]), (4, "b", [1, 3]), (9, "a", [1, 2, 4]), (19, "a", [])]
    lines = [
        {
            "timestamp": 1000 * t,
            "input_length": 512 * len(ids) or 816,
            "output_length": 1,
            "session_id": s,
            "hash_ids": ids,
        }
        for t, s, ids in turns
    ]
    (path := tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    facts = json.loads(loadgen("show", path, "--json").output)
    assert (facts["sessions"], facts["turns_per_session_mean"], facts["turns_per_session_max"]) == (2, 2.0, 3)
    assert facts["session_gap_p50_s"] == 9.5  # 0, 9, 19
    assert facts["prefix_block_reuse"] == pytest.approx(3 / 7)
    assert facts["prefix_token_reuse"] == pytest.approx(3 * 512 / 4400)  # again: 1, then 1 and 2
    assert facts["estimated"] is None
    assert facts["input_shares_by_power_of_2"] == [0] * 10 + [0.75, 0.25] and facts["output_shares_by_power_of_2"] == [
        1
    ]


def test_a_comparison_has_the_distance_of_the_gaps(tmp_path: Path) -> None:
    for name, step in (("slow", 2000), ("fast", 500)):
        lines = (f'{{"timestamp":{k * step},"input_length":5,"output_length":{k % 3 + 1}}}' for k in range(9))
        (tmp_path / name).write_text("\n".join(lines))
    compared = json.loads(loadgen("show", tmp_path / "slow", "--compare", tmp_path / "fast", "--json").output)
    assert (compared["ks_gap"], compared["ks_input"], compared["ks_output"]) == (1, 0, 0)


@pytest.mark.parametrize("source", ["trace", "bins", "both", "one instant"])
def test_the_page_is_well_formed_and_has_the_facts_that_show_prints(tmp_path: Path, source: str) -> None:
    line = '{"timestamp":5,"input_length":5,"output_length":7}\n'
    (instant := tmp_path / "<i>.jsonl").write_text(line * 3)
    chat = ROOT / "traces" / "chat.jsonl"
    args = {
        "trace": [chat],
        "bins": ["azure-2023-code"],
        "both": [chat, "--compare", instant],
        "one instant": [instant],
    }
    loadgen("show", *args[source], "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    tags = _Tags()
    tags.feed(page)
    content = page.partition("<script>")[0]  # without the library
    assert not tags.open and "<i>" not in content and "nan" not in content.lower()
    assert not tags.fetched  # nothing but itself
    figures = {"trace": 6, "bins": 3, "both": 8, "one instant": 6}
    assert tags.count["figure"] == figures[source]
    if source == "trace":
        assert "chat.jsonl: p50 1,020 tokens, p90 " in page and ", p99 4,399 tokens" in page
        assert ">23.1 %<" in page or ">23.2 %<" in page  # 23.15: inputs of 1025 to 2048 with outputs of 257 to 512
        rows = read_trace(chat).requests
        assert sum(1024 < r.input_tokens <= 2048 and 256 < r.output_tokens <= 512 for r in rows) == 463  # of 2,000


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: Counter[str] = Counter()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        links = [value or "" for name, value in attrs if name in ("src", "href")]
        self.fetched += [link for link in links if not link.startswith("#")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_import_says_what_it_wrote_and_what_it_left_out(tmp_path: Path) -> None:
    conversations = [
        {"id": "a", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]},
        {"id": "b", "conversations": [{"from": "gpt", "value": "!"}]},
    ]
    (path := tmp_path / "sharegpt.json").write_text(json.dumps(conversations, indent=1))
    result = loadgen("import", path, "--out", tmp_path / "t.jsonl.gz", "--workload", "chat")
    assert result.output == (
        f"wrote 1 requests to {tmp_path}/t.jsonl.gz; left out: 1 conversations in which nobody asks anything\n"
    )
    again = loadgen("import", tmp_path / "t.jsonl.gz", "--out", tmp_path / "t.jsonl")
    assert again.exit_code == 0
    assert json.loads((tmp_path / "t.jsonl").read_text()) == {
        "messages": [{"role": "user", "content": "?"}],
        "answer": "!",
        "workload": "chat",
    }


def test_import_takes_columns_of_a_table(tmp_path: Path) -> None:
    (path := tmp_path / "questions.csv").write_text('question,n\n"a\nb",5\n')
    out = tmp_path / "t.jsonl"
    result = loadgen("import", path, "--out", out, "--column", "prompt=question", "--column", "output_length=n")
    assert result.output == f"wrote 1 requests to {out}\n"
    assert json.loads(out.read_text()) == {"prompt": "a\nb", "output_length": 5}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--column", "promt=question"), "--column promt=...: there is no such field"),
        (("--column", "prompt"), "'prompt' is not KEY=VALUE"),
        (("--model", "m"), "is a trace of lengths: it has no --column and no --model"),
        (("--column", "prompt=x", "--format", "azure"), "is a trace of lengths: it has no --column and no --model"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(
    tmp_path: Path, csv: Path, options: tuple[str, ...], fault: str
) -> None:
    try:
        output = loadgen("import", csv, "--out", tmp_path / "t.jsonl", *options).output
    except LoadgenError as err:
        output = str(err)
    assert fault in output
    assert not (tmp_path / "t.jsonl").exists()


def test_the_formats_of_the_command_are_those_that_are_read() -> None:
    from loadgen.cli.trace import WORDS
    from loadgen.workload.worded_formats import READERS

    assert set(WORDS) == set(READERS) - {"jsonl"}


def test_bins_are_fitted_to_a_shipped_trace_by_its_name(tmp_path: Path) -> None:
    done = loadgen("fit", "chat", "--out", tmp_path / "chat.json")
    assert done.exit_code == 0 and json.loads((tmp_path / "chat.json").read_text())["count"] == 2000

"""Answers that are not those requested are remarks, and the figures that they spoil are named or unknown."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from loadgen.record import RequestRecord
from loadgen.results.answer_checks import check_lengths, check_streaming, check_token_counts
from loadgen.results.run_folder import RunResult
from loadgen.results.summarize import analyse_run
from loadgen.results.summary import Summary
from support import sample_runs

MS = 1_000_000


def answer(
    index: int, tokens: int = 20, gap_ms: float = 10, chunks: int | None = None, **changes: Any
) -> RequestRecord:
    """Return the record of an answer with a first chunk after 50 ms and a chunk each `gap_ms`."""
    sent_ns = index * 100 * MS
    chunk_ns = [sent_ns + 50 * MS + round(k * gap_ms * MS) for k in range(chunks or tokens)]
    fields: dict[str, Any] = {
        "index": index, "workload": "chat", "scheduled_ns": sent_ns, "sent_ns": sent_ns, "chunk_ns": chunk_ns,
        "first_token_ns": chunk_ns[0], "last_token_ns": chunk_ns[-1], "finished_ns": chunk_ns[-1] + MS,
        "input_tokens": 100 + 10 * index, "output_tokens": tokens, "token_source": "usage", "finish_reason": "length",
    }  # fmt: skip
    return RequestRecord(**fields | changes)


def analysed(records: list[RequestRecord], server: dict[str, Any] | None = None, **config: Any) -> RunResult:
    """Return the run of these answers, each of 20 tokens by request, to prompts of 100, 110, 120... tokens."""
    made = sample_runs.run(num_requests=len(records), failing=0)
    schedule = [
        msgspec.structs.replace(request, input_tokens=100 + 10 * i, output_tokens=20)
        for i, request in enumerate(made.schedule)
    ]
    info = msgspec.structs.replace(made.info, server=server or {}, config=config, start_ns=0)
    return analyse_run(replace(made, info=info, schedule=schedule, records=records, energy=[], attribution=None))


def summary_of(result: RunResult) -> Summary:
    assert result.summary is not None
    return result.summary


TAKES_BOTH = {"ignore_eos": True, "min_tokens": True}
LONG_TOKENS = ["tokens.output", "tokens.output_per_s", "e2e_s", "response_s"]


@pytest.mark.parametrize(
    ("records", "server", "config", "reason", "rows"),
    [
        pytest.param([answer(i) for i in range(10)], TAKES_BOTH, {}, None, [], id="as requested"),
        pytest.param([answer(i, 21) for i in range(10)], TAKES_BOTH, {}, None, [], id="one more for the end token"),
        pytest.param([answer(i, 20 - 4 * (i == 3)) for i in range(200)], TAKES_BOTH, {}, None, [], id="one of 200"),
        pytest.param(
            [answer(i, 5, finish_reason="stop") for i in range(10)],
            TAKES_BOTH,
            {},
            "the answers had 50 of 200 requested tokens: 10 of 10 were shorter than requested, of which 10 were ended "
            "by the model, the server accepts ignore_eos and min_tokens without honouring them",
            LONG_TOKENS,
            id="accepted and not honoured",
        ),
        pytest.param(
            [answer(i, 5, finish_reason="stop") for i in range(10)],
            TAKES_BOTH,
            {"extra_body": {"ignore_eos": False, "min_tokens": None}},
            "the answers had 50 of 200 requested tokens: 10 of 10 were shorter than requested, of which 10 were ended "
            "by the model",
            LONG_TOKENS,
            id="not asked for",
        ),
        pytest.param(
            [answer(i, 5) for i in range(10)],
            TAKES_BOTH,
            {},
            "the answers had 50 of 200 requested tokens: 10 of 10 were shorter than requested",
            LONG_TOKENS,
            id="a limit of the server",
        ),
        pytest.param(
            [answer(i, 60 if i < 5 else 20) for i in range(10)],
            {},
            {},
            "the answers had 400 of 200 requested tokens: 5 of 10 were longer",
            LONG_TOKENS,
            id="longer",
        ),
        pytest.param(
            [answer(i, input_tokens=50 + 5 * i) for i in range(10)],
            {},
            {},
            "the prompts had 725 of 1,450 requested tokens by the server's count",
            ["tokens.input", "tokens.input_per_s", "ttft_s"],
            id="prompts cut short",
        ),
    ],
)
def test_lengths_are_those_requested(
    records: list[RequestRecord], server: dict[str, Any], config: dict[str, Any], reason: str | None, rows: list[str]
) -> None:
    result = analysed(records, server, **config)
    check = check_lengths(result, summary_of(result))
    assert (check.status, check.reason, list(check.rows)) == ("warning" if reason else "ok", reason, rows)
    assert summary_of(result).verdict.check("lengths") == check


def test_the_length_of_an_answer_that_ends_where_the_model_ends_it_is_an_outcome() -> None:
    """Whatever the recorded answers have; a prompt of another length is still a remark."""
    made = analysed([answer(i, 5, finish_reason="stop") for i in range(10)], TAKES_BOTH)
    schedule = [msgspec.structs.replace(request, natural=True) for request in made.schedule]
    summary = summary_of(analyse_run(replace(made, schedule=schedule)))
    assert summary.verdict.check("lengths").status == "ok"
    assert (endings := summary.endings) and (endings.recorded_tokens, endings.counted_tokens) == (200, 50)
    longer = [msgspec.structs.replace(request, input_tokens=200 + 20 * i) for i, request in enumerate(schedule)]
    lengths = summary_of(analyse_run(replace(made, schedule=longer))).verdict.check("lengths")
    assert lengths.status == "warning" and "prompts had" in (lengths.reason or "")


def test_an_option_is_not_honoured_once_an_answer_proves_it() -> None:
    proved = summary_of(analysed([answer(0, 5, finish_reason="stop"), answer(1)], TAKES_BOTH)).lengths
    capped = summary_of(analysed([answer(0, 5), answer(1)], TAKES_BOTH)).lengths
    assert proved is not None and (proved.shorter, proved.stopped) == (1, 1)
    assert proved.not_honoured == ["ignore_eos", "min_tokens"]
    assert capped is not None and (capped.shorter, capped.stopped, capped.not_honoured) == (1, 0, [])


TOKEN_TIMES = ["ttft_s", "tpot_s", "itl_s"]


@pytest.mark.parametrize(
    ("records", "reason", "rows", "known"),
    [
        pytest.param([answer(i) for i in range(10)], None, [], 10, id="streamed"),
        pytest.param([answer(i, 1) for i in range(10)], None, [], 10, id="one token each"),
        pytest.param([answer(i, 3, chunks=1) for i in range(10)], None, [], 10, id="three tokens in one step"),
        pytest.param([answer(i, gap_ms=0) for i in range(10)], "10 of 10 answers", TOKEN_TIMES, 0, id="in one read"),
        pytest.param([answer(i, gap_ms=0.09) for i in range(10)], "10 of 10", TOKEN_TIMES, 0, id="in several reads"),
        pytest.param([answer(i, gap_ms=0.11) for i in range(10)], None, [], 10, id="9,000 tokens a second"),
        pytest.param([answer(i, chunks=1) for i in range(10)], "10 of 10 answers", TOKEN_TIMES, 0, id="in one chunk"),
        pytest.param([answer(i, gap_ms=i % 4 * 10) for i in range(20)], "5 of 20", TOKEN_TIMES, 15, id="a part"),
        pytest.param([answer(i, gap_ms=10 * (i > 1)) for i in range(20)], None, [], 18, id="two short halts"),
        pytest.param([answer(i, gap_ms=10 * (i > 2)) for i in range(20)], "3 of 20", TOKEN_TIMES, 17, id="three"),
        pytest.param([answer(0, gap_ms=0)], "1 of 1 answers", TOKEN_TIMES, 0, id="the only one"),
    ],
)
def test_answers_in_one_piece_have_no_times_of_tokens(
    records: list[RequestRecord], reason: str | None, rows: list[str], known: int
) -> None:
    summary = summary_of(result := analysed(records))
    check = check_streaming(result, summary)
    assert (check.status, list(check.rows)) == ("warning" if reason else "ok", rows)
    assert (check.reason or "").startswith(reason or "")
    assert summary.ttft_s.count == known
    assert summary.e2e_s.count == len(records), "when the answer was complete is known"
    if not known:
        assert (summary.ttft_s.p50, summary.tpot_s.p50, summary.itl_s.p50) == (None, None, None)


@pytest.mark.parametrize(("group", "status"), [(1, "ok"), (3, "warning"), (20, "warning")])
def test_chunks_that_come_in_groups_are_a_remark(group: int, status: str) -> None:
    records = []
    for i in range(10):
        record = answer(i, 60)
        chunks = [record.chunk_ns[k - k % group + group - 1 if k - k % group + group <= 60 else 59] for k in range(60)]
        records.append(msgspec.structs.replace(record, chunk_ns=chunks, first_token_ns=chunks[0]))
    result = analysed(records)
    check = check_streaming(result, summary_of(result))
    assert check.status == status
    if group > 1:
        share = "half" if group < 10 else "nine tenths"
        assert check.reason and check.reason.startswith(
            f"more than {share} of the chunks came within 0.1 ms of the one"
        )


COUNTED_BY_CHUNKS = ["tokens.output", "tokens.output_per_s", "tpot_s", "energy.joules_per_output_token"]


@pytest.mark.parametrize(
    ("records", "reason", "rows"),
    [
        pytest.param([answer(i) for i in range(10)], None, [], id="by usage"),
        pytest.param(
            [answer(i, token_source="chunks") for i in range(10)],
            "the server sent no usage for 10 of 10 answers",
            COUNTED_BY_CHUNKS,
            id="by chunks",
        ),
        pytest.param(
            [answer(i, 220, chunks=20, hidden_tokens=200) for i in range(10)],
            "10 of 10 answers have hidden reasoning, 2,000 tokens that were counted and not sent",
            ["tokens.output", "ttft_s"],
            id="hidden reasoning",
        ),
        pytest.param(
            [answer(i, 10, chunks=20) for i in range(10)],
            "10 of 10 answers came in more chunks than the server counts tokens",
            ["tokens.output", "tokens.output_per_s", "tpot_s", "itl_s", "energy.joules_per_output_token"],
            id="more chunks than tokens",
        ),
        pytest.param([answer(i, 20, chunks=25) for i in range(10)], None, [], id="a chunk or two more"),
        pytest.param([answer(i, hidden_tokens=0) for i in range(10)], None, [], id="visible reasoning"),
        pytest.param(
            [answer(i, input_tokens=20) for i in range(10)],
            "the server does not count the tokens of the prompts, or counts the same",
            ["tokens.input", "energy.joules_per_token"],
            id="one count for each prompt",
        ),
        pytest.param(
            [answer(i, input_tokens=None) for i in range(10)],
            "the server does not count the tokens of the prompts",
            ["tokens.input", "energy.joules_per_token"],
            id="no count of prompts",
        ),
        pytest.param([answer(i, input_tokens=20) for i in range(4)], None, [], id="four alike"),
    ],
)
def test_tokens_are_those_that_the_server_counts(
    records: list[RequestRecord], reason: str | None, rows: list[str]
) -> None:
    result = analysed(records)
    check = check_token_counts(result, summary_of(result))
    assert (check.status, list(check.rows)) == ("warning" if reason else "ok", rows)
    assert (check.reason or "").startswith(reason or "")
    assert (summary_of(result).tokens.input is None) == ("tokens.input" in rows)


def test_hidden_tokens_are_no_part_of_the_time_per_token() -> None:
    tpot = summary_of(analysed([answer(i, 220, chunks=20, hidden_tokens=200) for i in range(10)])).tpot_s
    assert tpot.p50 == pytest.approx(0.010)


def test_without_answers_nothing_is_judged() -> None:
    result = analysed([answer(i, error="connect") for i in range(3)])
    checks = [check(result, summary_of(result)) for check in (check_lengths, check_streaming, check_token_counts)]
    assert [(check.status, check.reason) for check in checks] == [(None, None)] * 3

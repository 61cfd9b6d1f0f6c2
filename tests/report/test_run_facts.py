"""The facts about a run, in words that every view shares."""

import msgspec
import pytest

from loadgen.report.run_facts import (
    Fact,
    Remark,
    cache_note,
    energy_cells,
    engine_facts,
    kind_rows,
    latency_rows,
    load_facts,
    mark,
    part_heading,
    parts_of,
    request_cells,
    span_facts,
    verdict_remarks,
)
from loadgen.results.summary import (
    ArrivalCheck,
    CacheEnergy,
    Distribution,
    EnergySummary,
    Goodput,
    KindOutput,
    LengthCheck,
    NaturalEndings,
    RealizedArrivals,
    Summary,
)
from loadgen.results.verdict import CHECKS, Check, Status, Verdict
from support import sample_runs


def summary(**changes: object) -> Summary:
    made = sample_runs.run().summary
    assert made is not None
    return msgspec.structs.replace(made, **changes)


def facts(made: Summary) -> dict[tuple[str, str], str]:
    return {(fact.label, fact.workload): fact.text for fact in load_facts(made)}


def test_labels_are_unique_for_each_workload() -> None:
    assert len(facts(summary())) == len(load_facts(summary()))
    assert all(isinstance(fact, Fact) and fact.text for fact in load_facts(summary()))


def test_lengths_show_the_difference_with_its_sign() -> None:
    lengths = LengthCheck(
        count=2, input_asked=1000, input_counted=1003, input_max_off=2,
        output_asked=50, output_counted=48, output_max_off=None,
    )  # fmt: skip
    found = facts(summary(lengths=lengths))
    assert found["input length", ""].startswith("1,000 tokens requested, +3 by the server's count; at most 2 off")
    assert found["output length", ""].startswith("50 tokens requested, -2 by the server's count; at most - off")
    assert ("input length", "") not in facts(summary(lengths=None))


@pytest.mark.parametrize(
    ("process", "text"), [("gamma", "gamma"), ("trace", "the trace's own"), (None, "all streams'")]
)
def test_arrivals_say_by_which_law_they_were_due(process: str | None, text: str) -> None:
    sent = RealizedArrivals(count=9, rate=4.0, dispersion=None, gap_cv=None, ks=None, ks_critical=None)
    check = ArrivalCheck(
        of="requests", process=process, asked_rps=4.0, scheduled=sent, sent=sent, as_asked=True, verdict="as asked"
    )
    arrivals = facts(summary(arrivals=check, by_workload={}))["arrivals", ""]
    assert arrivals == f"as asked: {text} requests, 4.00 /s of 4.00 /s requested"


def test_natural_endings_stand_beside_the_recorded_answers() -> None:
    endings = NaturalEndings(
        tokens=Distribution(count=10, p50=20.0, p90=50.0, max=60.0), limited=2,
        recorded=8, recorded_tokens=300, counted_tokens=280, shorter=3, longer=1,
    )  # fmt: skip
    lengths = LengthCheck(
        count=10, input_asked=9, input_counted=9, input_max_off=0,
        output_asked=None, output_counted=None, output_max_off=None,
    )  # fmt: skip
    found = facts(summary(endings=endings, lengths=lengths))
    assert found["endings", ""] == (
        "10 answers without a requested length: 8 ended by the model, 2 by a limit; tokens p50 20.0, p90 50.0, "
        "max 60.0; 280 tokens where the 8 recorded answers have 300 (3 shorter, 1 longer)"
    )
    assert ("output length", "") not in found
    unrecorded = msgspec.structs.replace(endings, recorded=0, recorded_tokens=None, counted_tokens=None)
    assert "recorded" not in facts(summary(endings=unrecorded))["endings", ""]
    assert ("endings", "") not in facts(summary(endings=None))


def test_workloads_have_a_goodput_of_their_own_only_where_their_limits_differ() -> None:
    common = Goodput(slo_ms={"ttft": 200.0}, good=3, ratio=0.75, rps=1.5)
    assert facts(summary(goodput=common))["goodput", ""] == "1.50 /s, 75.0 % of requests within TTFT ≤ 200 ms"
    assert ("goodput", "chat") not in facts(summary(goodput=common))
    mixed = facts(summary(goodput=msgspec.structs.replace(common, slo_ms={})))
    assert mixed["goodput", ""] == "1.50 /s, 75.0 % of requests within their stream's limits"
    assert "TTFT ≤ 200 ms, TPOT ≤ 50.0 ms" in mixed["goodput", "chat"] and ("goodput", "code") in mixed
    assert not any(label == "goodput" for label, _ in facts(summary(goodput=None)))


def test_models_stand_after_the_workloads_where_there_are_several() -> None:
    made = summary()
    part = next(iter(made.by_workload.values()))
    labels = [label for label, _ in parts_of(msgspec.structs.replace(made, by_model={"org/base": part, "lora": part}))]
    assert labels == ["all", *sorted(made.by_workload), "lora", "base"]


def test_tags_with_several_values_stand_last() -> None:
    made = summary()
    part = next(iter(made.by_workload.values()))
    tags = {"team=x": part, "tenant=": part, "tenant=a=b": part}
    shown = msgspec.structs.replace(made, by_tag=tags)
    assert [label for label, _ in parts_of(shown)] == ["all", *sorted(made.by_workload), "no tenant", "tenant=a=b"]
    assert (part_heading(made), part_heading(shown)) == ("workload", "workload or tag")


@pytest.mark.parametrize("status", [None, "ok", "warning", "failed"])
def test_remarks_are_the_reasons_of_the_verdict_and_the_worst_stand_first(status: Status | None) -> None:
    checks = [Check(name=name, status="ok") for name in CHECKS]
    checks[0] = Check(name="finished", status=status, reason="it\x1b ended")
    checks[7] = Check(name="token_counts", status="failed", reason="wrong")
    told = verdict_remarks(summary(verdict=Verdict.of(checks)))
    ended, wrong = Remark(status, "finished: it  ended"), Remark("failed", "token counts: wrong")
    assert told == ([ended, wrong] if status == "failed" else [wrong, ended])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("energy", " !!"),
        ("energy.mean_watts", " !!"),
        ("tokens.output", " !"),
        ("tokens", ""),
        ("tokens.out", ""),
        ("rate", ""),
    ],
)
def test_a_row_has_the_mark_of_the_worst_check_that_touches_it(row: str, expected: str) -> None:
    checks = [Check(name=name, status="ok") for name in CHECKS]
    checks[0] = Check(name="finished", status="warning", reason="x", rows=["energy", "tokens.output"])
    checks[9] = Check(name="energy", status="failed", reason="x", rows=["energy"])
    assert mark(summary(verdict=Verdict.of(checks)), row) == expected


def test_parts_are_the_run_and_then_its_workloads_if_there_are_several() -> None:
    made = summary()
    assert [name for name, _ in parts_of(made)] == ["all", "chat", "code"]
    alone = msgspec.structs.replace(made, by_workload={"chat": made.by_workload["chat"]})
    assert [name for name, _ in parts_of(alone)] == ["all"]
    marked = [(row.label, row.part) for row in latency_rows(alone, parts_of(alone))]
    assert marked == [
        pair
        for short in ("TTFT", "TPOT", "ITL", "E2E", "Response")
        for pair in ((f"{short} !!", "all"), *([] if short == "ITL" else [(f"{short} !!", "+ failed")]))
    ]


def test_cells_are_in_the_order_of_their_headings() -> None:
    made = summary()
    counts = made.requests
    expected = [counts.scheduled, counts.sent, counts.completed, counts.failed]
    assert request_cells(made) == [f"{n:,}" for n in expected]
    unknown = msgspec.structs.replace(
        made.energy, joules_per_request=None, joules_per_output_token=2.0, joules_per_token=None
    )
    assert energy_cells(unknown) == ["-", "-", "-", "2.00 J", "-"]


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (None, None),
        ({"answered": True, "understood": True, "path": "/metrics", "names_of": "vLLM", "reason": None},
         "its own counters were read from /metrics, which has the names of vLLM"),
        ({"answered": True, "understood": False, "reason": "no metrics page is understood (/metrics: status 404)"},
         "its own counters were not read: no metrics page is understood (/metrics: status 404)"),
        ({"answered": True, "understood": False, "reason": None},
         "its own counters were not read: it has counted nothing yet"),
        ({"answered": False, "understood": False, "reason": None}, "its own counters were not read: no answer"),
    ],
)  # fmt: skip
def test_that_an_engine_answers_is_not_that_its_counters_are_understood(
    page: dict[str, object] | None, text: str | None
) -> None:
    info = msgspec.structs.replace(sample_runs.run(num_requests=2).info, server={"metrics": page})
    assert engine_facts(info) == ([Fact("engine", text)] if text else [])


@pytest.mark.parametrize(
    ("spans", "text"),
    [
        (None, None),
        ({"sent": 15, "lost": 0, "last_error": None}, None),
        ({"sent": 0, "lost": 9, "last_error": "it answered 401"}, "9 of 9 did not reach the sidecar (it answered 401)"),
        ({"sent": 1990, "lost": 10, "last_error": None}, "10 of 2,000 did not reach the sidecar"),
    ],
)
def test_spans_that_the_sidecar_did_not_take_are_reported(spans: dict[str, object] | None, text: str | None) -> None:
    info = msgspec.structs.replace(sample_runs.run().info, instrument={"spans": spans})
    assert span_facts(info) == ([Fact("spans", text)] if text else [])


def thinking() -> Summary:
    return summary(
        output_kinds={
            "reasoning": KindOutput(requests=10, tokens=300, joules=60.0, joules_per_token=0.2),
            "answer": KindOutput(requests=12, tokens=100),
        }
    )


def test_kinds_of_output_are_rows_where_there_are_others_than_answers() -> None:
    made = thinking()
    assert [tuple(row) for row in kind_rows(made, parts_of(made))] == [
        ("reasoning", "all", ["10", "300", "75.0 %", "60.0 J", "0.200 J"]),
        ("answer", "all", ["12", "100", "25.0 %", "-", "-"]),
    ]
    plain = summary(output_kinds={"answer": KindOutput(requests=12, tokens=100)})
    assert kind_rows(plain, parts_of(plain)) == kind_rows(summary(), parts_of(summary())) == []


def test_the_first_answer_token_has_rows_where_there_was_reasoning() -> None:
    def labels(made: Summary) -> set[str]:
        return {row.label.strip(" !") for row in latency_rows(made, parts_of(made))} - {""}

    assert labels(thinking()) - labels(summary()) == {"TTFA"}


def test_media_are_counted_where_the_server_counts_them() -> None:
    tokens = msgspec.structs.replace(summary().tokens, input_image=1200, output_audio=3)
    assert facts(summary(tokens=tokens))["media tokens", ""] == (
        "input images 1,200, output audio 3 by the server's count"
    )
    assert ("media tokens", "") not in facts(summary())


@pytest.mark.parametrize(
    ("cache", "note"),
    [
        (None, None),
        (CacheEnergy(saved_joules=0.0, recomputed_joules=0.0), None),
        (
            CacheEnergy(saved_joules=25.0, saved_se_joules=1.0, recomputed_joules=0.0, recomputed_se_joules=0.0),
            "By the fitted law the prefix cache saved 25.0 J ± 1.00 J, 20.0 % of what the requests would have cost "
            "without it.",
        ),
        (
            CacheEnergy(recomputed_joules=3.0, recomputed_se_joules=0.5),
            "3.00 J ± 0.500 J were used for tokens that had been computed before.",
        ),
    ],
)
def test_a_sentence_says_what_the_cache_saved_and_what_was_computed_again(
    cache: CacheEnergy | None, note: str | None
) -> None:
    assert cache_note(EnergySummary(valid=True, reasons=[], attributed_joules=100.0, cache=cache)) == note

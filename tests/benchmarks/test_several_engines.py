"""Runs against two engines: numbers that are those of the simulated truth, and tables that stand on their own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.accuracy.several_engines import (
    Stay,
    bodies,
    bursts_of,
    condense,
    in_order,
    read_spans,
    spans_of_run,
)
from benchmarks.accuracy.several_engines import busy_s as busy_seconds
from benchmarks.paper import several_engines as tables
from loadgen.results.engine_parts import engine_parts
from loadgen.results.run_folder import RunResult
from loadgen.telemetry.engine_span import EngineSpan
from loadgen.units import NS_PER_MS
from support.fleet_runs import Fleet, disaggregated, replicas, sharing
from support.otlp_attributes import set_attribute

ID = "chatcmpl-___prefill_addr_127.0.0.1:21001___decode_addr_127.0.0.1:22001_run-7"


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def test_half_a_last_body_is_left_out() -> None:
    data = framed(b"one") + framed(b"") + framed(b"three")
    assert list(bodies(data)) == [b"one", b"", b"three"]
    for cut in range(1, 9):
        assert list(bodies(data[:-cut])) == [b"one", b""]


def test_the_span_of_a_request_through_the_proxy_has_the_client_s_id(tmp_path: Path) -> None:
    request = ExportTraceServiceRequest()
    sent = request.resource_spans.add().scope_spans.add().spans.add()
    sent.name, sent.start_time_unix_nano, sent.end_time_unix_nano = "llm_request", 10**18, 10**18 + 5
    set_attribute(sent, "gen_ai.request.id", ID)
    set_attribute(sent, "gen_ai.usage.completion_tokens", 1)
    (tmp_path / "p.otlp").write_bytes(framed(request.SerializeToString()))
    (made,) = read_spans(tmp_path / "p.otlp")
    assert (made.id, made.output_tokens, made.end_ns) == ("run-7", 1, 10**18 + 5)
    assert read_spans(tmp_path / "d.otlp") == []


def test_a_run_has_the_spans_of_its_time_under_the_names_of_its_engines() -> None:
    result = disaggregated(requests=4).result
    first_ns, last_ns = (result.energy[row].t_ns + result.info.anchor.offset_ns for row in (0, -1))

    def made(start_ns: int, end_ns: int) -> EngineSpan:
        return EngineSpan(
            id="x", arrival_ns=start_ns, prefill_ns=start_ns, first_token_ns=end_ns, end_ns=end_ns,
            input_tokens=1, output_tokens=1,
        )  # fmt: skip

    before, across = made(first_ns - 9, first_ns - 1), made(first_ns - 1, first_ns)
    later, after = made(last_ns, last_ns + 9), made(last_ns + 1, last_ns + 2)
    spans = spans_of_run(result, [[before, across], [later, after]])
    assert [(span.engine, span.arrival_ns) for span in spans] == [("p", across.arrival_ns), ("d", later.arrival_ns)]


def test_runs_are_in_order_of_their_loads() -> None:
    names = ["duo-both", "one-single", "one-single1", "one-load4", "one-load10", "pd-single"]
    assert sorted(map(Path, reversed(names)), key=in_order) == list(map(Path, names))


@pytest.fixture(scope="module")
def slow() -> Fleet:
    """Requests so far apart that the engines rest between them."""
    return disaggregated(requests=8, rps=0.15, seed=4)


def test_what_a_prefill_used_is_known_from_the_counter_alone(slow: Fleet) -> None:
    run = condense(slow.result)
    for counter in run["by_counter"].values():
        assert [burst["rows"] for burst in counter["bursts"]] == [[row] for row in range(8)]
    above, whole = (tables.used(run, "p", whole=whole)[tables.WARM :] for whole in (False, True))
    assert whole == pytest.approx(slow.truth["p"][tables.WARM :], rel=0.02)
    rest_j = [run["by_counter"]["p"]["idle_w"] * burst["busy_s"] for burst in run["by_counter"]["p"]["bursts"]]
    assert above + rest_j[tables.WARM :] == pytest.approx(whole)


def test_prompts_that_come_together_are_one_burst() -> None:
    fleet = disaggregated(requests=40, rps=2.0)
    run = condense(fleet.result)
    counter = run["by_counter"]["p"]
    assert max(len(burst["rows"]) for burst in counter["bursts"]) > 1
    for burst in counter["bursts"]:
        measured = tables.above_rest(burst, counter["idle_w"], whole=True)
        assert measured == pytest.approx(fleet.truth["p"][burst["rows"]].sum(), rel=0.02)


@pytest.mark.parametrize(
    ("ms", "bursts", "busy_s"),
    [
        ([(0, 100), (450, 600)], [[0, 1]], [0.25]),
        ([(0, 100), (550, 600)], [[0], [1]], [0.1, 0.05]),
        ([(0, 900), (100, 200), (1250, 1300)], [[0, 1, 2]], [0.95]),
    ],
)
def test_a_burst_ends_where_the_engine_has_no_request(
    ms: list[tuple[int, int]], bursts: list[list[int]], busy_s: list[float]
) -> None:
    stays = [Stay(row, start * NS_PER_MS, end * NS_PER_MS) for row, (start, end) in enumerate(ms)]
    made = bursts_of(stays)
    assert [[stay.row for stay in burst] for burst in made] == bursts
    assert [busy_seconds(burst) for burst in made] == pytest.approx(busy_s)


@pytest.mark.parametrize("make", [disaggregated, replicas, lambda: sharing(replicas())])
def test_the_accounts_of_each_gpu_add_up_to_its_counter(make: Callable[[], Fleet]) -> None:
    fleet = make()
    run = condense(fleet.result)
    assert len(run["gpus"]) == len({engine.gpus for engine in fleet.result.info.engines})
    for gpu in run["gpus"].values():
        parts = ("idle_mj", "prefill_mj", "decode_mj", "unattributed_mj")
        assert gpu["counter_mj"] == sum(gpu[part] for part in parts) > 0
    for name, engine in run["engines"].items():
        truth_mj = fleet.truth[name].sum() * 1e3
        assert engine["prefill_mj"] + engine["decode_mj"] == pytest.approx(truth_mj, rel=0.05)
    assert (run["by_counter"] == {}) == (len(run["gpus"]) == 1), "of a shared GPU no engine has a counter"
    assert json.dumps(run)


def test_one_law_is_of_runs_with_prefill_and_decode_apart() -> None:
    assert set(condense(disaggregated(requests=40).result)["one_law"]) == {"p", "d"}
    assert condense(replicas(requests=40).result)["one_law"] == {}


def test_an_engine_without_requests_beside_another_has_no_joules() -> None:
    result = sharing(replicas(requests=60)).result
    kept = [row for row, record in enumerate(result.records) if record.engines == ["a"]]
    records = [msgspec.structs.replace(result.records[row], index=index) for index, row in enumerate(kept)]
    schedule = [msgspec.structs.replace(result.schedule[row], index=index) for index, row in enumerate(kept)]
    engines = {"a": result.engines["a"], "b": []}
    run = condense(replace(result, records=records, schedule=schedule, engines=engines, engine=[]))
    assert [run["engines"]["b"][field] for field in ("requests", "prefill_mj", "decode_mj")] == [0, 0, 0]
    gpu = run["gpus"]["a+b"]
    parts = [gpu[f"{part}_mj"] for part in ("idle", "prefill", "decode", "unattributed")]
    assert gpu["counter_mj"] == sum(parts) and run["engines"]["b"]["counters"]["prompt_tokens"] is None


def prompts_alone(fleet: Fleet) -> RunResult:
    """Return what the engine of prompts did as a run of one engine, whose answers have one token."""
    part = engine_parts(fleet.result)[0]
    result, named = part.result, msgspec.structs.replace(part.engine, name="a", role=None)
    info = msgspec.structs.replace(result.info, engines=[named])
    records = [msgspec.structs.replace(record, engines=["a"]) for record in result.records]
    return replace(result, info=info, records=records, engines={"a": result.engine}, spans=[])


@pytest.fixture(scope="module")
def condensed(slow: Fleet) -> dict[str, Any]:
    """The same prompts in all arrangements, slow ones and under load."""
    one = replicas(requests=len(slow.served_by), rps=0.15, seed=4, names=("a",))
    runs = {"pd-single": slow.result, "one-single1": prompts_alone(slow), "one-single": one.result}
    runs |= {"one-load4p": prompts_alone(disaggregated(requests=60, rps=2.0)),
             "one-load4": replicas(requests=60, rps=2.0, seed=4, names=("a",)).result}  # fmt: skip
    for load in ("load4-1", "load14-1", "load14-2"):
        runs |= {f"pd-{load}": disaggregated(requests=60, rps=2.0).result,
                 f"rep-{load}": replicas(requests=60, rps=2.0, seed=4).result}  # fmt: skip
    runs["duo-both"] = sharing(replicas(requests=60, rps=6.0, seed=4)).result
    made = {name: condense(result) for name, result in runs.items()}
    engines = made["duo-both"]["engines"]
    made["duo-both"]["engines"] = {"x": engines["a"], "y": engines["b"]}
    made["duo-both"]["gpus"] = {"x+y": made["duo-both"]["gpus"]["a+b"]}
    for name, engine in (("x", "a"), ("y", "b")):
        attributed_mj = sum(engines[engine][f"{phase}_mj"] for phase in ("prefill", "decode"))
        gpu = {"counter_mj": attributed_mj + 7, "idle_mj": 7, "prefill_mj": attributed_mj, "decode_mj": 0}
        rest = {"unattributed_mj": 0, "idle_w": None, "seconds": 1.0}
        made[f"duo-{name}"] = made["duo-both"] | {"gpus": {"x+y": gpu | rest}}
    return made


@pytest.fixture
def data(condensed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(tables, "DATA", tmp_path / "data.json")
    tables.DATA.write_text(json.dumps(condensed))
    return condensed


def cells(text: str) -> list[list[str]]:
    return [line[2:-2].split(" | ") for line in text.splitlines()]


def test_every_table_is_whole(data: dict[str, Any]) -> None:
    for name, draw in tables.TABLES.items():
        head, _, *body = cells(draw())
        assert body, name
        assert {len(row) for row in body} == {len(head)}, name
        assert "nan" not in draw(), name


def test_the_law_of_prompts_alone_is_within_2_percent_of_the_counter(data: dict[str, Any]) -> None:
    """The simulated law is that of attribution."""
    for draw in (tables.prefill_by_length, tables.split_by_length, tables.prefill_by_burst, tables.split_by_burst):
        head, _, *body = cells(draw())
        off = [row[head.index("off by")].removesuffix(" %").replace("−", "-") for row in body]
        known = [float(text) for text in off if text != "-"]
        assert len(known) >= 3 and max(map(abs, known)) < 2


def test_nothing_is_off_its_counter(data: dict[str, Any]) -> None:
    head, _, *body = cells(tables.accounts())
    assert {row[head.index("off by, mJ")] for row in body} == {"0"}


def test_a_law_that_gives_each_engine_what_it_uses_alone_is_not_off(data: dict[str, Any]) -> None:
    """The counter of the shared GPU is the sum of both, so that alone and added are the same, and so are the steps."""
    _, _, *body = cells(tables.two_on_one())
    assert [row[-2:] for row in body] == [["+0.0 %", "+0.0 %"]] * 2


def test_two_gpus_use_for_prompts_what_one_does_that_only_computes_them(data: dict[str, Any]) -> None:
    """The simulated prefill is the same, and so is the run of prompts alone."""
    head, _, *body = cells(tables.request_by_length())
    p, alone, d, both = (head.index(f"{name}, J") for name in ("p", "the prompt alone on one GPU", "d", "p and d"))
    known = [row for row in body if "-" not in row]
    assert len(known) > 4
    for row in known:
        values = [float(row[column].partition(" ")[0]) for column in (p, alone, d, both)]
        assert values[0] == values[1] and values[0] + values[2] == pytest.approx(values[3], rel=0.02)
        assert row[alone + 1] == "+0.0 %"


def test_an_error_of_the_split_is_that_of_a_law_against_the_counter(data: dict[str, Any]) -> None:
    run = data["pd-single"]
    counter = tables.used(run, "p", whole=True).tolist()
    law = [None, *(joules * (1.2 if row == 3 else 0.9) for row, joules in enumerate(counter) if row)]
    tables.DATA.write_text(json.dumps(data | {"pd-single": run | {"columns": run["columns"] | {"prefill_j": law}}}))
    rows = {(row[0], row[1]): row[2:] for row in cells(tables.split_errors())[2:]}
    assert rows["one at a time, two GPUs: p", "its own law"] == ["7", "−10.0 %", "10.0 %", "+20.0 %"]


def test_one_law_beside_that_of_an_engine_divides_the_same_joules(data: dict[str, Any]) -> None:
    _, _, *body = cells(tables.one_law())
    sums = [sum(int(cell.replace(",", "")) for cell in row[2:]) for row in body]
    assert [row[0] for row in body] == ["p (prefill)"] * 2 + ["d (decode)"] * 2
    assert sums[0] == pytest.approx(sums[1], rel=0.01) and sums[2] == pytest.approx(sums[3], rel=0.01)


def test_runs_of_other_prompts_are_not_compared(data: dict[str, Any]) -> None:
    columns = data["one-single"]["columns"]
    longer = columns | {name: [*values, values[0]] for name, values in columns.items()}
    tables.DATA.write_text(json.dumps(data | {"one-single": data["one-single"] | {"columns": longer}}))
    assert tables.split_errors(), "a run may go on after the prompts of both"
    other = columns | {"input_tokens": columns["input_tokens"][::-1]}
    tables.DATA.write_text(json.dumps(data | {"one-single": data["one-single"] | {"columns": other}}))
    with pytest.raises(ValueError, match="different prompts"):
        tables.split_errors()

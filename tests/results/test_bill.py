"""A bill: its lines sum to the counter exactly, by any labels, over any time, however idle energy is shared."""

import gzip
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError
from loadgen.report.bill_terminal import bill_notes
from loadgen.results.bill import SHARES, ShareIdle, SpanOfTime, bill_of, bill_table, whole_shares
from loadgen.results.bill_boundary import bill_boundary
from loadgen.results.factors import Factors, factors_of
from loadgen.results.ledger_lines import EnginePeriod, LedgerLine, LedgerPeriod, LedgerStart, SettledRequest
from loadgen.results.read_ledger import MAX_LINE

SECOND = 10**9
DAY = 86_400 * SECOND


def start(session: str = "s", file: int = 1, open_mj: int = 0, version: str = "1.0") -> LedgerStart:
    return LedgerStart(format_version=version, loadgen_version="0", session=session, file=file, open_mj=open_mj)


def request(workload: str, mj: int, tokens: int | None = 10, se_mj: int | None = 3, **more: object) -> SettledRequest:
    return msgspec.structs.replace(
        SettledRequest(
            id="r", model="m", workload=workload, engine=None, ok=True, begin_unix_ns=0, first_token_unix_ns=None,
            end_unix_ns=0, settled_unix_ns=0, input_tokens=tokens, output_tokens=tokens, cached_tokens=1,
            prefill_mj=mj // 3, decode_mj=mj - mj // 3, se_mj=se_mj, whole=True,
        ), **more)  # fmt: skip


def period(to_s: int, of_requests: int, requests: int, idle_mj: int = 0, other_mj: int = 0, open_mj: int = 0,
           before_mj: int = 0) -> LedgerPeriod:  # fmt: skip
    return LedgerPeriod(
        from_unix_ns=(to_s - 1) * SECOND, to_unix_ns=to_s * SECOND, idle_mj=idle_mj, unattributed_mj=other_mj,
        counter_mj=of_requests + idle_mj + other_mj + open_mj - before_mj, open_mj=open_mj, requests=requests,
    )  # fmt: skip


def write(folder: Path, name: str, *lines: LedgerLine) -> Path:
    path = folder / name
    path.write_bytes(msgspec.json.Encoder().encode_lines(lines))
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Chat and code over two days; 50 mJ go from the first period to the second."""
    write(
        tmp_path, "a.jsonl", start(),
        request("chat", 100), request("code", 301, tokens=30), period(10, 401, 2, idle_mj=99, other_mj=7, open_mj=50),
        request("chat", 80, ok=False), period(86_410, 80, 1, idle_mj=1, before_mj=50),
    )  # fmt: skip
    return tmp_path


@pytest.fixture
def two_engines(tmp_path: Path) -> Path:
    """Engine p computes prompts for engine d; a period of a ledger before engines had names; 5 mJ of lost requests."""
    of_engines = (
        EnginePeriod(engine="p", counter_mj=100 + 30, idle_mj=20, unattributed_mj=10),
        EnginePeriod(engine="d", counter_mj=200 + 75, idle_mj=70, unattributed_mj=0),
    )
    lost = msgspec.structs.replace(period(20, 305, 1, idle_mj=90, other_mj=10), lost_mj=5, lost_requests=1)
    write(
        tmp_path, "a.jsonl", start(),
        request("chat", 9, engine="old:8000"), period(10, 9, 1, idle_mj=4),
        request("chat", 300, engine="d", prefill_engine="p"), msgspec.structs.replace(lost, engines=of_engines),
    )  # fmt: skip
    return tmp_path


ROWS: dict[str, dict[tuple[str, str | None], int]] = {
    "none": {
        ("requests", "p"): 100, ("requests", "d"): 200, ("requests", "old:8000"): 9,
        ("idle", "p"): 20, ("idle", "d"): 70, ("idle", None): 4,
        ("unattributed", "p"): 10, ("unattributed", "d"): 0, ("unattributed", None): 5, ("unsettled", None): 0,
    },
    "by-energy": {
        ("requests", "p"): 121, ("requests", "d"): 273, ("requests", "old:8000"): 9,
        ("idle", "p"): 0, ("idle", "d"): 0,
        ("unattributed", "p"): 10, ("unattributed", "d"): 0, ("unattributed", None): 5, ("unsettled", None): 0,
    },
}  # fmt: skip
"""The 4 mJ that are of no engine are shared by all: 1 mJ of p, 3 of d, and the rest of old:8000 is less than a half."""


@pytest.mark.parametrize("share", ROWS)
def test_a_bill_by_engine_has_the_prefills_of_one_and_the_decodes_of_the_other_and_the_idle_energy_of_each(
    two_engines: Path, share: ShareIdle
) -> None:
    bill = bill_of(two_engines, ("engine",), share_idle=share)
    rows = list(bill_table(bill).rows())
    assert {(row["account"], row["engine"]): row["energy_mj"] for row in rows} == ROWS[share]
    assert sum(row["energy_mj"] for row in rows) == bill.counter_mj
    assert [bill.groups[name,].requests for name in ("p", "d")] == [0, 1]
    assert [bill.groups[name,].se_mj for name in ("p", "d")] == [3, 3], "at most that of the request"
    assert [(bill.groups[name,].prefill_mj, bill.groups[name,].decode_mj) for name in ("p", "d")] == [
        (100, 0),
        (0, 200),
    ]


def test_a_bill_by_other_labels_has_one_line_for_idle_energy(two_engines: Path) -> None:
    rows = {(row["account"], row["workload"]): row["energy_mj"] for row in bill_table(bill_of(two_engines)).rows()}
    assert rows == {
        ("requests", "chat"): 309, ("idle", None): 94, ("unattributed", None): 15, ("unsettled", None): 0
    }  # fmt: skip
    shared = bill_of(two_engines, share_idle="by-energy")
    assert (shared.groups["chat",].energy_mj, shared.groups["chat",].se_mj, shared.idle_mj) == (403, 6, 0)


def test_a_bill_sums_to_the_counter_with_idle_and_unattributed_as_lines(ledger: Path) -> None:
    bill = bill_of(ledger)
    rows = {(row["account"], row["workload"]): row["energy_mj"] for row in bill_table(bill).rows()}
    assert rows == {
        ("requests", "code"): 301,
        ("requests", "chat"): 180,
        ("idle", None): 100,
        ("unattributed", None): 7,
        ("unsettled", None): 0,
    }
    assert bill.counter_mj == sum(rows.values()) == 588
    chat = bill.groups["chat",]
    assert (chat.requests, chat.failed, chat.input_tokens, chat.cached_tokens, chat.se_mj) == (2, 1, 20, 2, 6)


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        (("model",), {("m",): 481}),
        (("engine",), {("",): 481}),
        (("day", "workload"), {("1970-01-01", "chat"): 100, ("1970-01-01", "code"): 301, ("1970-01-02", "chat"): 80}),
    ],
)
def test_a_bill_is_by_any_labels(ledger: Path, by: tuple[str, ...], groups: dict[tuple[str, ...], int]) -> None:
    assert {key: group.energy_mj for key, group in bill_of(ledger, by).groups.items()} == groups


@pytest.mark.parametrize(
    ("from_s", "to_s", "counter_mj", "unsettled_mj"),
    [(None, None, 588, 0), (10, 11, 557, 50), (11, None, 31, -50), (None, 10, 0, 0), (None, 86_410, 557, 50)],
)
def test_a_bill_of_a_time_is_the_counter_of_the_periods_that_end_in_it(
    ledger: Path, from_s: int | None, to_s: int | None, counter_mj: int, unsettled_mj: int
) -> None:
    span = SpanOfTime(from_s and from_s * SECOND, to_s and to_s * SECOND)
    bill = bill_of(ledger, span=span)
    assert (bill.counter_mj, bill.unsettled_mj) == (counter_mj, unsettled_mj)


@pytest.mark.parametrize(
    ("share", "idle"), [("none", (0, 0, 100)), ("by-tokens", (40, 60, 0)), ("by-energy", (37, 63, 0))]
)
def test_idle_energy_is_shared_as_it_is_stated_to_the_millijoule(
    ledger: Path, share: str, idle: tuple[int, ...]
) -> None:
    bill = bill_of(ledger, share_idle=share)  # type: ignore[arg-type]
    assert (bill.groups["chat",].idle_mj, bill.groups["code",].idle_mj, bill.idle_mj) == idle


def test_idle_energy_that_nobody_can_share_stays_idle(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", start(), period(1, 0, 0, idle_mj=5))
    assert [bill_of(tmp_path, share_idle=share).idle_mj for share in SHARES] == [5, 5, 5]


@given(st.integers(0, 10**30), st.lists(st.integers(0, 10**20), min_size=1).filter(sum))
def test_whole_shares_sum_to_the_whole_and_are_the_exact_ones_rounded(total: int, weights: list[int]) -> None:
    shares = whole_shares(total, weights)
    assert sum(shares) == total
    assert all(
        abs(share * sum(weights) - total * weight) < sum(weights) for share, weight in zip(shares, weights, strict=True)
    )


def test_an_unknown_error_of_a_request_is_in_no_sum_and_counted(tmp_path: Path) -> None:
    chats = [request("chat", mj, se_mj=se_mj) for mj, se_mj in ((10, None), (20, 3), (30, 4))]
    write(tmp_path, "a.jsonl", start(), *chats, request("code", 5, se_mj=None), period(1, 65, 4))
    rows = [row for row in bill_table(bill_of(tmp_path)).rows() if row["account"] == "requests"]
    shown = [(row["workload"], row["max_se_mj"], row["without_error"]) for row in rows]
    assert shown == [("chat", 7, 1), ("code", None, 1)]
    assert any("2 requests with an unknown standard error" in note for note in bill_notes(bill_of(tmp_path)))


def test_unknown_tokens_are_in_no_sum_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", start(), request("chat", 10, tokens=None), request("chat", 20), period(1, 30, 2))
    chat = bill_of(tmp_path).groups["chat",]
    assert (chat.without_tokens, chat.input_tokens) == (1, 10)


def test_a_file_may_be_compressed(ledger: Path) -> None:
    plain = ledger / "a.jsonl"
    (ledger / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(LoadgenError, match=r"a\.jsonl\.gz is the same part of the ledger as a\.jsonl: remove one"):
        bill_of(ledger)
    plain.unlink()
    assert bill_of(ledger).counter_mj == 588


@pytest.mark.parametrize("cut", range(1, 2_000, 97))
def test_a_file_that_ends_anywhere_is_read_up_to_its_last_whole_period(ledger: Path, cut: int) -> None:
    path = ledger / "a.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * cut // 2_000])
    bill = bill_of(ledger)
    assert bill.counter_mj in (0, 557)
    assert bill.torn == 1 or bill.groups == {} or path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([b"{}"], r"a.jsonl:1: not a line of a ledger: .*kind"),
        ([b"\xff\xfe"], r"a.jsonl:1: not a line of a ledger"),
        ([b"[" * 10_000], r"a.jsonl:1: not a line of a ledger"),
        ([b"x" * (MAX_LINE + 1)], r"a.jsonl:1: a line of more than 131,072 bytes"),
        ([period(1, 0, 0)], r"a.jsonl:1: a ledger's file begins with one line of the kind start"),
        ([start(), start()], r"a.jsonl:2: a ledger's file begins with"),
        ([start(version="2.0")], r"a.jsonl:1: format '2.0' is not read by this version"),
        ([start(), period(1, 5, 0)], r"a.jsonl:2: the period is not its parts: 5 mJ of its counter are in no line"),
        ([start(), request("chat", 5), period(1, 5, 2)], r"a.jsonl:3: the period has 2 requests, and 1 lines of them"),
        ([start(), msgspec.structs.replace(period(1, 0, 0), engines=(EnginePeriod(engine="a", idle_mj=1),))],
         r"a.jsonl:2: the period is not the sum of its engines"),
        ([start(), msgspec.structs.replace(period(1, 0, 0), engines=(EnginePeriod(engine="a"),) * 257)],
         r"a.jsonl:2: not a line of a ledger: .*<= 256"),
        ([start(), msgspec.structs.replace(period(1, 0, 0), to_unix_ns=-1)], r"a.jsonl:2: the period ends before it"),
        ([start(), msgspec.structs.replace(period(1, 0, 0), idle_mj=-1)], r"a.jsonl:2: not a line of a ledger.*>= 0"),
        ([start(), msgspec.structs.replace(request("chat", 5), workload="x" * 257)], r"a.jsonl:2: .*<= 256"),
        ([start(), request("chat", 2**65)], r"a.jsonl:2: not a line of a ledger"),
        ([start(), msgspec.structs.replace(period(1, 0, 0), to_unix_ns=2**64 - 1)], r"a.jsonl:2: .*to_unix_ns"),
        ([b'{"kind":"' + b"x" * 9_000 + b'"}'], r"a.jsonl:1: not a line of a ledger: .*xxx"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_one_line_with_the_file_and_the_line(
    tmp_path: Path, lines: list[bytes | LedgerLine], problem: str
) -> None:
    encoded = [line if isinstance(line, bytes) else msgspec.json.encode(line) for line in lines]
    (tmp_path / "a.jsonl").write_bytes(b"".join(line + b"\n" for line in encoded))
    with pytest.raises(LoadgenError, match=problem) as refused:
        bill_of(tmp_path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(LoadgenError, match=r"a\.jsonl: it is no file"):
        bill_of(tmp_path)


def test_a_folder_without_a_ledger_and_a_label_that_is_none_are_refused(tmp_path: Path) -> None:
    for folder, problem in ((tmp_path, "holds no ledger"), (tmp_path / "none", "cannot read the ledger")):
        with pytest.raises(LoadgenError, match=problem):
            bill_of(folder)
    for by in (("energy_mj",), ("day", "day"), ("",)):
        with pytest.raises(LoadgenError, match="a bill is by labels, each once and no column of it, not by"):
            bill_of(tmp_path, by)


def test_a_bill_is_by_the_labels_of_the_users_choosing(tmp_path: Path) -> None:
    lines = (request("chat", 10, labels={"tenant": "a"}), request("chat", 20, labels={}), period(1, 30, 2))
    write(tmp_path, "a.jsonl", start(), *lines)
    groups = bill_of(tmp_path, ("tenant",)).groups
    assert {key: group.energy_mj for key, group in groups.items()} == {("a",): 10, ("",): 20}
    with pytest.raises(LoadgenError, match=r"no request of the bill has a label 'user': it can be by .*day, tenant"):
        bill_of(tmp_path, ("tenant", "user"))


def test_the_number_of_lines_is_bounded(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.results.bill.MAX_GROUPS", 1)
    with pytest.raises(LoadgenError, match="more than 1 lines by workload: bill by fewer labels"):
        bill_of(ledger)


def test_each_line_is_priced_and_the_lines_sum_to_the_boundary(ledger: Path) -> None:
    factors = Factors(pue=1.5, grid_intensity=360.0, grid_source="made up", price=7.2)
    bill = bill_of(ledger, share_idle="by-energy", factors=factors)
    rows, boundary = list(bill_table(bill).rows()), bill_boundary(bill)
    for name, total in (
        ("total_joules", boundary.total_joules), ("co2e_grams", boundary.co2e_grams), ("cost", boundary.cost)
    ):  # fmt: skip
        assert sum(row[name] for row in rows) == pytest.approx(total)
    assert boundary.total_joules == pytest.approx(0.588 * 1.5)
    assert boundary.cost == pytest.approx(0.588 * 1.5 / 3.6e6 * 7.2)
    assert boundary.cost_per_million_output_tokens == pytest.approx(boundary.cost * 1e6 / 50)
    parts = {part.part: part.joules for part in boundary.parts}
    assert parts["idle"] == 0.1, "shared idle energy is idle all the same"
    assert parts["overhead"] == pytest.approx(0.588 / 2)
    assert (parts["host"], parts["chassis"]) == (None, None)


def test_what_is_not_stated_is_unknown(ledger: Path) -> None:
    bill = bill_of(ledger)
    assert {(row["co2e_grams"], row["cost"]) for row in bill_table(bill).rows()} == {(None, None)}
    boundary = bill_boundary(bill)
    assert (boundary.total_joules, boundary.co2e_grams, boundary.cost) == (0.588, None, None)


@pytest.mark.parametrize(
    ("sources", "basis", "note"),
    [
        ([], "measured", "the ledger names no source"),
        (["gpu:0 (nvml-counter)"], "measured", "gpu:0 (nvml-counter)"),
        (["gpu:0 (nvml-counter)", "gpu:1 (simulated)"], "simulated", "gpu:0 (nvml-counter), gpu:1 (simulated)"),
        (["cpu:all (estimate)"], "estimated", "cpu:all (estimate)"),
    ],
)
def test_the_boundary_names_the_sources_in_a_ledger(sources: list[str], basis: str, note: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", msgspec.structs.replace(start(), sources=sources), period(1, 0, 0, idle_mj=1))
    accelerator = bill_boundary(bill_of(tmp_path)).parts[0]
    assert (accelerator.basis, accelerator.note) == (basis, note)


@pytest.mark.parametrize(
    "stated", [{"pue": 0.9}, {"price": 0}, {"price": float("nan")}, {"grid_intensity": float("inf")}, {"pue": "x"}]
)
def test_a_factor_that_is_none_is_refused_by_its_name(stated: dict[str, object]) -> None:
    with pytest.raises(LoadgenError, match=f"{next(iter(stated))}: Expected"):
        factors_of(**stated)

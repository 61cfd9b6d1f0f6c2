"""What a run shows while it lasts: in one line for logs, and in a few lines in place on a terminal."""

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console

from loadgen.errors import LoadgenError
from loadgen.report import progress_view
from loadgen.report.progress_view import LiveView, PlainView, line, panel, server_line, stage_text
from loadgen.run.progress import NullView, Percentiles, Progress, Stage, Waiting

SENDING = Stage("sending")
DRAINING = Stage("draining", hint="Ctrl-C again to abort")
STARTING = Stage("waiting for vllm to load the model", waited_s=12.4, detail="Loading shards: 25%")
NOW = Progress(
    target="llama at http://127.0.0.1:8000/v1 (vllm)",
    limits_ms={"ttft": 200.0, "tpot": 50.0},
    scheduled=400,
    sent=181,
    in_flight=12,
    completed=165,
    failed=4,
    output_tokens=31_234,
    tokens_per_s=412.3,
    watts=356.2,
    joules_per_token=0.863,
    elapsed_s=45.2,
    total_s=120.0,
    errors={"timeout": 1, "http": 3},
    goodput=0.9375,
    ttft_s=Percentiles(0.0351, 0.2404),
    tpot_s=Percentiles(0.012, 0.0404),
    e2e_s=Percentiles(1.204, 3.1),
    oldest=((Waiting(17, 0, False), 41.4), (Waiting(30, 0, True), 8.0), (Waiting(31, 0, True), 7.6)),
)
UNKNOWN = replace(
    NOW,
    limits_ms={},
    tokens_per_s=None,
    watts=None,
    joules_per_token=None,
    errors={},
    goodput=None,
    ttft_s=Percentiles(None, None),
    tpot_s=Percentiles(None, None),
    e2e_s=Percentiles(None, None),
)


def console(terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=80, force_terminal=terminal), out


def rows(stage: Stage, progress: Progress | None, width: int = 80) -> list[str]:
    return panel(stage, progress, "chat", width).plain.splitlines()


# -- one line ---------------------------------------------------------------------------------------------------------


def test_one_line_holds_every_number() -> None:
    assert line(SENDING, NOW) == (
        "45 of 120 s: sent 181/400, in flight 12, completed 165, failed 4 (http 3, timeout 1), "
        "TTFT p50 35.1 ms p99 240 ms (limit 200 ms), TPOT p50 12.0 ms p99 40.4 ms (limit 50.0 ms), "
        "E2E p50 1.20 s p99 3.10 s, 412 tokens/s, 356 W, 0.863 J/token, goodput 93.8 %"
    )


def test_unknown_is_not_zero() -> None:
    text = line(SENDING, UNKNOWN)
    assert text.endswith("TTFT p50 - p99 -, TPOT p50 - p99 -, E2E p50 - p99 -, - tokens/s, - W, - J/token")
    assert "goodput" not in text


STAGES: list[tuple[Stage, Progress | None, str]] = [
    (Stage("starting sim"), None, "starting sim"),
    (STARTING, None, "waiting for vllm to load the model, 12 s: Loading shards: 25%"),
    (Stage("waiting for the first answer", waited_s=0.4), None, "waiting for the first answer"),
    (Stage("waiting for the first answer", waited_s=12.0), None, "waiting for the first answer, 12 s"),
    (Stage("counting prompts", 0, 400), None, "counting prompts 0 of 400"),
    (Stage("counting prompts", 120, 400, waited_s=30.0), None, "counting prompts 120 of 400, about 1:10 left"),
    (Stage("warming up", 3, 5, waited_s=0.5), None, "warming up 3 of 5"),
    (Stage("measuring idle", 1.23, 2.0, "s"), NOW, "measuring idle 1.2 of 2.0 s"),
    (SENDING, NOW, "sending to llama at http://127.0.0.1:8000/v1 (vllm)"),
    (Stage("draining"), NOW, "draining 12 (oldest 41 s, request 17)"),
    (DRAINING, NOW, "draining 12 (oldest 41 s, request 17); Ctrl-C again to abort"),
    (DRAINING, replace(NOW, oldest=()), "draining 12; Ctrl-C again to abort"),
    (Stage("attributing energy"), None, "attributing energy"),
]


@pytest.mark.parametrize(("stage", "progress", "text"), STAGES, ids=[row[2] for row in STAGES])
def test_a_stage_says_how_far_it_is(stage: Stage, progress: Progress | None, text: str) -> None:
    assert stage_text(stage, progress) == text


def test_a_drain_names_the_requests_that_it_waits_for() -> None:
    waiting = "waiting for requests 17 (41 s, no token yet), 30 (8 s, answering), 31 (8 s, answering)"
    assert line(DRAINING, NOW).endswith(f"; {waiting} and 9 more")
    assert line(DRAINING, replace(NOW, in_flight=3)).endswith(f"; {waiting}")
    assert f"{waiting} and 9 more" in rows(DRAINING, NOW)


HOSTILE = "\x1b[31mERROR\x1b[0m [bold]\u202ered\x07" + 400 * "x"


def test_lines_of_a_server_and_names_are_shown_without_control_characters_and_cut() -> None:
    shown = server_line(HOSTILE)
    assert shown.startswith("ERROR [bold] redx") and len(shown) == progress_view.MAX_SHOWN
    texts = [stage_text(SENDING, replace(NOW, target=HOSTILE)), *rows(SENDING, replace(NOW, target=HOSTILE))]
    assert all(text.isprintable() and len(text) <= progress_view.MAX_SHOWN + 20 for text in texts)


# -- several lines ----------------------------------------------------------------------------------------------------


def test_the_panel_shows_latencies_beside_their_limits() -> None:
    assert rows(SENDING, NOW) == [
        "chat: llama at http://127.0.0.1:8000/v1 (vllm)",
        "━━━━━━━━━━━━━━━━────────────────────────  0:45 of 2:00",
        "sending",
        "sent 181/400   in flight 12   done 165   failed 4",
        "412 tokens/s   356 W   0.863 J/token   goodput 93.8 %",
        "errors http 3, timeout 1",
        "         p50      p99      limit",
        "TTFT     35.1 ms  240 ms   200 ms  p99 over",
        "TPOT     12.0 ms  40.4 ms  50.0 ms",
        "E2E      1.20 s   3.10 s   ",
    ]


def test_before_the_first_request_the_panel_has_the_stage_and_the_server_s_last_line() -> None:
    assert rows(STARTING, None) == ["chat", "waiting for vllm to load the model, 12 s", "  Loading shards: 25%"]


def test_fifty_columns_are_enough_for_every_number() -> None:
    def words(shown: list[str]) -> list[str]:
        return [word for row in shown for word in row.split() if not set(word) <= set("━─")]

    narrow, wide = (rows(SENDING, NOW, width) for width in (50, 200))
    assert max(map(len, narrow[1:])) <= 50
    assert words(narrow) == words(wide)


def test_a_latency_over_its_limit_is_marked_in_words_and_colour() -> None:
    def styles(progress: Progress) -> set[str]:
        return {str(span.style) for span in panel(SENDING, progress, "", 80).spans}

    calm = replace(NOW, failed=0, errors={}, ttft_s=Percentiles(0.1, 0.2))
    assert not any("red" in style for style in styles(calm))
    assert "over" not in panel(SENDING, calm, "", 80).plain
    assert "bold red" in styles(NOW)


# -- views ------------------------------------------------------------------------------------------------------------


def every(step_s: float) -> Iterator[float]:
    """Yield the readings of a clock that is read once every `step_s`."""
    now_s = 0.0
    while True:
        yield now_s
        now_s += step_s


def test_plain_has_a_line_for_each_stage_and_one_every_five_seconds_and_the_last_numbers() -> None:
    to, out = console()
    now_s = 0.0
    with PlainView(to, lambda: now_s) as view:
        for tenths in range(123):
            now_s = tenths / 10
            view.update(Stage("warming up", tenths, 60)) if now_s < 6 else view.update(
                SENDING, replace(NOW, elapsed_s=now_s - 6)
            )
        view.update(DRAINING, NOW)
        view.update(Stage("writing the report"))
    shown = [text.split(", ")[0] for text in out.getvalue().splitlines()]
    assert shown == [
        "warming up 0 of 60",
        "warming up 50 of 60",
        "sending to llama at http://127.0.0.1:8000/v1 (vllm)",
        "5 of 120 s: sent 181/400",
        "6 of 120 s: sent 181/400",
        "draining 12 (oldest 41 s",
        "writing the report",
    ]


def test_plain_shows_the_last_numbers_of_a_run_that_fails() -> None:
    to, out = console()
    with pytest.raises(LoadgenError), PlainView(to, lambda: 0.0) as view:
        view.update(SENDING, NOW)
        view.update(SENDING, NOW)
        raise LoadgenError("disk full")
    assert out.getvalue().splitlines()[1:] == [line(SENDING, NOW)]


def test_live_draws_at_most_five_times_a_second_and_leaves_the_screen_clean() -> None:
    to, out = console(terminal=True)
    now_s = 0.0
    with LiveView(to, "chat.jsonl [bold]", lambda: now_s) as view:
        for hundredths in range(0, 100, 5):
            now_s = hundredths / 100
            view.update(SENDING, NOW)
    drawn_at_exit = 1
    assert out.getvalue().count("181/400") == 5 + drawn_at_exit
    assert "[bold]" in out.getvalue()
    assert out.getvalue().endswith("\x1b[1A\x1b[2K")


def test_live_draws_a_new_stage_at_once() -> None:
    to, out = console(terminal=True)
    with LiveView(to, "", lambda: 0.0) as view:
        view.update(Stage("draining"), NOW)
        assert "draining 12" in out.getvalue()
        view.update(DRAINING, NOW)
        assert "Ctrl-C again to abort" in out.getvalue()


def test_live_leaves_the_screen_usable_when_the_run_fails() -> None:
    to, out = console(terminal=True)
    with pytest.raises(KeyboardInterrupt), progress_view.view("live", to) as view:
        view.update(SENDING, NOW)
        raise KeyboardInterrupt
    shown, hidden = "\x1b[?25h", "\x1b[?25l"
    assert out.getvalue().rindex(shown) > out.getvalue().rindex(hidden)


@pytest.mark.parametrize("ui", ["live", "plain"])
def test_a_view_can_be_opened_again(ui: str) -> None:
    to, out = console(terminal=True)
    view = progress_view.view(ui, to)
    for name in ("stopping sim", "attributing energy"):
        with view:
            view.update(Stage(name))
        assert name in out.getvalue()


@pytest.mark.parametrize(
    ("ui", "terminal", "kind"),
    [
        ("auto", True, LiveView),
        ("auto", False, PlainView),
        ("live", False, LiveView),
        ("plain", True, PlainView),
        ("none", True, NullView),
    ],
)
def test_which_view(ui: str, terminal: bool, kind: type) -> None:
    assert isinstance(progress_view.view(ui, console(terminal)[0]), kind)


@pytest.mark.parametrize("terminal", [True, False])
def test_one_of_many_jobs_has_a_live_view_on_a_terminal_and_a_line_in_a_log(terminal: bool) -> None:
    to, out = console(terminal)
    with progress_view.view_of_many(to)("run 3 of 8, a-chat-r0") as view:
        for name in ("starting sim", "sending"):
            view.update(Stage(name))
        view.say("the API is at http://h/v1")
    if terminal:
        assert "run 3 of 8, a-chat-r0" in out.getvalue() and "sending" in out.getvalue()
    else:
        assert out.getvalue() == "run 3 of 8, a-chat-r0\nloadgen: the API is at http://h/v1\n"


def test_a_closed_loop_has_no_end_to_count_to() -> None:
    assert "0:07 of 0:30" in panel(SENDING, replace(NOW, elapsed_s=7.0, total_s=30.0), "", 80).plain
    assert "0:07\n" in panel(SENDING, replace(NOW, elapsed_s=7.0, total_s=0.0), "", 80).plain


@pytest.mark.parametrize(("ui", "shown"), [("live", 1), ("plain", 1), ("none", 0)])
def test_a_line_stays_and_is_logged_once(ui: str, shown: int, caplog: pytest.LogCaptureFixture) -> None:
    to, out = console(terminal=True)
    with caplog.at_level("INFO", "loadgen"), progress_view.view(ui, to) as view:
        view.say("the API is at [red]/v1")
    assert out.getvalue().count("loadgen: the API is at [red]/v1") == shown
    assert [hasattr(entry, "printed") for entry in caplog.records] == [bool(shown)]


@pytest.mark.parametrize("width", [80, 50])
def test_what_a_stage_waits_for_is_shown_whole_below_it(width: int) -> None:
    hint = "waiting for an answer of http://127.0.0.1:18901/v1; Ctrl-C ends the wait"
    name, *rows = panel(Stage("asking which model it serves", hint=hint), None, "", width).plain.split("\n")
    assert name == "asking which model it serves"
    assert " ".join(row.strip() for row in rows) == hint
    assert max(map(len, rows)) <= width


def test_none_says_nothing() -> None:
    to, out = console(terminal=True)
    with progress_view.view("none", to) as view:
        view.update(SENDING, NOW)
    assert out.getvalue() == ""


def test_an_unknown_view_is_an_error_in_one_line() -> None:
    with pytest.raises(LoadgenError, match="auto, live, plain, none"):
        progress_view.view("fancy", console()[0])

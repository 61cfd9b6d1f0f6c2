import io
from dataclasses import replace

import pytest
from rich.console import Console

from loadgen.errors import LoadgenError
from loadgen.report import progress_view

NOW = progress_view.Progress(
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
    remaining_s=74.8,
)


def console(terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=80, force_terminal=terminal), out


def test_one_line_holds_every_number() -> None:
    assert progress_view.line(NOW) == (
        "45 s: sent 181/400, in flight 12, completed 165, failed 4, 412 tokens/s, 356 W, 0.863 J/token, 1:15 left"
    )


def test_unknown_is_not_zero() -> None:
    told = progress_view.line(replace(NOW, tokens_per_s=None, watts=None, joules_per_token=None, remaining_s=None))
    assert told.endswith("- tokens/s, -, -/token, - left")


def test_plain_draws_every_five_seconds_and_once_at_the_end() -> None:
    to, out = console()
    with progress_view.view("plain", to) as view:
        for tenths in range(123):
            view.update(replace(NOW, elapsed_s=tenths / 10))
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["5", "10", "12"]


def test_live_draws_at_most_four_times_a_second_and_leaves_the_screen_clean() -> None:
    to, out = console(terminal=True)
    with progress_view.view("live", to, "chat.jsonl [bold]") as view:
        assert isinstance(view, progress_view.LiveView)
        for hundredths in range(0, 101, 5):
            view.update(replace(NOW, elapsed_s=hundredths / 100))
    drawn_at_exit = 1
    assert out.getvalue().count("181/400") == 5 + drawn_at_exit
    assert "[bold]" in out.getvalue()
    assert out.getvalue().endswith("\x1b[1A\x1b[2K")


def test_live_leaves_the_screen_usable_when_the_run_fails() -> None:
    to, out = console(terminal=True)
    with pytest.raises(KeyboardInterrupt), progress_view.view("live", to) as view:
        view.update(NOW)
        raise KeyboardInterrupt
    shown, hidden = "\x1b[?25h", "\x1b[?25l"
    assert out.getvalue().rindex(shown) > out.getvalue().rindex(hidden)


@pytest.mark.parametrize(
    ("ui", "terminal", "kind"),
    [
        ("auto", True, progress_view.LiveView),
        ("auto", False, progress_view.PlainView),
        ("live", False, progress_view.LiveView),
        ("plain", True, progress_view.PlainView),
        ("none", True, progress_view.NullView),
    ],
)
def test_which_view(ui: str, terminal: bool, kind: type) -> None:
    assert isinstance(progress_view.view(ui, console(terminal)[0]), kind)


def test_none_says_nothing() -> None:
    to, out = console(terminal=True)
    with progress_view.view("none", to) as view:
        view.update(NOW)
    assert out.getvalue() == ""


def test_an_unknown_view_is_an_error_in_one_line() -> None:
    with pytest.raises(LoadgenError, match="auto, live, plain, none"):
        progress_view.view("fancy", console()[0])

"""Record a run from the options of `loadgen replay`: the command and the library both do it here."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from loadgen.api.checked import checked
from loadgen.record import UNSTREAMED
from loadgen.results.run_folder import analysable_later, cannot_write
from loadgen.run.config import RunConfig
from loadgen.run.interrupts import Interruption, run_replay
from loadgen.run.progress import announcer, server_start
from loadgen.servers.launcher import served
from loadgen.workload.load import Load, planned_schedule
from loadgen.workload.sessions import settle_history
from loadgen.workload.sources import read_open_source
from loadgen.workload.words import WordsFile, stored_words

if TYPE_CHECKING:
    from loadgen.run.progress import View
    from loadgen.workload.schedule import Schedule
    from loadgen.workload.trace import Trace

LOAD_OPTIONS = frozenset(Load.__struct_fields__)
RUN_OPTIONS = frozenset(RunConfig.__struct_fields__) - {"plan", "words", "command"}


class RecordedRun(NamedTuple):
    """A run folder without its analysis, and the schedule as it was sent."""

    folder: Path
    schedule: Schedule


def record_run(
    options: Mapping[str, Any],
    view: View,
    *,
    source: Trace | bytes | None = None,
    stated: Collection[str] | None = None,
    command: Sequence[str] = (),
    interruption: Interruption | None = None,
) -> RecordedRun:
    """Make the run that `options` describe, by their names in LOAD_OPTIONS and RUN_OPTIONS, and `serve`.

    source: requests in memory in place of a trace, or JSON lines of them. stated: options that the user named; None:
    those that differ from their defaults. interruption: takes the place of Ctrl-C.
    Raises LoadgenError, and KeyboardInterrupt where it is interrupted before its first request.
    """
    load = load_of(options)
    run_options = {name: options[name] for name in RUN_OPTIONS & options.keys()}
    announce, serve = announcer(view), options["serve"]
    with ExitStack() as stack:
        announce("making the schedule")
        words, words_path = stack.enter_context(stored_words())
        if isinstance(source, bytes):
            source = read_lines(source, words, options["model"])
        schedule, plan = planned_schedule(load, words, options["model"], source=source, stated=stated, say=view.say)
        say_left_out(words, plan["trace"], view.say)
        plan |= load.limits | {"serve": serve, "stop": load.stop}
        if any(request.words for request in schedule.requests):
            run_options["words"] = words_path
        schedule, run_options["history"] = settle_history(schedule, options["history"], options["endpoint"])
        name = Path(plan["trace"]).name.split(".")[0]
        run_options["out"] = Path(options["out"] or stack.enter_context(_new_folder(name)))
        run_options |= {"plan": plan, "command": command}
        config = checked(run_options | {"base_url": options["base_url"] or ""}, RunConfig)
        stack.enter_context(analysable_later(config.out))
        if serve:
            model = ("--model", config.model) if config.model else ()
            show_start = server_start(view, serve)

            def progress(waited_s: float, line: str) -> None:
                if interruption:
                    interruption.check()
                show_start(waited_s, line)

            url = stack.enter_context(served(serve, *model, progress=progress))
            config = msgspec.structs.replace(config, base_url=url)
        if interruption:
            interruption.check()
        schedule = run_replay(schedule, config, view, interruption)
        if serve:
            announce(f"stopping {serve}")
    return RecordedRun(config.out, schedule)


def load_of(options: Mapping[str, Any]) -> Load:
    """Return the load that `options` describe, by their names in LOAD_OPTIONS. Raises LoadgenError."""
    stated = {name: options[name] for name in LOAD_OPTIONS & options.keys()}
    if options["input"] and options["endpoint"] in UNSTREAMED:
        stated["output"] = stated["output"] or "1"  # which no answer has
    return checked(stated, Load)


def say_left_out(words: WordsFile, name: str, say: Callable[[str], None]) -> None:
    """Say what of the requests of `name` could not be read, if anything."""
    if words.left_out:
        say(f"left out of {name}: {', '.join(f'{n} {what}' for what, n in words.left_out.items())}")


@contextmanager
def _new_folder(name: str) -> Iterator[Path]:
    """Make the folder runs/TIME-NAME, numbered if another run began in this second, and remove it if it stays empty."""
    first = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    made = [] if first.parent.exists() else [first.parent]
    for number in count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as err:
            raise cannot_write(folder, err) from err
    try:
        yield folder
    finally:
        with suppress(OSError):  # a run is in it
            for empty in (folder, *made):
                empty.rmdir()


def read_lines(lines: bytes, words: WordsFile, model: str | None) -> Trace:
    """Read requests as from a file of JSON lines."""
    with io.BufferedReader(io.BytesIO(lines)) as file:
        return read_open_source(Path("requests"), file, words, model=model)

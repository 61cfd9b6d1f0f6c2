"""loadgen search: find the most load within latency limits, and the load that costs fewest joules."""

import re
import signal
import sys
from pathlib import Path
from typing import Any

import click

from loadgen.cli.log import logged, say
from loadgen.cli.options import POSITIVE, FailureShare, SectionedCommand, options_of, refuse_second_server
from loadgen.cli.replay import command_words, replay

_UNITS_S = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


class Duration(click.ParamType[float]):
    """A duration written as 90s, 15m or 1h; a plain number is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        form = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", str(value).strip())
        if form is None or not 0 < (seconds := float(form[1]) * _UNITS_S[form[2] or ""]) <= 30 * 86_400:
            self.fail(f"{value!r} is not a time such as 90s, 15m or 1h", param, ctx)
        return seconds


class Share(click.ParamType[float]):
    """A share between 0 and 1, or above more than 0, written as 0.99 or as 99%."""

    name = "share"

    def __init__(self, above: float = 0.0) -> None:
        self._above = above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        form = re.fullmatch(r"(\d*\.?\d+)\s*(%?)", str(value).strip())
        if form is None or not self._above < (share := float(form[1]) / (100 if form[2] else 1)) < 1:
            bounds = f"above {100 * self._above:g}% and below 100%"
            self.fail(f"{value!r} is not a share {bounds}, such as 0.99 or 99%", param, ctx)
        return share


@click.command(
    cls=SectionedCommand,
    sections={
        "goodput": "What to find",
        "streams": "Load",
        "tokenizer": "Your own prompts and sessions",
        "base_url": "Server",
        "warmup": "Measurement",
        "out": "Output",
    },
)
@options_of(replay, "trace", "goodput")
@click.option(
    "--attainment",
    type=Share(),
    metavar="SHARE",
    help="Share of the requests that must be within every limit: 0.99 or 99%.  [default: 0.99; with --minimize any]",
)
@click.option(
    "--minimize",
    type=click.Choice(["joules_per_good_request"]),
    help="Find the rate at which this is smallest, instead of the largest rate.",
)
@click.option(
    "--budget",
    "budget_s",
    type=Duration(),
    default="10m",
    show_default=True,
    metavar="TIME",
    help="Longest time of the search, over all its sittings, with starts of the server and its warm-up: 90s, 15m, 1h.",
)
@click.option(
    "--width",
    type=Share(),
    default="10%",
    show_default=True,
    metavar="SHARE",
    help="The search ends when the interval of its answer is this narrow, relative to the answer.",
)
@click.option(
    "--confidence",
    type=Share(above=0.5),
    default="95%",
    show_default=True,
    metavar="SHARE",
    help="Confidence of the interval, above 50 %.",
)
@click.option(
    "--start",
    "start_rps",
    type=POSITIVE,
    metavar="RPS",
    help="First rate.  [default: 1; with --now that of each replica; with --over that of the best setting so far]",
)
@click.option("--max-rps", type=POSITIVE, metavar="RPS", help="Highest rate that is tried.")
@click.option(
    "--now",
    "now_rps",
    type=POSITIVE,
    metavar="RPS",
    help="Your load today: state what it costs, and what it would on fewer replicas.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    metavar="N",
    help="Servers that share the load of --now evenly, each like the one that is searched.",
)
@click.option(
    "--keep-idle", is_flag=True, help="With --now: replicas at rest draw idle power, instead of being switched off."
)
@options_of(replay, "streams", "input", "output")
@click.option(
    "--arrival",
    type=click.Choice(["poisson", "trace", "gamma", "constant"]),
    default="poisson",
    show_default=True,
    help="Arrival process; trace: the trace's own arrivals, compressed to the rate, at most one pass in a probe.",
)
@options_of(replay, "burstiness", "seed", "tags", "tokenizer", "count", "stop", "max_tokens", "history",
            "think")  # fmt: skip
@options_of(replay, "base_url", "serve")
@click.option(
    "--over",
    multiple=True,
    metavar="KEY=V1,V2",
    help="With --serve: search each of these values of an engine option, of several options their product, and find "
    "the best. A list in JSON has values with commas. Repeatable.",
)
@options_of(replay, "api_key", "model", "endpoint", "headers", "extra_body", "timeout_s")
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    metavar="N",
    help="Requests sent one by one before the first probe, not recorded.",
)
@options_of(replay, "processes")
@click.option(
    "--max-failed",
    type=FailureShare(),
    default="1%",
    show_default=True,
    help="A probe in which more requests fail says so: a share such as 1%, or a number such as 5. A failed request "
    "has missed its limits in any case.",
)
@options_of(replay, "energy", "gpus", "engines", "engine_headers", "idle_s", "share_host", "pue", "grid_intensity",
            "grid_source", "price")  # fmt: skip
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The search's folder. With that of an earlier one, the search goes on.  [default: runs/search-TRACE]",
)
@click.option("--json", "as_json", is_flag=True, help="Print search.json instead of the tables.")
@logged
def search(as_json: bool, **options: Any) -> None:
    """Find the largest rate at which a server keeps latency limits, by runs at chosen rates; with its interval.

    TRACE is what `loadgen replay` takes. Run the command again to continue where it stopped. DIR gets search.json and a
    run folder for each probe.

    \b
    loadgen search chat --serve sim --goodput ttft:500 --attainment 0.9 --budget 2m
    loadgen search chat --goodput ttft:200 --goodput tpot:50 --budget 15m
    loadgen search --stream chat:3 --stream code:1 --minimize joules_per_good_request --goodput ttft:500
    loadgen search chat --serve vllm --over max_num_seqs=64,256 --over prefix_caching=on,off --goodput ttft:200

    Exit status: 0 answered, or as far as the budget allowed; 1 no rate meets the limits; 2 invalid input or
    environment, or the server was lost; 130 stopped by Ctrl-C or SIGTERM.
    """  # fmt: skip
    from rich.console import Console

    from loadgen.api.record_search import folder_of, record_search
    from loadgen.report.progress_view import view_of_many
    from loadgen.report.search_terminal import print_search
    from loadgen.run.progress import NullView

    if options["serve"]:
        refuse_second_server()
    options["out"] = folder = folder_of(options)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without one
    try:
        result = record_search(
            options,
            say=say,
            view_of=(lambda title: NullView()) if as_json else view_of_many(Console(stderr=True)),
            command=command_words(None if options["serve"] else options["base_url"]),
        )
    except KeyboardInterrupt:
        click.echo(f"\nstopped; the same command goes on from here ({folder})", err=True)
        sys.exit(130)
    if as_json:
        click.echo((folder / "search.json").read_text(), nl=False)
    else:
        print_search(Console(), result)
        click.echo(f"\n{folder / 'search.json'}, {folder / 'report.html'}")
    if (result.best is None or len(result.settings) == 1) and any(s.ended == "server" for s in result.settings):
        sys.exit(2)
    if result.best is None and any(setting.ended == "fails" for setting in result.settings):
        sys.exit(1)

"""loadgen replay: send the requests of a trace, or of several streams, and measure them."""

import re
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from loadgen.cli.options import DEFAULT_URL, POSITIVE
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.workload.schedule import Schedule


class _KeyValue(click.ParamType[tuple[str, Any]]):
    """A pair written as KEY=VALUE, or as KEY:VALUE like in other tools."""

    name = "key:value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        key, mark, text = re.fullmatch(r"([^:=]*)([:=]?)(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
        if not mark or not key.strip():
            self.fail(f"{value!r} is not KEY:VALUE", param, ctx)
        return key.strip(), text.strip()


class Header(_KeyValue):
    """A header, whose name and value can be sent."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, text = super().convert(value, param, ctx)
        if not re.fullmatch(r"[!#-'*+\-.0-9A-Z^-z|~]+", name):
            self.fail(f"{name!r} is not the name of a header", param, ctx)
        if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text):
            self.fail(f"the value of header {name!r} holds a character that cannot be sent", param, ctx)
        return name, text


class _LatencyLimit(_KeyValue):
    """A limit written as METRIC:MS, in milliseconds."""

    name = "metric:ms"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        metric, limit = super().convert(value, param, ctx)
        if metric not in ("ttft", "tpot", "e2el"):
            self.fail(f"{metric!r} is none of ttft, tpot, e2el", param, ctx)
        try:
            if float(limit) > 0:
                return metric, float(limit)
        except ValueError:
            pass
        return self.fail(f"{limit!r} is not a number of milliseconds above 0", param, ctx)


class _FailureLimit(click.ParamType[str]):
    """A limit on failed requests, written as 1% or as 5."""

    name = "share|number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from loadgen.results.failure_limit import FailureLimit

        return FailureLimit.parse(value).text


def _as_dict(_: click.Context, __: click.Parameter, pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return dict(pairs)


def _json_object(_: click.Context, __: click.Parameter, text: str) -> dict[str, Any]:
    import msgspec

    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as err:
        raise LoadgenError(f"--extra-body {text!r} is not a JSON object: {err}") from err


@click.command()
@click.argument("trace", type=click.Path(path_type=Path), required=False)
@click.option(
    "--stream",
    "streams",
    multiple=True,
    metavar="NAME[=SOURCE][:RATE]",
    help="A stream of the TOML file given, or of traces/mix.toml (chat, code), or a workload profile, trace or bins. "
    "Repeatable.",
)
@click.option("--rps", "--request-rate", type=POSITIVE, help="Scale the trace to a mean of this many requests/s.")
@click.option(
    "--scale",
    type=click.Choice(["compress", "thin", "superpose"]),
    default="compress",
    show_default=True,
    help="How to bring a trace's own arrivals to --rps: compress time, leave requests out, or add shifted copies.",
)
@click.option(
    "--shape",
    metavar="SHAPE",
    help="Rate that changes, instead of --rps: ramp:FROM:TO:SECONDS, or step:RATE:RATE:...:SECONDS (each that long).",
)
@click.option(
    "--arrival",
    type=click.Choice(["trace", "poisson", "gamma", "constant"]),
    default="trace",
    show_default=True,
    help="Arrival process: the trace's own arrivals, or a process at --rps.",
)
@click.option(
    "--burstiness",
    type=POSITIVE,
    default=1.0,
    show_default=True,
    help="Shape of --arrival gamma: 1 is Poisson, smaller is burstier.",
)
@click.option("--duration", type=POSITIVE, metavar="S", help="Schedule this many seconds, then drain.")
@click.option(
    "--num-requests", "--num-prompts", type=click.IntRange(min=1), metavar="N", help="Schedule at most N requests."
)
@click.option(
    "--base-url",
    "--url",
    metavar="URL",
    envvar="OPENAI_BASE_URL",
    default=DEFAULT_URL,
    show_default=True,
    help="The server's API; also from $OPENAI_BASE_URL. Its query is part of every request; /v1 may be left out.",
)
@click.option("--serve", metavar="NAME", help="Start a server for this run: sim, llamacpp, vllm, ...")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Prefer to set $OPENAI_API_KEY. Never written to any file.")
@click.option("--model", help="Model to request.  [default: the server's only model]")
@click.option(
    "--endpoint", type=click.Choice(["chat", "completions"]), default="chat", show_default=True, help="API to call."
)
@click.option(
    "--header",
    "headers",
    type=Header(),
    multiple=True,
    callback=_as_dict,
    help="Header of every request, NAME:VALUE or NAME=VALUE. Repeatable.",
)
@click.option(
    "--extra-body",
    metavar="JSON",
    default="{}",
    callback=_json_object,
    help="Fields to add to the body of every request; null removes a field.",
)
@click.option(
    "--energy",
    metavar="SOURCE",
    default="auto",
    show_default=True,
    help="Energy source: auto, nvml, amd, rapl, cpu, none, or the URL of a sidecar or DCGM exporter beside the GPU.",
)
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    metavar="ID",
    help="Index or UUID of a GPU that the server uses. Repeatable.  [default: all visible]",
)
@click.option("--otlp", metavar="URL", help="Send an OTLP span for every request to this sidecar.")
@click.option(
    "--max-concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help="Maximum number of requests in flight; this closes the loop.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1, max=256),
    default=1,
    show_default=True,
    metavar="N",
    help="Split the schedule over N processes, if one is too slow for it.",
)
@click.option(
    "--goodput",
    type=_LatencyLimit(),
    multiple=True,
    callback=_as_dict,
    help="Latency limit in ms: ttft:200, tpot:50 or e2el:5000. Repeatable.",
)
@click.option(
    "--max-failed",
    type=_FailureLimit(),
    default="1%",
    show_default=True,
    help="Exit 1 when more requests fail: a share such as 1%, or a number of requests such as 5.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random draws.")
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Requests sent one by one before the run, not recorded.",
)
@click.option(
    "--idle",
    "idle_s",
    type=click.FloatRange(min=0, max=3600),
    default=2.0,
    envvar="LOADGEN_IDLE",
    show_default=True,
    metavar="S",
    help="Idle time measured before the first request: the baseline of the energy accounts.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=POSITIVE,
    default=600.0,
    show_default=True,
    metavar="S",
    help="Timeout of each request.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File tokenizer.json, to count the tokens of prompts.",
)
@click.option(
    "--stop",
    type=click.Choice(["auto", "length", "natural"]),
    default="auto",
    show_default=True,
    help="Where answers end: at the requested length, or where the model ends them; auto: at the length if the trace "
    "requests one.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Longest answer of a request that ends where the model ends it and states no limit of its own.",
)
@click.option("--keep-bodies", is_flag=True, help="Keep the words of the requests in the run folder, as bodies.jsonl.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder.  [default: runs/TIME-TRACE]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out.")
@click.option(
    "--ui",
    type=click.Choice(["auto", "live", "plain", "none"]),
    default="auto",
    show_default=True,
    help="Progress view; auto: live on a terminal.",
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of the tables.")
def replay(
    trace: Path | None,
    streams: tuple[str, ...],
    rps: float | None,
    scale: Any,
    shape: str | None,
    arrival: Any,
    burstiness: float,
    duration: float | None,
    num_requests: int | None,
    seed: int,
    serve: str | None,
    stop: Any,
    ui: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Replay TRACE, or a TOML file of streams, against a server; measure every request's latency and joules.

    \b
    loadgen replay traces/chat.jsonl --rps 4 --serve sim
    loadgen replay traces/code.jsonl --rps 2 --arrival poisson --duration 60 --goodput ttft:200 --goodput tpot:50
    loadgen replay --stream chat:3 --stream code:1 --duration 60

    Exit status: 0 done; 1 the run failed: the server died, no request completed, or more failed than --max-failed;
    2 invalid input or environment; 130 stopped by Ctrl-C or SIGTERM.
    """  # fmt: skip
    import msgspec
    from rich.console import Console

    from loadgen.report.progress_view import view
    from loadgen.run.config import RunConfig
    from loadgen.run.interrupts import run_replay
    from loadgen.servers.launcher import served
    from loadgen.workload.arrivals import points_of
    from loadgen.workload.schedule import build_schedule
    from loadgen.workload.sources import read_source
    from loadgen.workload.words import WordsFile

    arrivals: dict[str, Any] = {"rps": rps, "arrival": arrival, "burstiness": burstiness, "scale": scale}
    limits: dict[str, Any] = {"seed": seed, "duration_s": duration, "num_requests": num_requests}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="loadgen-words-")))
        words = WordsFile(stack.enter_context((folder / "bodies.jsonl").open("wb")))
        if streams or (trace and trace.suffix == ".toml"):
            schedule, plan = _schedule_streams(trace, streams, limits)
        elif trace:
            points = points_of(shape) if shape else None
            source = read_source(trace, words, num_requests)
            schedule = build_schedule(source, **arrivals, **limits, shape=points, stop=stop)
            plan = {"trace": str(trace), **arrivals, **limits, "shape": shape}
        else:
            raise LoadgenError("nothing to replay: give a TRACE, a TOML file of streams, or --stream chat:3")
        plan |= limits | {"serve": serve, "stop": stop}
        if any(request.words for request in schedule.requests):
            options["words"] = folder / "bodies.jsonl"
        name = Path(plan["trace"]).name.split(".")[0]
        out = options["out"] or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
        if serve:
            model = ("--model", options["model"]) if options["model"] else ()
            options["base_url"] = stack.enter_context(served(serve, *model))
        config = msgspec.convert(options | {"out": out, "plan": plan}, RunConfig)
        progress = view("none" if as_json else ui, Console(stderr=True), title=plan["trace"])
        run_replay(schedule, config, progress)
    # What a run needs only at its end does not delay its beginning.
    from loadgen.report.terminal import render_terminal
    from loadgen.report.write import finish

    result = finish(out, schedule)
    if as_json:
        click.echo((out / "summary.json").read_text(), nl=False)
    else:
        render_terminal(result, Console(), out)
    if result.info.stopped_by in ("interrupted", "aborted"):
        sys.exit(130)
    if result.summary is None or not result.summary.verdict.stands:
        sys.exit(1)


def _schedule_streams(
    file: Path | None, names: tuple[str, ...], limits: dict[str, Any]
) -> "tuple[Schedule, dict[str, Any]]":
    """Return the schedule of several streams, and how it was made. LoadgenError for an option that each stream has."""
    import msgspec

    from loadgen.workload.streams import chosen_streams, schedule_streams

    context = click.get_current_context()
    for name in ("rps", "arrival", "burstiness", "scale", "shape"):
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise LoadgenError(f"--{name} is for one trace; each stream has its own in the TOML file, or NAME:RATE")
    if file and file.suffix != ".toml":
        raise LoadgenError(f"{file} and --stream: give a trace, or streams; a trace is a stream as NAME={file}:RATE")
    streams = chosen_streams(names, file)
    stated = {
        name: {field: value for field, value in msgspec.to_builtins(stream).items() if value is not None}
        for name, stream in streams.items()
    }
    plan = {"trace": str(file) if file and not names else "+".join(streams), "streams": stated}
    return schedule_streams(streams, **limits), plan

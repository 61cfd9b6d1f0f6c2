"""loadgen replay TRACE, or streams: the main job."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen.cli.options import DEFAULT_URL, POSITIVE
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult
    from loadgen.run.replay import RunConfig
    from loadgen.workload.schedule import Schedule


class KeyValue(click.ParamType[tuple[str, str]]):
    """KEY=VALUE or KEY:VALUE, as other tools write it."""

    name = "key:value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        key, mark, rest = value.partition(":" if ":" in value else "=")
        if not mark or not key.strip():
            self.fail(f"{value!r} is not KEY:VALUE", param, ctx)
        return key.strip(), rest.strip()


class Slo(KeyValue):
    """METRIC:MS."""

    name = "metric:ms"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        metric, limit = super().convert(value, param, ctx)
        if metric not in ("ttft", "tpot", "e2el"):
            self.fail(f"{metric!r} is none of ttft, tpot, e2el", param, ctx)
        try:
            if float(limit) > 0:
                return metric, limit
        except ValueError:
            pass
        return self.fail(f"{limit!r} is not a number of milliseconds above 0", param, ctx)


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
    help="How a trace's own arrivals get to --rps: squeeze time, leave requests out, add shifted copies.",
)
@click.option(
    "--shape",
    metavar="SHAPE",
    help="A rate that changes, instead of --rps: ramp:FROM:TO:SECONDS, or step:RATE:RATE:...:SECONDS, each that long.",
)
@click.option(
    "--arrival",
    type=click.Choice(["trace", "poisson", "gamma", "constant"]),
    default="trace",
    show_default=True,
    help="Whose instants: the trace's own, or a process drawn at --rps.",
)
@click.option(
    "--burstiness",
    type=POSITIVE,
    default=1.0,
    show_default=True,
    help="Shape of --arrival gamma: 1 is Poisson, smaller is burstier.",
)
@click.option("--duration", type=POSITIVE, metavar="S", help="Schedule this many seconds, then drain.")
@click.option("--num-requests", "--num-prompts", type=click.IntRange(min=1), metavar="N", help="Schedule at most N.")
@click.option(
    "--base-url",
    "--url",
    metavar="URL",
    envvar="OPENAI_BASE_URL",
    default=DEFAULT_URL,
    show_default=True,
    help="The server's API; also from $OPENAI_BASE_URL.",
)
@click.option("--serve", metavar="NAME", help="Start a server for this run: sim, llamacpp, vllm, ...")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Better set in $OPENAI_API_KEY. Never written anywhere.")
@click.option("--model", help="Default: the server's only one, or what --serve serves.")
@click.option("--endpoint", type=click.Choice(["chat", "completions"]), default="chat", show_default=True)
@click.option("--header", "headers", type=KeyValue(), multiple=True, help="Sent with every request. Repeatable.")
@click.option("--extra-body", metavar="JSON", default="{}", help="Fields added to every request's body.")
@click.option(
    "--energy",
    metavar="SOURCE",
    default="auto",
    show_default=True,
    help="auto, nvml, amd, rapl, cpu, none, or the URL of a sidecar or DCGM exporter beside the GPU.",
)
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    metavar="ID",
    help="Index or UUID of a GPU the server uses. Repeatable. Default: all visible.",
)
@click.option("--otlp", metavar="URL", help="A sidecar that is told of every request, by OTLP spans.")
@click.option("--max-concurrency", type=click.IntRange(min=1), metavar="N", help="Closes the loop: said in the report.")
@click.option(
    "--processes",
    type=click.IntRange(min=1, max=256),
    default=1,
    show_default=True,
    metavar="N",
    help="Share the schedule out to N processes, when one is too slow for it.",
)
@click.option("--goodput", "slos", type=Slo(), multiple=True, help="Limit in ms: ttft:200, tpot:50, e2el:5000.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
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
@click.option("--timeout", type=POSITIVE, default=600.0, show_default=True, metavar="S", help="For each request.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), metavar="FILE", help="tokenizer.json to count prompts with."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder.  [default: runs/TIME-TRACE]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out.")
@click.option("--ui", type=click.Choice(["auto", "live", "plain", "none"]), default="auto", show_default=True)
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
    ui: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Replay TRACE, or a TOML file of streams, against a server; measure every request's latency and joules.

    \b
    loadgen replay traces/chat.jsonl --rps 4 --serve sim
    loadgen replay traces/code.jsonl --rps 2 --arrival poisson --duration 60 --goodput ttft:200 --goodput tpot:50
    loadgen replay --stream chat:3 --stream code:1 --duration 60
    """  # fmt: skip
    from rich.console import Console

    from loadgen.report.progress_view import view
    from loadgen.report.write import finish
    from loadgen.run.replay import replay as run
    from loadgen.servers.launcher import served

    plan: dict[str, Any] = {
        "rps": rps,
        "arrival": arrival,
        "burstiness": burstiness,
        "scale": scale,
        "shape": shape,
    }
    ends: dict[str, Any] = {"seed": seed, "duration_s": duration, "num_requests": num_requests}
    if streams or (trace and trace.suffix == ".toml"):
        _only_for_a_trace()
        schedule, asked = _streams(trace, streams, **ends)
    elif trace:
        schedule, asked = _trace(trace, **plan, **ends)
    else:
        raise LoadgenError("nothing to replay: give a TRACE, a TOML file of streams, or --stream chat:3")
    asked |= ends | {"serve": serve}
    out: Path = given.pop("out") or _default_out(asked["trace"])
    messages = Console(stderr=True)
    with ExitStack() as stack:
        if serve:
            model = ("--model", given["model"]) if given["model"] else ()
            given["base_url"] = stack.enter_context(served(serve, *model))
        options = _options(out, asked, **given)
        run(schedule, options, view("none" if as_json else ui, messages, title=asked["trace"]))
    result = finish(out, schedule)
    _show(result, out, as_json)
    if result.info.stopped_by in ("interrupted", "aborted"):
        sys.exit(130)


def _trace(trace: Path, *, shape: str | None, **plan: Any) -> "tuple[Schedule, dict[str, Any]]":
    """The plan of one trace, and what was asked for, for run.json."""
    from loadgen.workload.arrivals import points_of
    from loadgen.workload.schedule import build_schedule
    from loadgen.workload.trace import read_trace

    schedule = build_schedule(read_trace(trace), shape=points_of(shape) if shape else None, **plan)
    return schedule, {"trace": str(trace), **plan, "shape": shape}


def _streams(file: Path | None, names: tuple[str, ...], **ends: Any) -> "tuple[Schedule, dict[str, Any]]":
    """The same of streams."""
    import msgspec

    from loadgen.workload.streams import chosen_streams, schedule_streams

    if file and file.suffix != ".toml":
        raise LoadgenError(f"{file} and --stream: give a trace, or streams; a trace is a stream as NAME={file}:RATE")
    streams = chosen_streams(names, file)
    schedule = schedule_streams(streams, **ends)
    told = {name: {k: v for k, v in msgspec.to_builtins(stream).items() if v is not None}
            for name, stream in streams.items()}  # fmt: skip
    return schedule, {"trace": str(file) if file and not names else "+".join(streams), "streams": told}


def _only_for_a_trace() -> None:
    """A stream says itself how it comes; LoadgenError where a flag would say otherwise."""
    context = click.get_current_context()
    for name in ("rps", "arrival", "burstiness", "scale", "shape"):
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise LoadgenError(f"--{name} is for one trace; each stream has its own in the TOML file, or NAME:RATE")


def _default_out(trace: str) -> Path:
    from datetime import datetime

    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{Path(trace).name.split('.')[0]}"


def _options(out: Path, asked: dict[str, Any], **given: Any) -> "RunConfig":
    import msgspec

    from loadgen.client.server_probe import clean_url
    from loadgen.run.replay import RunConfig

    try:
        extra = msgspec.json.decode(given["extra_body"], type=dict[str, Any])
    except msgspec.DecodeError as err:
        raise LoadgenError(f"--extra-body {given['extra_body']!r} is not a JSON object: {err}") from err
    slos = {metric: float(limit) for metric, limit in given["slos"]}
    headers = dict(given["headers"])
    config = asked | {
        "base_url": clean_url(given["base_url"]),
        "goodput": slos,
        "headers": sorted(headers),
        "extra_body": extra,
        "processes": given["processes"],
        "tokenizer": str(given["tokenizer"]) if given["tokenizer"] else None,
        **{
            name: given[name]
            for name in ("model", "endpoint", "energy", "gpus", "max_concurrency", "warmup", "idle_s", "timeout")
        },
    }
    if given["otlp"]:
        config["otlp"] = clean_url(given["otlp"])
    if "://" in given["energy"]:
        config["energy"] = clean_url(given["energy"])
    return RunConfig(
        out=out,
        base_url=given["base_url"],
        api_key=given["api_key"],
        model=given["model"],
        endpoint=given["endpoint"],
        headers=headers,
        extra_body=extra,
        energy=given["energy"],
        gpus=given["gpus"],
        max_concurrency=given["max_concurrency"],
        timeout_s=given["timeout"],
        tokenizer=given["tokenizer"],
        warmup=given["warmup"],
        idle_s=given["idle_s"],
        overwrite=given["overwrite"],
        otlp=given["otlp"],
        processes=given["processes"],
        config=config,
    )


def _show(result: "RunResult", out: Path, as_json: bool) -> None:
    from rich.console import Console

    from loadgen.report import terminal

    if as_json:
        click.echo((out / "summary.json").read_text(), nl=False)
        return
    terminal.render_terminal(result, Console(), out)

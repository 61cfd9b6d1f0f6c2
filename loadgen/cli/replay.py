"""loadgen replay: send the requests of a trace, or of several streams, and measure them."""

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen.cli.log import logged
from loadgen.cli.options import (
    ENERGY_NAMES,
    FILE,
    POSITIVE,
    SERVER_NAMES,
    STREAM_NAMES,
    TRACE_NAMES,
    FailureShare,
    FiniteRange,
    Header,
    LatencyLimit,
    SectionedCommand,
    as_dict,
    boundary_options,
    json_object,
    key_values,
    refuse_second_server,
)
from loadgen.client import DEFAULT_URL
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.results.run_folder import RunResult


@click.command(
    cls=SectionedCommand,
    sections={
        "streams": "Load",
        "tokenizer": "Your own prompts and sessions",
        "timing": "Agent sessions",
        "base_url": "Server",
        "goodput": "Limits",
        "warmup": "Measurement",
        "energy": "Energy",
        "out": "Output",
    },
)
@click.argument(
    "trace",
    required=False,
    shell_complete=TRACE_NAMES,
)
@click.option(
    "--stream",
    "streams",
    multiple=True,
    metavar="NAME[=SOURCE][:RATE]",
    shell_complete=STREAM_NAMES,
    help="A stream of the TOML file given, or of traces/mix.toml (chat, code), or a workload profile, trace or bins. "
    "Repeatable.",
)
@click.option(
    "--input",
    metavar="LENGTH",
    help="Made-up prompts of this many tokens, instead of a trace: 512, uniform:LOW:HIGH, normal:MEAN:SD, "
    "lognormal:MEDIAN:SIGMA or exponential:MEAN.",
)
@click.option("--output", metavar="LENGTH", help="Tokens of the answers to such prompts, like --input.")
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
@click.option("--duration", "duration_s", type=POSITIVE, metavar="S", help="Schedule this many seconds, then drain.")
@click.option(
    "--num-requests", "--num-prompts", type=click.IntRange(min=1), metavar="N", help="Schedule at most N requests."
)
@click.option(
    "--max-concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help="Maximum number of requests in flight; this closes the loop.",
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    callback=key_values,
    metavar="NAME=VALUE",
    help="Tag of every request, such as tenant=a, unless its stream or its line of the trace has its own: the run is "
    "summed up by it. Repeatable.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random draws.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File tokenizer.json, to count the tokens of prompts; chats by the chat template beside it.",
)
@click.option(
    "--count",
    type=click.Choice(["auto", "none", "all"]),
    default="auto",
    show_default=True,
    help="Count the tokens of your own prompts before the run, by the server's tokenizer or else by --tokenizer. auto: "
    "up to 10,000 prompts, where the trace states no length; all: every prompt.",
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
@click.option(
    "--history",
    type=click.Choice(["recorded", "live"]),
    help="The answers that a later turn of a session is sent with: the trace's, or those just received.  [default: "
    "recorded; live where a line has only its new messages]",
)
@click.option(
    "--think",
    metavar="LAW",
    help="Seconds between an answer and the next turn of its session: constant:S, exponential:MEAN, "
    "lognormal:MEAN:SIGMA, or trace: the time between the timestamps.  [default: none]",
)
@click.option(
    "--timing",
    type=click.Choice(["recorded", "think", "afap"]),
    help="Instants of the requests of recorded agent sessions: their own, a think time after the answers before them, "
    "or at once after these.  [default: think]",
)
@click.option(
    "--speedup", type=POSITIVE, default=1.0, show_default=True, metavar="X", help="Divide their recorded times by X."
)
@click.option(
    "--sessions-rate", type=POSITIVE, metavar="R", help="Mean sessions/s, as a Poisson process, instead of --rps."
)
@click.option(
    "--concurrent-sessions",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep N sessions alive: when one is over the next starts.",
)
@click.option(
    "--session-start",
    type=click.Choice(["beginning", "middle"]),
    default="beginning",
    show_default=True,
    help="Start agent sessions at their first turn, or at a random one, its history in the server's cache. With "
    "--concurrent-sessions the first N start there.",
)
@click.option(
    "--too-long",
    type=click.Choice(["refuse", "leave-out", "cut"]),
    default="refuse",
    show_default=True,
    help="When a request is longer than the model's context: refuse the run, leave its session out, or end the session "
    "before it.",
)
@click.option(
    "--max-context",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="The model's context, where the server does not report it, or less is wanted.",
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
@click.option(
    "--serve",
    metavar="NAME",
    shell_complete=SERVER_NAMES,
    help="Start a server for this run: sim, llamacpp, vllm, ...",
)
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Prefer to set $OPENAI_API_KEY. Never written to any file.")
@click.option("--model", help="Model to request.  [default: the server's only model]")
@click.option(
    "--endpoint",
    type=click.Choice(["chat", "completions", "responses", "embeddings", "rerank"]),
    default="chat",
    show_default=True,
    help="API to call; a request body of the trace may state its own.",
)
@click.option(
    "--header",
    "headers",
    type=Header(),
    multiple=True,
    callback=as_dict,
    help="Header of every request, NAME:VALUE or NAME=VALUE. Repeatable.",
)
@click.option(
    "--extra-body",
    metavar="JSON",
    default="{}",
    callback=json_object,
    help="Fields to add to the body of every request; null removes a field.",
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
    "--goodput",
    type=LatencyLimit(),
    multiple=True,
    callback=as_dict,
    help="Latency limit in ms: ttft:200, tpot:50 or e2el:5000. Repeatable.",
)
@click.option(
    "--max-failed",
    type=FailureShare(),
    default="1%",
    show_default=True,
    help="Exit 1 when more requests fail: a share such as 1%, or a number of requests such as 5.",
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Requests sent one by one before the run, not recorded.",
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
    "--otlp",
    metavar="URL",
    help="Send an OTLP span for every request to this sidecar, and record those that the engine sends to it: they show "
    "the requests of other clients.",
)
@click.option(
    "--energy",
    shell_complete=ENERGY_NAMES,
    metavar="SOURCE",
    default="auto",
    show_default=True,
    help="Energy source: auto, nvml, amd, rapl, hwmon, cpu, none, or the URL of a sidecar or DCGM exporter beside the "
    "GPU; or several, such as nvml,rapl; or hwmon:SENSOR, or URL#METRIC of a machine's power.",
)
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    metavar="ID",
    help="Index or UUID of a GPU that the server uses. Repeatable.  [default: all visible]",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="NAME=URL[,gpus=0:1][,role=prefill|decode][,energy=URL]",
    help="An engine behind the server, with GPUs of its own: its energy and counters are an account of their own. "
    "Repeatable.",
)
@click.option(
    "--engine-header",
    "engine_headers",
    multiple=True,
    metavar="NAME",
    help="Response header whose value is the name, URL or host:port of the engine that served the request. Repeatable.",
)
@click.option(
    "--idle",
    "idle_s",
    type=FiniteRange(min=0, max=3600),
    default=2.0,
    envvar="LOADGEN_IDLE",
    show_default=True,
    metavar="S",
    help="Idle time measured before the first request: the baseline of the energy accounts.",
)
@boundary_options(share_host="time")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Run folder.  [default: runs/TIME-TRACE]")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out.")
@click.option(
    "--repeat",
    type=click.IntRange(min=1, max=1000),
    default=1,
    show_default=True,
    metavar="N",
    help="Make N runs with the seeds from --seed on, each with a fresh server if --serve starts it, in the folders 1 "
    "to N of --out: repeats for loadgen compare.",
)
@click.option("--keep-bodies", is_flag=True, help="Keep the words of the requests in the run folder, as bodies.jsonl.")
@click.option(
    "--keep-answers",
    is_flag=True,
    help="Keep the answers in the run folder, as answers.jsonl: text, reasoning, calls of tools, and log-probabilities "
    "where requests ask for them.",
)
@click.option(
    "--ui",
    type=click.Choice(["auto", "live", "plain", "none"]),
    default="auto",
    show_default=True,
    help="Progress view; auto: live on a terminal.",
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of the tables; of repeats, a list.")
@click.option("--junit", type=FILE, metavar="FILE", help="Write the checks of the verdict as test cases, as JUnit XML.")
@click.option("--markdown", type=FILE, metavar="FILE", help="Write the verdict and main numbers as Markdown.")
@logged
def replay(ui: str, as_json: bool, repeat: int, junit: Path | None, markdown: Path | None, **options: Any) -> None:
    """Replay TRACE, or a TOML file of streams, against a server; measure every request's latency and joules.

    TRACE is a file, of lengths or of your own prompts, a file or folder of recorded agent sessions, or the name of a
    shipped trace or workload profile.

    \b
    loadgen replay chat --rps 4 --serve sim
    loadgen replay prompts.jsonl --rps 2 --max-tokens 500
    loadgen replay code --rps 2 --arrival poisson --duration 60 --goodput ttft:200 --goodput tpot:50
    loadgen replay --input lognormal:512:0.6 --output 128 --rps 10 --duration 60
    loadgen replay --stream chat:3 --stream code:1 --duration 60
    loadgen replay sessions/ --concurrent-sessions 4 --speedup 10

    Exit status: 0 done; 1 the run failed: the server died, no request completed, or more failed than --max-failed;
    2 invalid input or environment; 130 stopped by Ctrl-C or SIGTERM.
    """  # fmt: skip
    import msgspec

    if options["serve"]:
        refuse_second_server()
    results: list[RunResult] = []
    for number, folder in enumerate(_folders(options, repeat)):
        of_run = options | {"seed": options["seed"] + number, "out": folder}
        results.append(_run(of_run, ui, as_json, f", run {number + 1} of {repeat}" if repeat > 1 else ""))
        if results[-1].info.stopped_by in ("interrupted", "aborted"):
            break
    if as_json and repeat > 1:
        click.echo(f"[{','.join(msgspec.json.encode(result.summary).decode() for result in results)}]")
    _write_files(results, junit, markdown)
    if results[-1].info.stopped_by in ("interrupted", "aborted"):
        sys.exit(130)
    if any(result.summary is None or not result.summary.verdict.stands for result in results):
        sys.exit(1)


def _folders(options: Mapping[str, Any], repeat: int) -> list[Path | None]:
    """Return the folder of each run. LoadgenError where that of the repeats holds something else."""
    if repeat == 1:
        return [options["out"]]
    base = options["out"] or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-repeats"
    if (base / "run.json").exists():
        raise LoadgenError(f"{base} is the folder of one run: choose another --out for the folders 1 to {repeat}")
    surplus = [file.parent for file in base.glob("*/run.json") if not 1 <= _number(file.parent.name) <= repeat]
    if surplus:
        raise LoadgenError(f"{surplus[0]} is a run that is none of 1 to {repeat}: remove it, or choose another --out")
    return [base / str(number) for number in range(1, repeat + 1)]


def _number(name: str) -> int:
    return int(name) if name.isdecimal() else 0


def _run(options: dict[str, Any], ui: str, as_json: bool, which: str) -> "RunResult":
    """Make one run, analyse it and print it."""
    from rich.console import Console

    from loadgen.api.record_run import record_run
    from loadgen.report.progress_view import view
    from loadgen.run.progress import announcer

    title = options["trace"] or "+".join(options["streams"]) or "made-up prompts"
    progress = view("none" if as_json else ui, Console(stderr=True), f"{title}{which}")
    with progress:
        command = command_words(None if options["serve"] else options["base_url"])
        out, schedule = record_run(options, progress, stated=_stated(), command=command)
    # What a run needs only at its end does not delay its beginning.
    from loadgen.report.terminal import render_terminal
    from loadgen.report.write import finish

    with progress:
        result = finish(out, schedule, announcer(progress))
    if not as_json:
        render_terminal(result, Console(), out)
    elif not which:
        click.echo((out / "summary.json").read_text(), nl=False)
    return result


def _write_files(results: "Sequence[RunResult]", junit: Path | None, markdown: Path | None) -> None:
    """Write the verdicts for a CI system."""
    from loadgen.files import replace_file
    from loadgen.report.junit import junit_xml, verdict_cases
    from loadgen.report.markdown import run_markdown

    if junit is not None:
        cases = [
            case._replace(name=f"{case.name}, run {number}" if len(results) > 1 else case.name)
            for number, result in enumerate(results, 1)
            if result.summary is not None
            for case in verdict_cases(result.summary.verdict)
        ]
        replace_file(junit, junit_xml("replay", cases))
    if markdown is not None:
        replace_file(markdown, "\n".join(run_markdown(result) for result in results).encode())


def command_words(base_url: str | None) -> list[str]:
    """Return the words of this command line; with the server's URL where that is from the environment."""
    context = click.get_current_context()
    words: list[str] = [*context.meta.get("loadgen.words", ())]
    if words and base_url and context.get_parameter_source("base_url") is click.core.ParameterSource.ENVIRONMENT:
        words += ["--base-url", base_url]
    return words


def _stated() -> set[str]:
    """Return the names of the options that the user named, on the command line or in the environment."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return {name for name in context.params if context.get_parameter_source(name) is not default}

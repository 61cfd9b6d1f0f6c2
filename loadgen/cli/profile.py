"""loadgen profile: measure joules per request for token bins and batch sizes."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen.cli.log import logged, say
from loadgen.cli.options import (
    ENERGY_NAMES,
    HARDWARE_NAMES,
    MODEL_NAMES,
    SERVER_NAMES,
    FiniteRange,
    SectionedCommand,
    key_values,
    refuse_second_server,
)
from loadgen.client import DEFAULT_URL
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.energy_model.waves import RequestShape

BINS = "32,128,512,2048,4096,8192x8,32,128,512,1024"

_POSITIVE = FiniteRange(min=0, min_open=True)


@click.command(
    cls=SectionedCommand,
    sections={
        "bins": "Grid",
        "base_url": "Server",
        "energy": "Energy",
        "within": "Precision and time",
        "gpu_name": "Names in the file",
        "out": "Output",
    },
)
@click.option(
    "--bins",
    default=BINS,
    show_default=True,
    metavar="INxOUT",
    help="Input and output lengths: each one before the x with each one after it. Separate grids with a space.",
)
@click.option(
    "--batch", default="1,8,32,128", show_default=True, help="Numbers of requests in flight, most important first."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the order of bins.")
@click.option(
    "--base-url",
    "--url",
    envvar="OPENAI_BASE_URL",
    default=DEFAULT_URL,
    show_default=True,
    help="The server's API; also from $OPENAI_BASE_URL.",
)
@click.option(
    "--serve",
    metavar="NAME",
    shell_complete=SERVER_NAMES,
    help="Start a server for this measurement: sim, llamacpp, vllm, ...",
)
@click.option("--virtual-time", is_flag=True, help="Compute in the simulator instead, without a server or waiting.")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Prefer to set $OPENAI_API_KEY. Never written to any file.")
@click.option("--served-model", metavar="NAME", help="The server's name for the model.  [default: its only model]")
@click.option(
    "--endpoint",
    type=click.Choice(["chat", "completions"]),
    default="completions",
    show_default=True,
    help="API to call.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File tokenizer.json, to count the tokens of prompts.",
)
@click.option(
    "--energy",
    shell_complete=ENERGY_NAMES,
    default="auto",
    show_default=True,
    metavar="SOURCE",
    help="Energy source, as for `loadgen replay`.",
)
@click.option(
    "--within", type=_POSITIVE, default=0.03, show_default=True, help="Relative half width of the 95 % interval."
)
@click.option("--repeat-s", type=_POSITIVE, default=1.0, show_default=True, help="Minimum duration of a repeat.")
@click.option(
    "--max-repeats", type=click.IntRange(1), default=10, show_default=True, help="Maximum repeats of a grid point."
)
@click.option(
    "--cap-s",
    type=_POSITIVE,
    default=60.0,
    show_default=True,
    help="Maximum time per grid point, even if its interval is still wide.",
)
@click.option(
    "--settle-s", type=FiniteRange(0), default=5.0, show_default=True, help="Load before the first measurement."
)
@click.option(
    "--static",
    is_flag=True,
    help="Measure whole batches, from the first send to the last completion, as arXiv 2504.17674 does; half the time.",
)
@click.option(
    "--budget-s",
    type=_POSITIVE,
    help="Start no grid point after this; those that are missing are reported and can be resumed.",
)
@click.option(
    "--gpu",
    "gpu_name",
    shell_complete=HARDWARE_NAMES,
    default="h200",
    show_default=True,
    help="Name in profiles/hardware, for the file.",
)
@click.option(
    "--model",
    shell_complete=MODEL_NAMES,
    default="llama-3.1-8b",
    show_default=True,
    help="Name in profiles/models, for the file.",
)
@click.option("--engine", help="Engine name for the file.  [default: as the server reports it]")
@click.option(
    "--note",
    "notes",
    multiple=True,
    callback=key_values,
    metavar="KEY=VALUE",
    help="Note for the provenance: engine flags. Repeatable.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="JSON file to write; a journal beside it makes the measurement resumable.",
)
@logged
def profile(bins: str, batch: str, out: Path, virtual_time: bool, serve: str | None, **options: Any) -> None:
    """Measure joules per request of every bin at every batch size.

    \b
    loadgen profile --serve sim --virtual-time --out h200-sim.json
    loadgen profile --bins 32,512,2048x8,128 --batch 32,8 --base-url http://localhost:8000/v1 --out h200.json

    Closed loop, one length at a time, each prompt new. The first wave (as many requests as the batch) is not measured.
    Run the same command again to resume an interrupted measurement.
    """  # fmt: skip
    from loadgen.energy_model.energy_profile import write_energy_profile
    from loadgen.energy_model.hardware import read_hardware, read_model
    from loadgen.energy_model.measure import ProfileOptions, check_bins_fit, profile_server
    from loadgen.energy_model.profiling_plan import StoppingRule, journal_path
    from loadgen.run.interrupts import run_to_the_end

    grid, batches, within = parse_bins(bins), _numbers(batch, "--batch"), options["within"]
    if virtual_time:
        from loadgen.simulator.virtual_profile import simulated_profile

        hardware, model = read_hardware(options["gpu_name"]), read_model(options["model"])
        check_bins_fit(grid, model.context_tokens, model.name)
        with click.progressbar(length=len(grid) * len(batches), label="Computing the cells") as bar:
            result = simulated_profile(hardware, model, grid, batches, within, options["notes"], lambda: bar.update(1))
    else:
        names = ("within", "repeat_s", "max_repeats", "cap_s", "settle_s", "static", "budget_s")
        rule = StoppingRule(**{name: options.pop(name) for name in names})
        with ExitStack() as stack:
            if serve:
                refuse_second_server()
                from loadgen.servers.launcher import served

                options["base_url"] = stack.enter_context(served(serve, "--max-num-seqs", str(max(batches))))
            server = ProfileOptions(rule=rule, **options)
            result = run_to_the_end(profile_server(grid, batches, out, server, say))
    write_energy_profile(out, result)
    if result.provenance.get("complete", True):
        journal_path(out).unlink(missing_ok=True)
    wide = sum(not point.settled for point in result.cells)
    note = f"; {wide} of them with an interval wider than ±{within:.0%}" if wide and not virtual_time else ""
    click.echo(f"{len(result.cells)} cells, wrote {out}{note}")


def parse_bins(text: str) -> "list[RequestShape]":
    """Parse `32,128x8,64 4096x512`: grids, each input length with each output length. Raises LoadgenError."""
    from loadgen.energy_model.waves import RequestShape

    shapes: list[RequestShape] = []
    for grid in text.split():
        inputs, mark, outputs = grid.partition("x")
        if not mark:
            raise LoadgenError(f"--bins {grid!r}: expected INPUTSxOUTPUTS such as 32,512x8,128")
        shapes += [RequestShape(i, o) for i in _numbers(inputs, "--bins") for o in _numbers(outputs, "--bins")]
    if not shapes:
        raise LoadgenError("--bins is empty: expected INPUTSxOUTPUTS such as 32,512x8,128")
    return list(dict.fromkeys(shapes))


def _numbers(text: str, option: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*", text, re.ASCII):
        raise LoadgenError(f"{option} {text!r}: expected numbers of at least 1, separated by commas")
    return list(dict.fromkeys(map(int, text.split(","))))

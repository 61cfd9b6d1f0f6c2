"""loadgen profile: measure joules per request for token bins and batch sizes."""

import asyncio
import re
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen.cli.options import DEFAULT_URL
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from loadgen.client.server_probe import ServerInfo
    from loadgen.energy.meter import EnergyMeter
    from loadgen.energy_model.energy_profile import EnergyProfile, GridPoint
    from loadgen.energy_model.measure import StoppingRule
    from loadgen.energy_model.waves import RequestShape

BINS = "32,128,512,2048,4096,8192x8,32,128,512,1024"
POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option(
    "--bins",
    default=BINS,
    show_default=True,
    metavar="INxOUT",
    help="Input and output lengths: every one before the x with every one after it. Separate grids with a space.",
)
@click.option("--batch", default="1,8,32,128", show_default=True, help="Requests in flight, most important first.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .json to write; resumes beside it.")
@click.option("--base-url", "--url", envvar="OPENAI_BASE_URL", default=DEFAULT_URL, show_default=True)
@click.option("--serve", metavar="NAME", help="Start a server for this: sim.")
@click.option("--virtual-time", is_flag=True, help="Compute in the simulator instead: no server, no waiting.")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Better set in $OPENAI_API_KEY. Never written anywhere.")
@click.option("--served-model", metavar="NAME", help="What the server calls it.  [default: its only model]")
@click.option("--gpu", "gpu_name", default="h200", show_default=True, help="Name in profiles/hardware, for the file.")
@click.option("--model", default="llama-3.1-8b", show_default=True, help="Name in profiles/models, for the file.")
@click.option("--engine", help="For the file.  [default: what the server says]")
@click.option("--endpoint", type=click.Choice(["chat", "completions"]), default="completions", show_default=True)
@click.option("--tokenizer", type=click.Path(path_type=Path), metavar="FILE", help="tokenizer.json to count with.")
@click.option("--energy", default="auto", show_default=True, metavar="SOURCE", help="As for replay.")
@click.option("--within", type=POSITIVE, default=0.03, show_default=True, help="95 % interval's half width, relative.")
@click.option("--repeat-s", type=POSITIVE, default=1.0, show_default=True, help="A repeat lasts at least this.")
@click.option("--max-repeats", type=click.IntRange(1), default=10, show_default=True)
@click.option("--cap-s", type=POSITIVE, default=60.0, show_default=True, help="A cell ends after this, settled or not.")
@click.option("--settle-s", type=click.FloatRange(0), default=5.0, show_default=True, help="Load before the first.")
@click.option(
    "--static", is_flag=True, help="Whole batches from first send to last answer, as the paper: half the time."
)
@click.option("--budget-s", type=POSITIVE, help="Begin no cell after this; what is left is said, and can be resumed.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the order of bins.")
@click.option("--note", "notes", multiple=True, metavar="KEY=VALUE", help="Into the provenance: engine flags. Repeat.")
def profile(bins: str, batch: str, out: Path, virtual_time: bool, serve: str | None, **given: Any) -> None:
    """Measure joules per request of every bin at every batch size.

    \b
    loadgen profile --serve sim --virtual-time --out profiles/energy/h200-sim-llama-3.1-8b.json
    loadgen profile --bins 32,512,2048x8,128 --batch 32,8 --base-url http://localhost:8000/v1 --out h200.json

    Closed loop, one length at a time, each prompt new. The first wave (as many requests as the batch) is not measured.
    Interrupted, it goes on where it stopped when the same command is run again.
    """  # fmt: skip
    grid, batches = parse_bins(bins), _numbers(batch, "--batch")
    given["notes"] = dict(_note(note) for note in given["notes"])
    if virtual_time:
        made = _virtual(grid, batches, given)
    else:
        with ExitStack() as stack:
            if serve:
                from loadgen.servers.launcher import served

                given["base_url"] = stack.enter_context(served(serve, "--max-num-seqs", str(max(batches))))
            made = asyncio.run(_live(grid, batches, out, given, lambda line: click.echo(line, err=True)))
    _write(out, made)
    wide = sum(not cell.settled for cell in made.cells)
    said = f"; {wide} of them with an interval wider than ±{given['within']:.0%}" if wide and not virtual_time else ""
    click.echo(f"{len(made.cells)} cells, wrote {out}{said}")


def parse_bins(text: str) -> "list[RequestShape]":
    """`32,128x8,64 4096x512`: grids, each input length with each output length. LoadgenError when it is not that."""
    from loadgen.energy_model.waves import RequestShape

    found: list[RequestShape] = []
    for grid in text.split():
        inputs, mark, outputs = grid.partition("x")
        if not mark:
            raise LoadgenError(f"--bins {grid!r}: expected INPUTSxOUTPUTS such as 32,512x8,128")
        found += [RequestShape(i, o) for i in _numbers(inputs, "--bins") for o in _numbers(outputs, "--bins")]
    if not found:
        raise LoadgenError("--bins is empty: expected INPUTSxOUTPUTS such as 32,512x8,128")
    return list(dict.fromkeys(found))


def _numbers(text: str, option: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*", text, re.ASCII):
        raise LoadgenError(f"{option} {text!r}: expected numbers of at least 1, separated by commas")
    return list(dict.fromkeys(map(int, text.split(","))))


def _note(text: str) -> tuple[str, str]:
    key, mark, value = text.partition("=")
    if not mark or not key:
        raise LoadgenError(f"--note {text!r}: expected KEY=VALUE")
    return key, value


def _write(out: Path, made: "EnergyProfile") -> None:
    from loadgen.energy_model.energy_profile import energy_profile_json
    from loadgen.energy_model.measure import journal_path
    from loadgen.files import replacing

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise LoadgenError(f"cannot write {out}: {err.strerror or err}") from err
    with replacing(out) as draft:
        draft.write(energy_profile_json(made))
    if made.provenance.get("complete", True):
        journal_path(out).unlink(missing_ok=True)


def _virtual(grid: "list[RequestShape]", batches: list[int], given: dict[str, Any]) -> "EnergyProfile":
    from loadgen import __version__
    from loadgen.energy_model.energy_profile import EnergyProfile
    from loadgen.energy_model.hardware import read_hardware, read_model
    from loadgen.simulator.virtual_profile import WAVES, simulated_cells

    hardware, model = read_hardware(given["gpu_name"]), read_model(given["model"])
    _check_fits(grid, model.context_tokens, model.name)
    with click.progressbar(
        simulated_cells(hardware, model, grid, batches, given["within"]), length=len(grid) * len(batches)
    ) as cells:
        measured = tuple(cells)
    return EnergyProfile(
        gpu=hardware.name,
        engine="sim",
        model=model.name,
        simulated=True,
        idle_w=hardware.idle_w,
        provenance={
            "how": f"simulated in virtual time, closed loop, waves 2 to {WAVES} of {WAVES}",
            "loadgen": __version__,
            **given["notes"],
        },
        cells=measured,
    )


async def _live(
    grid: "list[RequestShape]", batches: list[int], out: Path, given: dict[str, Any], say: Callable[[str], None]
) -> "EnergyProfile":
    from loadgen.client.client import Client
    from loadgen.client.server_probe import probe
    from loadgen.energy.choose import open_meter, source_beside
    from loadgen.energy_model import measure
    from loadgen.energy_model.energy_profile import EnergyProfile

    async with Client(given["base_url"], api_key=given["api_key"], timeout_s=600) as client:
        probed = await probe(
            client,
            given["endpoint"],
            {"chat"},
            model=given["served_model"],
            tokenizer=given["tokenizer"],
            check=lambda server: _check_fits(grid, server.max_model_len, server.model),
        )
        server, source = probed.server, probed.lengths_from
        choice = source_beside(
            server.base_url, given["energy"], simulated_at=server.root_url if server.simulated else None
        )
        if choice is None:
            raise LoadgenError("the server is on another host: say where its energy is read, with --energy URL")
        meter, reasons = await asyncio.to_thread(open_meter, choice)
        if meter is None:
            raise LoadgenError("no energy to measure: " + "; ".join(reasons))
        # Not --seed: the same prompts sent twice to one server are what a prefix cache waits for.
        prompt_seed = secrets.randbits(63)
        bench = measure.Bench(client, server, given["endpoint"], {}, probed.vocabularies["chat"], prompt_seed)
        effort = _effort(given)
        measured_on = {"model": server.model, "engine": server.engine, "endpoint": given["endpoint"]}
        path = measure.journal_path(out)
        before = measure.read_journal(path, measured_on)
        have = {(cell.input, cell.output, cell.batch) for cell in before}
        spots = measure.measurement_order(grid, batches, given["seed"])
        left = [spot for spot in spots if (*spot.lengths, spot.batch) not in have]
        if before:
            say(f"{path}: {len(spots) - len(left)} of {len(spots)} cells are there already")
        try:
            with measure.journal(path, measured_on, before) as keep:
                cells, idle_w = await measure.measure_profile(left, bench, meter, effort, keep, say)
        finally:
            await asyncio.to_thread(meter.close)
    every = _asked(before + cells, spots)
    if not every:
        raise LoadgenError("no cell was measured: give it more time with --budget-s")
    return EnergyProfile(
        gpu=given["gpu_name"],
        engine=given["engine"] or ("sim" if server.simulated else server.engine or "unknown"),
        model=given["model"],
        simulated=server.simulated,
        idle_w=idle_w,
        provenance=_provenance(given, server, meter, source, prompt_seed, complete=len(every) == len(spots)),
        cells=tuple(every),
    )


STATIC = "whole batches against a live server, one after another"
CLOSED_LOOP = "closed loop against a live server, whole waves, the first one left out"


def _provenance(
    given: dict[str, Any], server: "ServerInfo", meter: "EnergyMeter", source: str, prompt_seed: int, *, complete: bool
) -> dict[str, Any]:
    from loadgen import __version__

    return {
        "how": STATIC if given["static"] else CLOSED_LOOP,
        "complete": complete,
        "served_model": server.model,
        "max_model_len": server.max_model_len,
        "endpoint": given["endpoint"],
        "prompt_lengths_from": source,
        "prompt_seed": prompt_seed,
        "energy": [{"domain": d.name, "source": d.source, "period_s": d.period_s} for d in meter.domains],
        "meter_notes": meter.notes,
        "loadgen": __version__,
        **{key: given[key] for key in ("within", "repeat_s", "max_repeats", "cap_s", "settle_s", "seed")},
        **given["notes"],
    }


def _asked(cells: "list[GridPoint]", spots: list[Any]) -> "list[GridPoint]":
    """Those of the plan; an interrupted one may have had others."""
    wanted = {(*spot.lengths, spot.batch) for spot in spots}
    return [cell for cell in cells if (cell.input, cell.output, cell.batch) in wanted]


def _effort(given: dict[str, Any]) -> "StoppingRule":
    from loadgen.energy_model.measure import StoppingRule

    return StoppingRule(
        **{key: given[key] for key in ("within", "repeat_s", "max_repeats", "cap_s", "settle_s", "static", "budget_s")}
    )


def _check_fits(grid: "list[RequestShape]", takes: int | None, model: str) -> None:
    longest = max(grid, key=sum)
    if takes is not None and sum(longest) > takes:
        raise LoadgenError(f"bin {longest.input}x{longest.output} is longer than {model} takes: {takes} tokens")

"""loadgen study FILE: run a matrix of comparisons."""

import signal
import sys
from pathlib import Path

import click

from loadgen.cli.options import knobs


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Its folder.  [default: runs/study-FILE]")
@click.option("--plan", "only_plan", is_flag=True, help="List the runs in their order; start nothing.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Serve this instead of FILE's. Repeatable.")
@click.option("--knob", multiple=True, callback=knobs, metavar="KEY=VALUE", help="Of every server. Repeatable.")
@click.option("--python", metavar="PATH", help="The Python that has the engine.")
@click.option("--other-gpu", is_flag=True, help="Go on with another GPU, if it is of the same kind and power limit.")
@click.option("--only", multiple=True, metavar="SERVER", help="Make the runs of this server now. Repeatable.")
def study(
    file: Path,
    out: Path | None,
    only_plan: bool,
    models: tuple[str, ...],
    knob: dict[str, str],
    python: str | None,
    other_gpu: bool,
    only: tuple[str, ...],
) -> None:
    """Run the comparisons that FILE asks for: servers and knobs x models x workloads x batches or rates x repeats.

    Run it again to go on where it stopped, whatever stopped it. DIR gets a folder a run, results.csv and report.html.
    --model, --knob and --python say what belongs to this machine: see `loadgen serve`.

    \b
    loadgen study studies/simulated.toml                 try it: no GPU, no server needed
    loadgen study studies/frameworks.toml --plan
    loadgen study studies/online.toml --model ~/weights/llama-3.1-8b --python ~/vllm/bin/python
    """  # fmt: skip
    from loadgen.study import spec

    overrides = spec.Overrides(models=list(models), knobs=knob, python=python)
    if only_plan:
        for cell in spec.plan_runs(spec.read_study(file, overrides)):
            click.echo(cell.name)
        return
    from loadgen.study import runner as studies

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without one
    folder = out or Path("runs") / f"study-{file.stem}"
    try:
        rows = studies.run_study(file, folder, lambda line: click.echo(line, err=True), overrides, other_gpu, only)
    except KeyboardInterrupt:
        click.echo(f"\nstopped; the same command goes on from here ({folder})", err=True)
        sys.exit(130)
    click.echo(f"{len(rows)} runs: {folder / 'results.csv'}, {folder / 'report.html'}")

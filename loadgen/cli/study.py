"""loadgen study FILE: run a matrix of comparisons."""

import signal
import sys
from pathlib import Path

import click

from loadgen.cli.completion import complete_names
from loadgen.cli.log import logged, say
from loadgen.cli.options import key_values


@click.command()
@click.argument("name", metavar="FILE", shell_complete=complete_names("studies", files=True))
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="The study's folder.  [default: runs/study-FILE]"
)
@click.option("--plan", "only_plan", is_flag=True, help="List the runs in their order; start nothing.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Serve this instead of FILE's. Repeatable.")
@click.option(
    "--engine-option",
    "--knob",
    multiple=True,
    callback=key_values,
    metavar="KEY=VALUE",
    help="Engine option of every server. Repeatable.",
)
@click.option("--python", metavar="PATH", help="The Python interpreter that has the engine.")
@click.option("--other-gpu", is_flag=True, help="Continue on another GPU, if its kind and power limit are the same.")
@click.option("--only", multiple=True, metavar="SERVER", help="Make only the runs of this server now. Repeatable.")
@logged
def study(
    name: str,
    out: Path | None,
    only_plan: bool,
    models: tuple[str, ...],
    engine_option: dict[str, str],
    python: str | None,
    other_gpu: bool,
    only: tuple[str, ...],
) -> None:
    """Run the comparisons in FILE: servers and engine options x models x workloads x batches or rates x repeats.

    FILE is a TOML file or the name of a shipped study. Run it again to continue where it stopped, whatever stopped it.
    DIR gets a folder for each run, results.csv and report.html. --model, --engine-option and --python describe this
    machine: see `loadgen serve`. Exit status 1 when a run failed.

    \b
    loadgen study simulated                 try it: no GPU, no server needed
    loadgen study frameworks --plan
    loadgen study online --model ~/weights/llama-3.1-8b --python ~/vllm/bin/python
    """  # fmt: skip
    from loadgen.files import study_path
    from loadgen.study.spec import Overrides, read_study

    file = study_path(name)
    overrides = Overrides(models=list(models), engine_options=engine_option, python=python)
    if only_plan:
        from loadgen.study.plan import plan_runs

        for run in plan_runs(read_study(file, overrides)):
            click.echo(run.name)
        return
    from rich.console import Console

    from loadgen.report.format import plural
    from loadgen.report.progress_view import view_of_many
    from loadgen.study.runner import run_study

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without one
    folder = out or Path("runs") / f"study-{file.stem}"
    try:
        results = run_study(file, folder, say, overrides, other_gpu, only, view_of_many(Console(stderr=True)))
    except KeyboardInterrupt:
        click.echo(f"\nstopped; the same command goes on from here ({folder})", err=True)
        sys.exit(130)
    if results.rows:
        from loadgen.report.study_terminal import print_study

        print_study(Console(), results.study, results.rows)
    click.echo(f"\n{plural(len(results.rows), 'run')}: {folder / 'results.csv'}, {folder / 'report.html'}")
    if results.failed:
        say(f"{len(results.failed)} runs failed: {', '.join(results.failed)}")
        sys.exit(1)

"""loadgen serve: start a server."""

import os
import sys
from typing import Any

import click
from click.core import ParameterSource

from loadgen.cli.options import knobs
from loadgen.errors import LoadgenError
from loadgen.servers import recipe as recipes
from loadgen.simulator.faults import MEANING

EVERY = ("name", "host", "port", "model", "knob", "python", "show", "exit_with_parent")
"""Options that mean something for every server; the others are the simulator's."""


@click.command(epilog="Kinds of --fault: " + "; ".join(f"{kind}: {meaning}" for kind, meaning in MEANING.items()) + ".")
@click.argument("name", metavar="NAME")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 chooses a free one.")
@click.option("--model", help="Of sim: a name in profiles/models, or a .toml file.  [default: the recipe's]")
@click.option("--knob", multiple=True, callback=knobs, metavar="KEY=VALUE", help="A setting of the recipe. Repeatable.")
@click.option("--python", metavar="PATH", help="The Python that has the engine.  [default: the one that runs loadgen]")
@click.option("--print", "show", is_flag=True, help="Print the recipe, its knobs and its command; start nothing.")
@click.option("--hardware", default="h200", show_default=True, help="A name in profiles/hardware, or a .toml file.")
@click.option("--max-num-seqs", default=256, show_default=True, type=click.IntRange(1), help="Sequences in a step.")
@click.option(
    "--max-num-batched-tokens", default=8192, show_default=True, type=click.IntRange(1), help="Tokens in a step."
)
@click.option("--tensor-parallel", default=1, show_default=True, type=click.IntRange(1, 8), help="GPUs to a model.")
@click.option("--prefix-caching", is_flag=True, help="Reuse the KV cache of equal prompt prefixes.")
@click.option("--kv-cache-tokens", type=click.IntRange(16), help="KV-cache capacity  [default: what fits]")
@click.option(
    "--counter-period-ms",
    default=100.0,
    show_default=True,
    type=click.FloatRange(1.0),
    help="How often the energy counter moves.",
)
@click.option("--counter-noise", default=0.0, show_default=True, type=click.FloatRange(0), help="Relative, per move.")
@click.option("--counter-gain", default=1.0, show_default=True, type=click.FloatRange(0), help="Its calibration.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of answers, noise and faults.")
@click.option("--api-key", envvar="LOADGEN_SERVE_API_KEY", help="Ask clients for this bearer token.")
@click.option("--otlp-traces-endpoint", metavar="URL", help="Send a span for each request there, as vLLM does.")
@click.option("--fault", multiple=True, metavar="KIND:P", help="Fail a share P of requests; repeatable, see below.")
@click.option("--exit-with-parent", is_flag=True, help="End when the process that started this one ends.")
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    name: str,
    host: str,
    port: int,
    model: str | None,
    knob: dict[str, str],
    python: str | None,
    show: bool,
    exit_with_parent: bool,
    **simulated: Any,
) -> None:
    """Start the server NAME: the simulator, or a recipe in servers/. It runs until Ctrl-C.

    \b
    loadgen serve sim                            simulated time and energy: no GPU needed
    loadgen serve llamacpp --knob slots=8        a real model on this machine's CPU
    loadgen serve vllm --knob eager=on --model meta-llama/Llama-3.1-8B-Instruct
    loadgen serve tgi --print                    what it takes to start it, and its knobs

    The options from --hardware to --fault are the simulator's. A token for gated models comes from $HF_TOKEN.
    """  # fmt: skip
    recipe = recipes.read_recipe(name)
    values = recipes.knob_values(recipe, knob)
    served_model = model or recipe.model
    if served_model is None:
        raise LoadgenError(f"{name} needs a model: say which with --model")
    if show:
        _describe(
            recipe, values, {"python": python or sys.executable, "host": host, "port": str(port), "model": served_model}
        )
        return
    if name != "sim":
        _check_options(ctx, recipe)
        from loadgen.servers import launcher as servers

        servers.run_recipe(
            recipe,
            values,
            host=host,
            port=port,
            model=served_model,
            python=python or sys.executable,
            exit_with_parent=exit_with_parent,
        )
        return
    if knob:  # the same command again, with the knobs as the simulator's own options
        places = {"python": sys.executable, "host": host, "port": str(port), "model": served_model}
        command = recipes.command(recipe, values, places) + ["--exit-with-parent"] * exit_with_parent
        os.execv(command[0], command)
    _simulate(host, port, served_model, exit_with_parent, **simulated)


def _simulate(
    host: str,
    port: int,
    model: str,
    exit_with_parent: bool,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    tensor_parallel: int,
    prefix_caching: bool,
    kv_cache_tokens: int | None,
    counter_period_ms: float,
    counter_noise: float,
    counter_gain: float,
    fault: tuple[str, ...],
    **options: Any,
) -> None:
    """options: hardware, seed, api_key and otlp_traces_endpoint, under the server's own names."""
    from loadgen.simulator.app import COUNTER_KEEPS_S, ServerOptions, run_simulator
    from loadgen.simulator.cost_model import CounterOptions
    from loadgen.simulator.engine import EngineOptions
    from loadgen.simulator.faults import parse_faults
    from loadgen.units import NS_PER_MS

    engine = EngineOptions(max_num_seqs, max_num_batched_tokens, prefix_caching, kv_cache_tokens, tensor_parallel)
    counter = CounterOptions(round(counter_period_ms * NS_PER_MS), counter_gain, counter_noise, COUNTER_KEEPS_S)
    server = ServerOptions(
        host, port, model=model, engine=engine, counter=counter, faults=parse_faults(fault), **options
    )
    run_simulator(server, exit_with_parent)


def _check_options(ctx: click.Context, recipe: recipes.Recipe) -> None:
    given = [name for name in ctx.params if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    if foreign := [name for name in given if name not in EVERY]:
        option = "--" + foreign[0].replace("_", "-")
        known = ", ".join(recipe.knobs)
        raise LoadgenError(f"{option} is the simulator's; {recipe.name} has --knob KEY=VALUE with: {known}")


def _describe(recipe: recipes.Recipe, values: dict[str, recipes.KnobValue], places: dict[str, str]) -> None:
    import shlex

    click.echo(f"{recipe.name}: {recipe.summary}")
    for variable, value in recipes.variables(recipe, values, places).items():
        click.echo(f"  {variable}={value}")
    if recipe.command:
        click.echo("command:\n  " + shlex.join(recipes.command(recipe, values, places)))
    if recipe.image:
        click.echo("in Docker:\n  " + shlex.join(recipes.docker_command(recipe, values, places)))
    click.echo("knobs:")
    for key, one in recipe.knobs.items():
        default = "" if one.default is None else f"  [{str(one.default).lower()}]"
        click.echo(f"  {key:<24}{one.type:<8}{one.help}{default}")
    if recipe.quirks:
        click.echo("quirks:\n  " + "\n  ".join(recipe.quirks))

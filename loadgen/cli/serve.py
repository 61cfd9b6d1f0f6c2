"""loadgen serve: start a server."""

import os
import sys
from typing import Any

import click
from click.core import ParameterSource

from loadgen.cli.log import logged
from loadgen.cli.options import HARDWARE_NAMES, SERVER_NAMES, FiniteRange, SectionedCommand, key_values
from loadgen.errors import LoadgenError
from loadgen.servers import recipe as recipes
from loadgen.simulator.faults import MEANING

_COMMON = {
    "name", "host", "port", "model", "engine_option", "python", "show", "exit_with_parent", "verbose", "log_file",
}  # fmt: skip
"""Options of every server; all others are the simulator's."""


def chances(_: click.Context, __: click.Parameter, text: str) -> tuple[float, ...]:
    """Read P[,P...], each above 0 and below 1."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value < 1 for value in values):
        raise click.BadParameter(f"{text!r} is not a number above 0 and below 1, or several with commas between them")
    return values


@click.command(
    cls=SectionedCommand,
    sections={
        "host": "Server",
        "hardware": "Simulator",
        "counter_period_ms": "Energy counter of the simulator",
        "verbose": "Output",
    },
    epilog="Kinds of --fault: " + "; ".join(f"{kind}: {meaning}" for kind, meaning in MEANING.items()) + ".",
)
@click.argument("name", metavar="NAME", shell_complete=SERVER_NAMES)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0: any free port.",
)
@click.option(
    "--model", help="Model to serve; for sim, a name in profiles/models or a .toml file.  [default: the recipe's]"
)
@click.option(
    "--engine-option",
    "--knob",
    multiple=True,
    callback=key_values,
    metavar="KEY=VALUE",
    help="Engine option of the recipe. Repeatable.",
)
@click.option("--python", metavar="PATH", help="Python interpreter that has the engine.  [default: that of loadgen]")
@click.option("--print", "show", is_flag=True, help="Print the recipe and its command; start nothing.")
@click.option("--exit-with-parent", is_flag=True, help="Exit when the parent process ends.")
@click.option(
    "--hardware",
    shell_complete=HARDWARE_NAMES,
    default="h200",
    show_default=True,
    help="Name in profiles/hardware, or a .toml file.",
)
@click.option(
    "--max-num-seqs",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of sequences in a step.",
)
@click.option(
    "--max-num-batched-tokens",
    default=8192,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of tokens in a step.",
)
@click.option(
    "--tensor-parallel",
    default=1,
    show_default=True,
    type=click.IntRange(1, 8),
    help="Number of GPUs that share the model.",
)
@click.option(
    "--draft-model",
    metavar="NAME",
    help="Decode speculatively, with this model of profiles/models or a .toml file as the draft model.",
)
@click.option(
    "--draft-tokens", default=4, show_default=True, type=click.IntRange(1, 32), help="Tokens that the draft proposes."
)
@click.option(
    "--draft-acceptance",
    default="0.7",
    show_default=True,
    metavar="P[,P...]",
    callback=chances,
    help="Chance that a draft token is accepted if those before it were: one for all, or one for each position.",
)
@click.option(
    "--expert-parallel", is_flag=True, help="Each GPU holds whole experts of a mixture, not a slice of every one."
)
@click.option(
    "--expert-skew",
    default=0.5,
    show_default=True,
    type=FiniteRange(0),
    help="Zipf exponent of the popularity of a mixture's experts.",
)
@click.option(
    "--expert-repeat",
    default=0.3,
    show_default=True,
    type=FiniteRange(0, 0.99),
    help="Probability that a token takes the experts of the token before it.",
)
@click.option("--prefix-caching", is_flag=True, help="Reuse the KV cache of equal prompt prefixes.")
@click.option(
    "--kv-cache-tokens", type=click.IntRange(16), help="Capacity of the KV cache.  [default: as much as fits]"
)
@click.option(
    "--max-model-len",
    type=click.IntRange(2),
    help="Longest prompt and answer together, in tokens.  [default: the model's context]",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of answer lengths, noise and faults."
)
@click.option("--api-key", envvar="LOADGEN_SERVE_API_KEY", help="Require this bearer token from clients.")
@click.option("--otlp-traces-endpoint", metavar="URL", help="Send one span per request to URL, as vLLM does.")
@click.option(
    "--fault",
    multiple=True,
    metavar="KIND:P",
    help="Fail a share P of the requests in the way KIND, see below. Repeatable.",
)
@click.option(
    "--counter-period-ms",
    default=100.0,
    show_default=True,
    type=FiniteRange(1.0),
    help="Update period of the energy counter.",
)
@click.option(
    "--counter-noise",
    default=0.0,
    show_default=True,
    type=FiniteRange(0),
    help="Relative standard deviation of each update of the counter.",
)
@click.option(
    "--counter-gain",
    default=1.0,
    show_default=True,
    type=FiniteRange(0),
    help="Factor of every counter reading, a calibration error.",
)
@logged
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    name: str,
    host: str,
    port: int,
    model: str | None,
    engine_option: dict[str, str],
    python: str | None,
    show: bool,
    exit_with_parent: bool,
    **simulated: Any,
) -> None:
    """Start the server NAME: the simulator, or a recipe in servers/. It runs until Ctrl-C.

    \b
    loadgen serve sim                            simulated time and energy: no GPU needed
    loadgen serve llamacpp --engine-option slots=8        a real model on this machine's CPU
    loadgen serve vllm --engine-option eager=on --model meta-llama/Llama-3.1-8B-Instruct
    loadgen serve tgi --print                    its command and its engine options

    The options of the simulator are for NAME sim alone. A token for gated models comes from $HF_TOKEN.
    """  # fmt: skip
    recipe = recipes.read_recipe(name)
    values = recipes.option_values(recipe, engine_option)
    served_model = model or recipe.model
    if served_model is None:
        raise LoadgenError(f"{name} needs a model: choose one with --model")
    places = {"python": python or sys.executable, "host": host, "port": str(port), "model": served_model}
    if show:
        click.echo(recipes.describe(recipe, values, places))
        return
    if name != "sim":
        used = [option for option in ctx.params if ctx.get_parameter_source(option) == ParameterSource.COMMANDLINE]
        if foreign := [option for option in used if option not in _COMMON]:
            raise LoadgenError(
                f"--{foreign[0].replace('_', '-')} is the simulator's; {recipe.name} has --engine-option KEY=VALUE "
                f"with: {', '.join(recipe.engine_options)}"
            )
        from loadgen.servers import launcher as servers

        servers.run_recipe(
            recipe,
            values,
            host=host,
            port=port,
            model=served_model,
            python=places["python"],
            exit_with_parent=exit_with_parent,
        )
        return
    if engine_option:  # run the same command again, with the engine options as the simulator's own options
        command = (
            recipes.command(recipe, values, places | {"python": sys.executable})
            + ["--exit-with-parent"] * exit_with_parent
            + ["--verbose"] * ctx.params["verbose"]
            + (["--log-file", str(log_file)] if (log_file := ctx.params["log_file"]) else [])
        )
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
    expert_parallel: bool,
    expert_skew: float,
    expert_repeat: float,
    prefix_caching: bool,
    kv_cache_tokens: int | None,
    max_model_len: int | None,
    draft_model: str | None,
    draft_tokens: int,
    draft_acceptance: tuple[float, ...],
    counter_period_ms: float,
    counter_noise: float,
    counter_gain: float,
    fault: tuple[str, ...],
    **options: Any,
) -> None:
    """Run the simulator. options: hardware, seed, api_key and otlp_traces_endpoint, under the server's own names."""
    from loadgen.energy_model.hardware import read_model
    from loadgen.simulator.app import COUNTER_KEEPS_S, ServerOptions, run_simulator
    from loadgen.simulator.cost_model import CounterOptions
    from loadgen.simulator.engine import EngineOptions
    from loadgen.simulator.experts import Routing
    from loadgen.simulator.faults import parse_faults
    from loadgen.simulator.speculation import Speculation
    from loadgen.units import NS_PER_MS

    routing = Routing(expert_skew, expert_repeat, expert_parallel)
    speculation = None
    if draft_model is not None:
        acceptance = draft_acceptance * draft_tokens if len(draft_acceptance) == 1 else draft_acceptance
        if len(acceptance) != draft_tokens:
            raise LoadgenError(
                f"--draft-acceptance has {len(acceptance)} chances for {draft_tokens} draft tokens: give one, or one "
                "for each"
            )
        if max_num_batched_tokens <= draft_tokens:
            raise LoadgenError(
                f"--max-num-batched-tokens {max_num_batched_tokens} does not hold {draft_tokens} draft tokens and one "
                "more"
            )
        speculation = Speculation(read_model(draft_model), acceptance)
    engine = EngineOptions(
        max_num_seqs,
        max_num_batched_tokens,
        prefix_caching,
        kv_cache_tokens,
        tensor_parallel,
        speculation,
        routing,
        max_model_len,
    )
    counter = CounterOptions(round(counter_period_ms * NS_PER_MS), counter_gain, counter_noise, COUNTER_KEEPS_S)
    server = ServerOptions(
        host, port, model=model, engine=engine, counter=counter, faults=parse_faults(fault), **options
    )
    run_simulator(server, exit_with_parent)

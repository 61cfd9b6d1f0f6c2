"""loadgen serve: start a server."""

import click

from loadgen.errors import LoadgenError
from loadgen.simulator.faults import MEANING


@click.command(epilog="Kinds of --fault: " + "; ".join(f"{kind}: {meaning}" for kind, meaning in MEANING.items()) + ".")
@click.argument("name", metavar="NAME")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 chooses a free one.")
@click.option("--hardware", default="h200", show_default=True, help="A name in profiles/hardware, or a .toml file.")
@click.option("--model", default="llama-3.1-8b", show_default=True, help="A name in profiles/models, or a .toml file.")
@click.option("--max-num-seqs", default=256, show_default=True, type=click.IntRange(1), help="Sequences in a step.")
@click.option(
    "--max-num-batched-tokens", default=8192, show_default=True, type=click.IntRange(1), help="Tokens in a step."
)
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
@click.option("--fault", multiple=True, metavar="KIND:P", help="Fail a share P of requests; repeatable, see below.")
@click.option("--exit-with-parent", is_flag=True, help="End when the process that started this one ends.")
def serve(
    name: str,
    host: str,
    port: int,
    hardware: str,
    model: str,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
    kv_cache_tokens: int | None,
    counter_period_ms: float,
    counter_noise: float,
    counter_gain: float,
    seed: int,
    api_key: str | None,
    fault: tuple[str, ...],
    exit_with_parent: bool,
) -> None:
    """Start the server NAME.

    \b
    sim    the built-in simulated server: OpenAI's API, no GPU, simulated time and energy
    """
    if name != "sim":
        raise LoadgenError(f"no server called {name!r}; there is: sim")
    from loadgen.simulator.app import COUNTER_KEEPS_S, ServerOptions, run
    from loadgen.simulator.engine import EngineOptions
    from loadgen.simulator.faults import parse_faults
    from loadgen.simulator.power import CounterOptions
    from loadgen.units import NS_PER_MS

    options = ServerOptions(
        host=host,
        port=port,
        hardware=hardware,
        model=model,
        engine=EngineOptions(max_num_seqs, max_num_batched_tokens, prefix_caching, kv_cache_tokens),
        counter=CounterOptions(round(counter_period_ms * NS_PER_MS), counter_gain, counter_noise, COUNTER_KEEPS_S),
        seed=seed,
        api_key=api_key,
        faults=parse_faults(fault),
    )
    run(options, exit_with_parent)

"""Tables and the figure of docs/results/gpus.md: an H100 beside the H200s."""

from collections.abc import Sequence

from benchmarks.paper import offline_table
from benchmarks.paper.ingest import FOLDER, sessions
from benchmarks.paper.offline_results import NAMES, SHAPE, batches_of, cells, per_token, saved
from benchmarks.paper.plots import Line, batch_axis, by_batch, picture, scaled, share_axis
from benchmarks.paper.words import percent, percents, plus_minus, sig, table
from loadgen.energy_model.energy_profile import read_energy_profile
from loadgen.energy_model.estimate import fit_two_phase
from loadgen.energy_model.hardware import read_hardware, read_model
from loadgen.results.study_table import Group, groups
from loadgen.stats.intervals import Interval

H100 = FOLDER.with_name("h100-2026")
SERVERS = ("vllm-graphs", "hf-eager")
PROFILES = {card: f"{card}-vllm-0.20.2-llama-3.1-8b" for card in ("h100", "h200")}


def h100_cells() -> dict[tuple[str, int], Group]:
    """Return {(server, batch): its repeats} of the offline session on the H100."""
    rows = [row for summary in sessions(H100).values() for row in offline_table.rows_of(summary)]
    return {(group.key[0], group.key[3] or 0): group for group in groups(rows) if group.key[2] == SHAPE}


def change(server: str, batch: int) -> Interval | None:
    """Return how much less energy per output token the H200s use than the H100."""
    group = h100_cells().get((server, batch))
    return saved(group.values("joules_per_output_token"), per_token(server, SHAPE, batch)) if group else None


def offline() -> str:
    body = []
    for server in SERVERS:
        for batch in sorted(batch for name, batch in h100_cells() if name == server):
            both = h100_cells()[server, batch], cells()[server, SHAPE, batch]
            body.append(
                [
                    NAMES[server],
                    str(batch),
                    *(plus_minus(group.values("joules_per_output_token")) for group in both),
                    percents(change(server, batch), -1),
                    ", ".join(f"{group.mean('mean_watts'):.0f}" for group in both),
                    ", ".join(f"{group.mean('output_tokens_per_s'):,.0f}" for group in both),
                ]
            )
    head = ["", "batch", "H100", "H200", "H200 against H100 [95 %]", "W: H100, H200", "tokens/s: H100, H200"]
    return table(head, body)


def frameworks() -> str:
    """Return the table of what vLLM saves against eager transformers on either card."""
    body = []
    for batch in batches_of(SHAPE, SERVERS):
        vllm, eager = (h100_cells().get((name, batch)) for name in SERVERS)
        if vllm and eager:
            on_h100 = saved(eager.values("joules_per_output_token"), vllm.values("joules_per_output_token"))
            on_h200 = saved(per_token("hf-eager", SHAPE, batch), per_token("vllm-graphs", SHAPE, batch))
            body.append([str(batch), percents(on_h100), percents(on_h200)])
    return table(["batch", "vLLM saves on the H100 [95 %]", "on the H200s [95 %]"], body)


def coefficients() -> str:
    """Return the two-phase fit of each card's profile, beside its data sheet."""
    model = read_model("llama-3.1-8b")
    body = []
    for card, name in PROFILES.items():
        profile, hardware = read_energy_profile(name), read_hardware(card)
        fit = fit_two_phase(profile.cells)
        assert fit is not None
        weights_s = model.parameters * model.bytes_per_parameter / hardware.peak_bytes_per_s
        token_j = 2 * model.parameters / hardware.peak_flops * hardware.limit_w
        body.append(
            [
                card.upper(),
                sig(fit.step),
                f"{sig(1e3 * weights_s)} ms, {sig(weights_s * hardware.limit_w)} J",
                sig(1e3 * fit.input_token),
                sig(1e3 * token_j),
                sig(1e3 * fit.output_token),
                f"{profile.idle_w:.0f}" if profile.idle_w else "-",
                percent(fit.rms),
            ]
        )
    head = ["", "J/step", "weights read, at the power limit", "mJ/input token", "at peak FLOPs and the power limit"]
    return table([*head, "mJ/output token", "idle W", "rms"], body)


def figure() -> str:
    def line(server: str, colour: int) -> Line:
        batches: Sequence[int] = sorted(batch for name, batch in h100_cells() if name == server)
        return Line(NAMES[server], by_batch(batches, lambda batch: scaled(change(server, batch), -100)), colour, colour)

    lines = [line(server, colour) for colour, server in enumerate(SERVERS)]
    title = "H200 against H100: energy per output token; bars: 95 %"
    return picture(title, "batch", lines, batch_axis(), share_axis(-40, 20))


TABLES = {"gpus-offline": offline, "gpus-frameworks": frameworks, "gpus-coefficients": coefficients}
FIGURES = {"gpus": figure}

"""Rows of a study's table with given values."""

from typing import Any

from loadgen.results.study_table import Row


def row(server: str = "a", repeat: int = 0, **fields: object) -> Row:
    """Return a row of server, model "m", workload "w" at batch 8, unless `fields` says otherwise."""
    values: dict[str, object] = dict.fromkeys(Row.__struct_fields__)
    values |= {"cell": f"{server}-{repeat}", "model": "m", "workload": "w", "batch": 8, "simulated": False}
    values |= {"completed": 10, "failed": 0, "duration_s": 5.0, "energy_valid": True}
    return Row(**(values | {"server": server, "repeat": repeat} | fields))  # type: ignore[arg-type]


def full_row(
    server: str = "plain", batch: int | None = None, rps: float | None = 8.0, repeat: int = 0, **changes: Any
) -> Row:
    """Return a row of workload "chat" at a rate or in a batch, with a plausible value in every field."""
    load = rps or batch or 1
    values: dict[str, Any] = {
        "cell": f"{server}-{batch}-{rps}-{repeat}",
        "model": "m",
        "workload": "chat",
        "batch": batch,
        "rps": rps,
        "completed": 160,
        "duration_s": 20.0,
        "input_tokens": 1000,
        "output_tokens": 1000,
        "output_tokens_per_s": 100.0 * load,
        "measured_joules": 8000.0,
        "prefill_joules": 2000.0,
        "decode_joules": 5000.0,
        "idle_joules": 1000.0,
        "unattributed_joules": 0.0,
        "mean_watts": 400.0,
        "joules_per_output_token": 8.0 / load + 0.01 * repeat,
        "joules_per_request": 50.0,
        "ttft_p50_s": 0.05,
        "ttft_p99_s": 0.2,
        "tpot_p50_s": 0.005,
        "tpot_p99_s": 0.005 * (1 + load / 16),
        "e2e_p50_s": 1.0,
        "goodput_ratio": 0.75,
        "good_requests_per_joule": 0.015,
        "idealized_joules": 800.0,
        "measured_over_idealized": 10.0,
        "gpu": "GPU",
        "temperature_c": 40.0,
        "arrival": "poisson" if rps else None,
        "idle_watts": 120.0,
        "verdict": "ok",
    }
    return row(server, repeat, **(values | changes))


def repeats(*loads: tuple[int | None, float | None], server: str = "plain", **changes: Any) -> list[Row]:
    """Return three repeats at each (batch, rate)."""
    return [full_row(server, batch, rps, repeat, **changes) for batch, rps in loads for repeat in (0, 1, 2)]

"""Rows of a study's table with given values."""

from loadgen.results.study_table import Row


def row(server: str = "a", repeat: int = 0, **fields: object) -> Row:
    """Return a row of server, model "m", workload "w" at batch 8, unless `fields` says otherwise."""
    values: dict[str, object] = dict.fromkeys(Row.__struct_fields__)
    values |= {"cell": f"{server}-{repeat}", "model": "m", "workload": "w", "batch": 8, "simulated": False}
    values |= {"completed": 10, "failed": 0, "duration_s": 5.0, "energy_valid": True}
    return Row(**(values | {"server": server, "repeat": repeat} | fields))  # type: ignore[arg-type]

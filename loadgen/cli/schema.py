"""loadgen schema: print the JSON Schema of a file."""

from pathlib import Path

import click

_SCHEMAS = Path(__file__).parents[1] / "schemas"


@click.command()
@click.argument("file", type=click.Choice(sorted(path.name.split(".")[0] for path in _SCHEMAS.glob("*.schema.json"))))
def schema(file: str) -> None:
    """Print the JSON Schema of a file of a run or of a study. Each field has its meaning, and its unit as `x-unit`.

    \b
    loadgen schema summary > summary.schema.json
    """
    click.echo((_SCHEMAS / f"{file}.schema.json").read_text(), nl=False)

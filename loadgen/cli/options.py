"""Option types and defaults that several commands share."""

import click

DEFAULT_URL = "http://localhost:8000/v1"
POSITIVE = click.FloatRange(min=0, min_open=True, max=1e9, clamp=False)
"""A finite number above 0."""


def key_values(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    """Split each KEY=VALUE. A value may hold any text: some are JSON."""
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (key, mark, _) in zip(texts, pairs, strict=True) if not mark or not key.strip()]:
        raise click.BadParameter(f"{bad[0]!r} is not KEY=VALUE")
    return {key.strip(): value for key, _, value in pairs}

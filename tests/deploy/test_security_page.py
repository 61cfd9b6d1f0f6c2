"""SECURITY.md states limits and defaults of the code: they are those of the code."""

from pathlib import Path

import click
import pytest

from loadgen import http_get
from loadgen.cli.serve import serve
from loadgen.cli.sidecar import sidecar
from loadgen.client.client import MAX_DETAIL_CHARS
from loadgen.sidecar import accounts, app, ledger
from loadgen.telemetry import otlp_parse

ROOT = Path(__file__).parents[2]
TEXT = " ".join((ROOT / "SECURITY.md").read_text().split())


@pytest.mark.parametrize(
    "claim",
    [
        f"A body has at most {app.MAX_OTLP_BYTES >> 20} MiB after decompression",
        f"({app.MAX_QUEUED_SPANS:,} spans waiting, {ledger.MAX_OPEN:,} in the ledger)",
        f"Names have at most {otlp_parse.MAX_TEXT} characters and there are at most {accounts.MAX_LABELS} pairs",
        f"At most {http_get.MAX_BODY_BYTES >> 20} MiB are read, redirects are not followed",
        f"all paths but `{app.OPEN_PATHS[0]}`",
        f"up to {MAX_DETAIL_CHARS} characters of the server's error",
    ],
)
def test_a_limit_that_is_stated_is_that_of_the_code(claim: str) -> None:
    assert claim in TEXT
    assert len(app.OPEN_PATHS) == 1


@pytest.mark.parametrize("command", [sidecar, serve])
def test_a_command_that_listens_does_so_on_loopback(command: click.Command) -> None:
    defaults = {option.name: option.default for option in command.params}
    assert defaults["host"] == "127.0.0.1"

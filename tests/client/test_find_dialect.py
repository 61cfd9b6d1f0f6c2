"""The richest set of fields that the server accepts is used, at the cost of few requests."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from loadgen.client.client import Client
from loadgen.client.find_dialect import FALLBACKS, named_in, probe_once
from loadgen.client.openai_api import Dialect
from loadgen.errors import LoadgenError
from support.fake_api import Answer, FakeServer, probed, refusal
from support.scripted_server import GOOD, Step, wire

pytestmark = pytest.mark.usefixtures("no_pauses")

FIELDS = {"ignore_eos": "ignore_eos", "min_tokens": "min_tokens", "include_usage": "stream_options"}


def refused_fields(dialect: Dialect) -> list[str]:
    """Return the fields that a server refuses whose richest dialect is `dialect`."""
    limit = "max_tokens" if dialect.max_completion_tokens else "max_completion_tokens"
    return [limit, *(field for name, field in FIELDS.items() if not getattr(dialect, name))]


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("dialect", FALLBACKS, ids=range(len(FALLBACKS)))
def test_fields_that_a_refusal_does_not_name_are_left_out_one_after_another(dialect: Dialect, status: int) -> None:
    def refuses(body: dict[str, Any]) -> Answer | None:
        return refusal(status) if any(field in body for field in refused_fields(dialect)) else None

    fake = FakeServer(refuses=refuses)
    assert probed(fake).server.dialect == dialect
    assert all(body.get("max_tokens", body.get("max_completion_tokens")) == 1 for body in fake.bodies)


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("accepted", list(product([True, False], repeat=4)))
def test_a_field_that_a_refusal_names_is_the_only_one_that_is_left_out(
    status: int, accepted: tuple[bool, bool, bool, bool]
) -> None:
    dialect = Dialect(*accepted)

    def refuses(body: dict[str, Any]) -> Answer | None:
        field = next((field for field in refused_fields(dialect) if field in body), None)
        hint = "; it takes max_completion_tokens" if field == "max_tokens" else ""
        return refusal(status, f"{field} is no parameter of this model{hint}") if field else None

    fake = FakeServer(refuses=refuses)
    assert probed(fake).server.dialect == dialect
    refusals = len(refused_fields(dialect)) - (not dialect.max_completion_tokens)
    assert len(fake.bodies) == refusals + len(["accepted", "a word", "a text"])


FORBIDDEN = '[{"type":"extra_forbidden","loc":["body","min_tokens"],"msg":"Extra inputs are not permitted","input":1}]'


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("unknown field ignore_eos", Dialect(ignore_eos=False)),
        ("Unrecognized request arguments supplied: ignore_eos, min_tokens", Dialect(False, False)),
        ("stream_options is not supported", Dialect(include_usage=False)),
        (FORBIDDEN, Dialect(min_tokens=False)),
        ("'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
         Dialect(max_completion_tokens=True)),
        ("max_tokens must be at least 1", Dialect()),
        ("bad: {min_tokens: 1, ignore_eos: true, stream_options: {include_usage: true}}", Dialect()),
        ("min_tokens_per_second", Dialect()),
        ("", Dialect()),
    ],
)  # fmt: skip
def test_a_refusal_names_what_it_refuses_unless_it_quotes_all(text: str, dialect: Dialect) -> None:
    assert replace(Dialect(), **named_in(text, Dialect())) == dialect


@pytest.mark.parametrize(
    ("extra", "dialect", "sent"),
    [
        ({"ignore_eos": None}, Dialect(ignore_eos=False), {"max_tokens", "min_tokens", "stream_options"}),
        ({"ignore_eos": False}, Dialect(ignore_eos=False),
         {"max_tokens", "min_tokens", "stream_options", "ignore_eos"}),
        ({"min_tokens": None, "stream_options": None}, Dialect(True, False, False), {"max_tokens", "ignore_eos"}),
        ({"max_tokens": None, "max_completion_tokens": 16}, Dialect(),
         {"max_completion_tokens", "ignore_eos", "min_tokens", "stream_options"}),
        ({"temperature": None, "n": 1}, Dialect(), {"max_tokens", "ignore_eos", "min_tokens", "stream_options", "n"}),
    ],
)  # fmt: skip
def test_a_null_of_the_user_removes_a_field(extra: dict[str, Any], dialect: Dialect, sent: set[str]) -> None:
    fake = FakeServer()
    assert probed(fake, extra_body=extra).server.dialect == dialect
    assert all(body.keys() == sent | {"model", "messages", "stream"} for body in fake.bodies)


@pytest.mark.parametrize(("status", "attempts"), [(400, 8), (422, 8), (404, 1), (413, 1), (501, 1)])
def test_only_a_refusal_of_fields_makes_it_try_fewer(status: int, attempts: int) -> None:
    fake = FakeServer(refuses=lambda body: refusal(status))
    with pytest.raises(LoadgenError, match=rf"failed a one-token request to /chat/completions \(http: {status}"):
        probed(fake)
    assert len(fake.bodies) == attempts


@pytest.mark.parametrize(
    "answer", [(429, {}), (500, {}), (503, {}), (200, b"data: {"), (200, b'data: {"error":"no"}\n\n')]
)
def test_a_request_that_fails_once_is_sent_again_with_all_its_fields(answer: Answer) -> None:
    fake, said = FakeServer(), []
    fake.refuses = lambda body: answer if len(fake.bodies) == 1 else None
    assert probed(fake, wait=said.append).server.dialect == Dialect()
    assert len(said) == 1
    assert "is not ready" in said[0]


@pytest.mark.parametrize("answer", [(60.0,), (*GOOD[:-1], 60.0)], ids=["none", "all but the end of the body"])
def test_a_probe_that_is_cancelled_ends_at_once_without_an_error_of_the_server(answer: Sequence[Step]) -> None:
    async def main() -> None:
        async with wire(answer) as server, Client(server.url + "/v1", timeout_s=60) as client:
            probe = asyncio.create_task(probe_once(client, "chat", b"{}", lambda line: None))
            while not server.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            probe.cancel()
            with pytest.raises(asyncio.CancelledError):
                await probe

    asyncio.run(main())


def test_an_attempt_that_hangs_alone_is_given_up_and_the_next_has_the_time_of_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("loadgen.client.find_dialect.FIRST_ANSWER_S", 0.05)

    async def main() -> tuple[str | None, list[str]]:
        said: list[str] = []
        async with (
            wire(lambda n: (60.0,) if n == 0 else (0.2, *GOOD)) as server,
            Client(server.url + "/v1", timeout_s=5) as client,
        ):
            record = await probe_once(client, "chat", b"{}", said.append)
        return record.error, said

    error, said = asyncio.run(main())
    assert error is None
    assert len(said) == 1
    assert "is not ready (timeout: no end after 0.05 s)" in said[0]


def test_a_server_that_hangs_is_asked_twice() -> None:
    async def main() -> tuple[str | None, int]:
        async with wire((60.0,)) as server, Client(server.url + "/v1", timeout_s=0.05) as client:
            record = await probe_once(client, "chat", b"{}", lambda line: None)
            return record.error, len(server.requests)

    assert asyncio.run(main()) == ("timeout", 2)

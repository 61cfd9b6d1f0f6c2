"""The LiteLLM callback: every attempt has an id that no client chose, and nothing of it can fail a call.

The laws of the hooks need no LiteLLM. With `pip install litellm`, the real one is run against the simulated server.
"""

import asyncio
import importlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import loadgen
from loadgen.errors import LoadgenError
from loadgen.integrations import call_energy
from loadgen.integrations.energy_lookup import EnergyLookup, RequestEnergy
from loadgen.results.read_ledger import LedgerFile, ledger_files
from loadgen.sidecar.options import SidecarOptions
from loadgen.sidecar.server import running_sidecar
from loadgen.sidecar.watermark import AllowedLateness
from loadgen.simulator.app import ServerOptions, running_simulator
from sidecar.test_ledger_kill import free_port

HAS_LITELLM = importlib.util.find_spec("litellm") is not None
# LiteLLM would load a table of prices and tokenizers from the network.
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"}
BASE = "http://engine:8000"
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Asked:
    """A lookup that keeps what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.deliver: list[Callable[[RequestEnergy | None], None]] = []

    def add(self, sidecar: str, request_id: str, deliver: Callable[[RequestEnergy | None], None]) -> bool:
        self.asked.append((sidecar, request_id))
        self.deliver.append(deliver)
        return True


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, with the real LiteLLM or with its base class alone."""
    if not HAS_LITELLM:
        for name in ("litellm", "litellm.integrations", "litellm.integrations.custom_logger"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        base = types.new_class("CustomLogger")
        monkeypatch.setattr(sys.modules["litellm.integrations.custom_logger"], "CustomLogger", base, raising=False)
    monkeypatch.delitem(sys.modules, "loadgen.integrations.litellm", raising=False)
    yield importlib.import_module("loadgen.integrations.litellm")
    sys.modules.pop("loadgen.integrations.litellm", None)


@pytest.fixture
def callback(module: Any) -> Any:
    made = module.LiteLLMEnergy({BASE + "/": "http://gpu:9478"})
    made.lookup, made.sent = Asked(), []
    made._report = lambda _, placed: made.sent.append(placed)
    return made


def logging_object() -> Any:
    return types.SimpleNamespace(model_call_details={})


def named(callback: Any, logged: Any, **arguments: Any) -> dict[str, Any] | None:
    kwargs = {"litellm_logging_obj": logged, "api_base": BASE + "/v1", "model": "openai/m"} | arguments
    result = asyncio.run(callback.async_pre_call_deployment_hook(dict(kwargs), None))
    assert result is None or isinstance(result, dict)
    return result


def headers_of(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    assert kwargs is not None
    return dict(kwargs["extra_headers"])


def event(logged: Any, **changes: Any) -> dict[str, Any]:
    payload = {
        "id": "chatcmpl-1", "litellm_call_id": "c", "model_group": "llama", "model": "openai/m", "stream": False,
        "api_base": BASE + "/v1", "startTime": 10.0, "endTime": 12.0, "completionStartTime": 11.0, "response_cost": 0.5,
        "end_user": None, "cache_hit": None,
        "metadata": {
            "user_api_key_hash": "SECRET", "user_api_key_team_id": "t1", "user_api_key_team_alias": "blue",
            "user_api_key_user_id": "u", "user_api_key_alias": "k",
            "usage_object": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
        },
    } | changes  # fmt: skip
    return {**logged.model_call_details, "standard_logging_object": payload, "optional_params": {}}


def ended(callback: Any, kwargs: Any, ok: bool = True) -> None:
    hook = callback.async_log_success_event if ok else callback.async_log_failure_event
    asyncio.run(hook(kwargs, None, None, None))


# -- ids ----------------------------------------------------------------------------------------------------------


def test_each_attempt_has_an_id_of_its_own_and_is_looked_up(callback: Any) -> None:
    logged = logging_object()
    ids = [headers_of(named(callback, logged))["X-Request-Id"] for _ in range(3)]
    ended(callback, event(logged))
    assert len(set(ids)) == 3
    assert callback.lookup.asked == [("http://gpu:9478", request_id) for request_id in ids]
    assert [placed.call.ok for placed in callback.sent] == [False, False, True]


def test_an_event_that_comes_twice_counts_once(callback: Any) -> None:
    logged = logging_object()
    named(callback, logged)
    for ok in (True, True, False):
        ended(callback, event(logged), ok)
    assert len(callback.lookup.asked) == 1


def test_a_call_that_litellm_makes_for_another_keeps_its_id(callback: Any) -> None:
    logged = logging_object()
    outer = named(callback, logged)
    assert named(callback, logged, extra_headers=headers_of(outer)) is None
    ended(callback, event(logged))
    assert [request_id for _, request_id in callback.lookup.asked] == [headers_of(outer)["X-Request-Id"]]


@pytest.mark.parametrize("place", ["extra_headers", "headers"])
def test_an_id_that_the_client_chose_is_replaced(callback: Any, place: str) -> None:
    kwargs = named(callback, logging_object(), **{place: {"x-request-ID": "victim", "x-tenant": "a"}})
    assert kwargs is not None
    everything = {**kwargs.get("headers", {}), **kwargs["extra_headers"]}
    ids = [value for name, value in everything.items() if name.lower() == "x-request-id"]
    assert len(ids) == 1 and ids[0].startswith("litellm-")
    assert everything["x-tenant"] == "a"


def test_a_trace_that_the_client_began_goes_on(callback: Any) -> None:
    logged = logging_object()
    headers = headers_of(named(callback, logged, extra_headers={"Traceparent": CLIENT}))
    ended(callback, event(logged))
    ((_, place),) = callback.sent
    assert [value for name, value in headers.items() if name.lower() == "traceparent"] == [place.header]
    assert place.header[3:35] == CLIENT[3:35] and place.header[36:52] != CLIENT[36:52]


@pytest.mark.parametrize(
    ("api_base", "is_watched"),
    [(BASE, True), (BASE + "/v1", True), (BASE + "0/v1", False), ("https://api.openai.com/v1", False), (None, False),
     (5, False)],
)  # fmt: skip
def test_calls_to_engines_that_no_sidecar_watches_are_left_alone(
    callback: Any, api_base: Any, is_watched: bool
) -> None:
    assert (named(callback, logging_object(), api_base=api_base) is not None) is is_watched


def test_the_sidecar_with_the_longest_base_is_asked(module: Any) -> None:
    callback = module.LiteLLMEnergy({BASE: "http://a:1", BASE + "/b": "http://b:1"}, spans=False)
    assert [callback._sidecar_of(BASE + path) for path in ("/v1", "/b/v1", "/bc")] == [
        "http://a:1", "http://b:1", "http://a:1",
    ]  # fmt: skip
    assert module.LiteLLMEnergy("http://a:1", spans=False)._sidecar_of("http://any/v1") == "http://a:1"


def test_without_spans_the_headers_of_a_trace_stay_as_they_are(module: Any) -> None:
    callback = module.LiteLLMEnergy("http://gpu:9478", spans=False)
    assert headers_of(named(callback, logging_object(), extra_headers={"traceparent": CLIENT}))["traceparent"] == CLIENT


def test_the_proxys_answer_has_the_id_of_the_newest_attempt(callback: Any) -> None:
    logged = logging_object()
    ids = [headers_of(named(callback, logged))["X-Request-Id"] for _ in range(2)]
    hook = callback.async_post_call_response_headers_hook
    assert asyncio.run(hook({"litellm_logging_obj": logged}, None, None)) == {"x-loadgen-request-id": ids[1]}
    assert asyncio.run(hook({}, None, None)) is None
    assert callback.errors == 0


# -- what LiteLLM reports -----------------------------------------------------------------------------------------


def test_a_call_has_its_team_and_cost_and_no_key(callback: Any) -> None:
    logged = logging_object()
    named(callback, logged)
    ended(callback, event(logged))
    ((call, _),) = callback.sent
    assert (call.team, call.team_alias, call.user, call.api_key_alias) == ("t1", "blue", "u", "k")
    assert (call.requested_model, call.cost, call.call_id) == ("llama", 0.5, "c")
    assert (call.input_tokens, call.output_tokens, call.cached_tokens) == (7, 3, 2)
    assert "SECRET" not in repr(call)


@pytest.mark.parametrize(
    ("stream", "options", "tokens"),
    [(False, {}, 3), (True, {}, None), (True, {"include_usage": False}, None), (True, {"include_usage": True}, 3)],
)
def test_tokens_that_litellm_estimates_are_no_tokens(
    callback: Any, stream: bool, options: dict[str, bool], tokens: int | None
) -> None:
    logged = logging_object()
    named(callback, logged)
    ended(callback, event(logged, stream=stream) | {"optional_params": {"stream_options": options}})
    assert callback.sent[0].call.output_tokens == tokens


@pytest.mark.parametrize("where", ["payload", "kwargs"])
def test_an_answer_of_litellms_cache_used_no_energy(callback: Any, where: str) -> None:
    logged = logging_object()
    named(callback, logged)
    hit = {"cache_hit": True}
    ended(callback, event(logged, **hit) if where == "payload" else event(logged) | hit)
    ended(callback, event(logged))
    assert (callback.lookup.asked, callback.sent) == ([], [])


def test_a_call_without_a_hook_is_looked_up_by_the_id_of_its_answer(callback: Any) -> None:
    callback.log_success_event(event(logging_object()), None, None, None)
    callback.log_failure_event(event(logging_object()), None, None, None)
    assert (callback.lookup.asked, callback.sent) == ([("http://gpu:9478", "chatcmpl-1")], [])


def test_each_attempt_that_failed_is_looked_up_when_litellm_reports_it(callback: Any) -> None:
    logged = logging_object()
    hook = callback.async_post_call_failure_deployment_hook
    named(callback, logged)
    asyncio.run(hook({"litellm_logging_obj": logged}, ValueError(), None, fallback_depth=None))
    assert callback.lookup.asked == [], "its event is still to come"
    logged.model_call_details["standard_logging_object"] = event(logged)["standard_logging_object"]
    for number in (1, 2, 3):
        asyncio.run(hook({"litellm_logging_obj": logged}, ValueError(), None, fallback_depth=None))
        assert len(callback.lookup.asked) == number
        named(callback, logged)
    assert {placed.call.cost for placed in callback.sent} == {None}


@pytest.mark.parametrize(
    "kwargs",
    [
        {}, {"litellm_logging_obj": None}, {"litellm_logging_obj": 5}, {"extra_headers": "evil"},
        {"extra_headers": {5: "x"}}, {"extra_headers": ["x"]},
    ],
)  # fmt: skip
def test_arguments_of_another_shape_do_not_fail_a_call(callback: Any, kwargs: dict[str, Any]) -> None:
    given = {"api_base": BASE, "litellm_logging_obj": logging_object()} | kwargs if kwargs else {"api_base": BASE}
    assert asyncio.run(callback.async_pre_call_deployment_hook(given, None)) is None


@pytest.mark.parametrize("changes", [{"metadata": None}, {"startTime": "x"}, {"endTime": None}, {"api_base": None}])
def test_an_event_of_another_shape_is_counted_and_its_text_is_not_logged(
    callback: Any, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    kwargs = event(logging_object(), id="a prompt", **changes)
    for _ in range(2):
        callback.log_success_event(kwargs, None, None, None)
    if changes != {"api_base": None}:
        assert (callback.errors, len(caplog.messages)) == (2, 1)
    assert "a prompt" not in caplog.text


def test_texts_are_cut_and_can_be_encoded(callback: Any) -> None:
    logged = logging_object()
    named(callback, logged)
    ended(callback, event(logged, end_user="\ud800" + "x" * 1000, response_cost=float("nan")))
    ((call, _),) = callback.sent
    assert (len(call.end_user), call.cost) == (256, None)
    assert call.end_user.encode()


def test_joules_reach_the_log_and_whoever_subclasses_it(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(module.LiteLLMEnergy):  # type: ignore[misc,name-defined]
        def on_energy(self, energy: call_energy.CallEnergy) -> None:
            received.append(energy)

    received: list[call_energy.CallEnergy] = []
    callback = Mine("http://gpu:9478", log=tmp_path / "e.jsonl", price_per_kwh=0.5, spans=False)
    callback.lookup = Asked()
    callback.log_success_event(event(logging_object()), None, None, None)
    callback.lookup.deliver[0](None)
    assert (received[0].state, received[0].joules) == ("unknown", None)
    assert json.loads((tmp_path / "e.jsonl").read_text())["request_id"] == "chatcmpl-1"


# -- the real LiteLLM ---------------------------------------------------------------------------------------------

TEAMS = ("blue", "red")


async def real_calls(engine: str) -> None:
    """Send calls of two teams, a stream of each among them, and one that the engine refuses."""
    import litellm

    async def call(team: str, number: int) -> None:
        stream = {"stream": True, "stream_options": {"include_usage": True}} if number % 3 == 0 else {}
        answer = await litellm.acompletion(
            "openai/llama-3.1-8b", [{"role": "user", "content": f"Say {number}"}], api_base=engine + "/v1",
            api_key="sk-none", max_tokens=20 if team == "blue" else 60, metadata={"user_api_key_team_alias": team},
            **stream,
        )  # fmt: skip
        if stream:
            async for _ in answer:
                pass

    await asyncio.gather(*(call(team, number) for number in range(6) for team in TEAMS))
    with pytest.raises(litellm.BadRequestError):
        await litellm.acompletion("openai/llama-3.1-8b", [{"role": "user", "content": "no"}], api_base=engine + "/v1",
                                  api_key="sk-none", max_tokens=-1)  # fmt: skip


async def billed_calls(ledger: Path, make: Callable[[str], Any]) -> None:
    """Run calls through LiteLLM against a simulated engine and a sidecar, until their joules are known."""
    import litellm

    url = f"http://127.0.0.1:{free_port()}"
    options = SidecarOptions(
        port=int(url.rpartition(":")[2]), lateness=AllowedLateness(blind_s=2, max_s=30), ledger=ledger,
        labels={"team": "loadgen.tag.team"},
    )  # fmt: skip
    async with (
        running_simulator(ServerOptions(port=0, otlp_traces_endpoint=url + "/v1/traces")) as (_, engine),
        running_sidecar(replace(options, engine_url=engine)),
    ):
        callback = make(url)
        litellm.callbacks = [callback]
        await real_calls(engine)
        await asyncio.sleep(1)  # LiteLLM's own worker reports the calls to its callbacks
        assert await asyncio.to_thread(callback.wait, 60)
        assert callback.errors == 0


@pytest.mark.skipif(not HAS_LITELLM, reason="needs LiteLLM: pip install litellm")
@pytest.mark.filterwarnings("ignore")
def test_the_joules_of_each_call_are_the_ledgers_and_their_sums_by_team_are_the_bills(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(module.LiteLLMEnergy):  # type: ignore[misc,name-defined]
        def on_energy(self, energy: call_energy.CallEnergy) -> None:
            received.append(energy)

    monkeypatch.setattr(module, "EnergyLookup", partial(EnergyLookup, unknown_s=12, pause_s=1))
    received: list[call_energy.CallEnergy] = []
    asyncio.run(billed_calls(tmp_path / "ledger", Mine))
    settled = [energy for energy in received if energy.ok]
    batches = [batch for file in ledger_files(tmp_path / "ledger") for batch, _ in LedgerFile(file).batches()]
    of_ledger = {request.id: request.energy_mj for batch in batches for request in batch.requests}
    whole = {request.id for batch in batches for request in batch.requests if request.whole}
    assert {energy.request_id: round((energy.measured_joules or 0) * 1000) for energy in settled} == of_ledger
    assert {energy.request_id for energy in settled if energy.joules == energy.measured_joules} == whole
    assert len(of_ledger) == 12
    by_team = {team: sum(of_ledger[energy.request_id] for energy in settled if energy.team_alias == team)
               for team in TEAMS}  # fmt: skip
    lines = loadgen.bill(tmp_path / "ledger", by="team").lines.rows()
    assert {row["team"]: row["energy_mj"] for row in lines if row["team"] in TEAMS} == by_team
    assert [energy.state for energy in received if not energy.ok] == ["unknown"], "no engine served it"


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "sidecars"),
    [
        ("", {"": "http://localhost:9478"}), ("http://g:1", {"": "http://g:1"}),
        ("http://a:8000/=http://g:1, http://b:8000=http://h:1", {"http://a:8000": "http://g:1",
                                                                 "http://b:8000": "http://h:1"}),
    ],
)  # fmt: skip
def test_the_environment_names_the_sidecars(module: Any, value: str, sidecars: dict[str, str]) -> None:
    assert module.from_environment({"LOADGEN_SIDECAR": value})._sidecars == sidecars


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        ({"LOADGEN_SIDECAR": "gpu-host"}, "is no http:// or https:// address"),
        ({"LOADGEN_SIDECAR": "http://user:SECRET@:x"}, "malformed host or port"),
        ({"LOADGEN_PRICE_PER_KWH": "cheap"}, "LOADGEN_PRICE_PER_KWH is 'cheap'"),
        ({"LOADGEN_PRICE_PER_KWH": "-1"}, "cannot be -1.0"),
        ({"LOADGEN_PRICE_PER_KWH": "nan"}, "cannot be nan"),
        ({"LOADGEN_ENERGY_LOG": "/none/x"}, "/none/x cannot be written"),
        ({"LOADGEN_LITELLM_LABELS": "team,prompt"}, "'prompt' is no label"),
    ],
)
def test_a_setting_that_cannot_be_used_is_an_error_at_once(
    module: Any, environment: dict[str, str], error: str
) -> None:
    with pytest.raises(LoadgenError) as raised:
        module.from_environment(environment)
    assert error in str(raised.value) and "SECRET" not in str(raised.value)


def test_the_callback_of_a_config_is_made_once_when_it_is_used(module: Any) -> None:
    assert "energy" not in vars(module)
    assert module.energy is module.energy
    with pytest.raises(AttributeError):
        _ = module.no_such_name


def test_without_litellm_the_module_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("litellm", "litellm.integrations", "litellm.integrations.custom_logger"):
        monkeypatch.setitem(sys.modules, name, None)  # cannot be imported, even if it is installed
    monkeypatch.delitem(sys.modules, "loadgen.integrations.litellm", raising=False)
    with pytest.raises(LoadgenError, match=r"^the LiteLLM callback needs the extra 'litellm': .*install.*$"):
        importlib.import_module("loadgen.integrations.litellm")

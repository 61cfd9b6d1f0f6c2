"""A recipe is data; the command it gives is a list of words that no shell reads."""

import os
from pathlib import Path

import pytest

from loadgen.errors import LoadgenError
from loadgen.servers import recipe as recipes
from loadgen.servers.recipe import Recipe, command, docker_command, flags, names, option_values, read_recipe, variables

PLACES = {"python": "/usr/bin/python3", "host": "127.0.0.1", "port": "8123", "model": "some/model"}


@pytest.mark.parametrize("name", names())
def test_every_recipe_in_the_project_can_be_started_one_way_or_another(name: str) -> None:
    recipe = read_recipe(name)
    values = option_values(recipe, {})
    words = command(recipe, values, PLACES) if recipe.command else docker_command(recipe, values, PLACES)
    assert "8123" in " ".join(words) and "some/model" in words
    assert not [word for word in words if word.startswith("{") and word.endswith("}")]
    assert (recipe.folder / "README.md").is_file()
    for key, option in recipe.engine_options.items():
        assert option.flag or option.environment, f"{key} sets nothing"


def test_vllm_sends_its_spans_in_the_protocol_of_the_url_that_it_is_given() -> None:
    recipe = read_recipe("vllm")
    assert variables(recipe, option_values(recipe, {}), PLACES)["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"


OPTIONS = [
    ("nothing requested: the recipe's defaults", {}, ["--no-enable-prefix-caching"]),
    ("a switch on", {"eager": "on", "prefix_caching": True}, ["--enforce-eager", "--enable-prefix-caching"]),
    ("a switch off that has a flag for it", {"chunked_prefill": "off", "prefix_caching": "0"},
     ["--no-enable-prefix-caching", "--no-enable-chunked-prefill"]),
    ("a number, and the recipe's order", {"tensor_parallel": 2, "max_num_seqs": "64"},
     ["--max-num-seqs", "64", "--no-enable-prefix-caching", "--tensor-parallel-size", "2"]),
    ("JSON is one word", {"speculative": '{"method": "ngram"}'},
     ["--no-enable-prefix-caching", "--speculative-config", '{"method": "ngram"}']),
    ("a variable is no flag", {"cpu_kv_cache_gib": 1}, ["--no-enable-prefix-caching"]),
]  # fmt: skip


@pytest.mark.parametrize(("said", "asked", "expected"), OPTIONS, ids=[row[0] for row in OPTIONS])
def test_engine_options_become_flags(said: str, asked: dict[str, recipes.OptionValue], expected: list[str]) -> None:
    vllm = read_recipe("vllm")
    assert flags(vllm, option_values(vllm, asked)) == expected


def test_an_engine_option_can_be_a_variable() -> None:
    vllm = read_recipe("vllm")
    assert variables(vllm, option_values(vllm, {"cpu_kv_cache_gib": 2}), PLACES)["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert "VLLM_CPU_KVCACHE_SPACE" not in variables(vllm, option_values(vllm, {}), PLACES)


WRONG = [
    ("no such option", "vllm", {"speed": "high"}, "no engine option 'speed'; it has: .*eager"),
    ("not a switch", "vllm", {"eager": "maybe"}, "eager of vllm: 'maybe' is not on or off"),
    ("not a whole number", "vllm", {"max_num_seqs": "1.5"}, "'1.5' is not a whole number"),
    ("not one of the choices", "transformers", {"decoding": "magic"}, "'magic' is none of greedy, sampled"),
]


@pytest.mark.parametrize(("said", "name", "asked", "error"), WRONG, ids=[row[0] for row in WRONG])
def test_a_wrong_value_is_refused_with_what_would_be_right(
    said: str, name: str, asked: dict[str, recipes.OptionValue], error: str
) -> None:
    with pytest.raises(LoadgenError, match=error):
        option_values(read_recipe(name), asked)


def test_an_unknown_server_and_a_docker_only_one_say_what_there_is() -> None:
    with pytest.raises(LoadgenError, match="no server called 'nonesuch'; there are: llamacpp, sim, "):
        read_recipe("nonesuch")
    tgi = read_recipe("tgi")
    with pytest.raises(LoadgenError, match=r"Docker only; start it with: docker run .*some/model"):
        command(tgi, {}, PLACES)


def test_a_secret_reaches_docker_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_TOKEN", "hf_secret")
    words = docker_command(read_recipe("vllm"), {}, PLACES)
    assert words[words.index("HF_TOKEN") - 1] == "-e"
    assert "hf_secret" not in " ".join(words)


def test_a_misspelt_recipe_is_an_error_with_its_file() -> None:
    with pytest.raises(LoadgenError, match=r"x/recipe.toml: .*sumary"):
        recipes.parse_recipe('sumary = "?"', Path("x/recipe.toml"))


def test_host_and_model_are_words_not_shell() -> None:
    hostile = {**PLACES, "model": "a b; rm -rf $HOME"}
    recipe: Recipe = read_recipe("vllm")
    assert "a b; rm -rf $HOME" in command(recipe, {}, hostile)


MINIMAL = """
summary = "s"
engine = "e"
command = ["{python}", "-m", "e", "{folder}/serve.py", "--at={host}:{port}"]
model = "m"
metrics = "/metrics"
environment = { WHERE = "{host}" }
[speaks]
ignore_eos = true
min_tokens = false
usage = true
token_id_prompts = false
tokenize = false
[knobs.size]
flag = "--size"
type = "int"
default = 4
help = "h"
[knobs.share]
flag = "--share"
type = "float"
help = "h"
[knobs.fast]
flag = "--fast"
type = "switch"
help = "h"
[knobs.safe]
off_flag = "--unsafe"
type = "switch"
default = true
help = "h"
[knobs.mode]
environment = "MODE"
type = "str"
choices = ["a", "b"]
help = "h"
"""


def minimal(*replacements: tuple[str, str]) -> Recipe:
    text = MINIMAL
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return recipes.parse_recipe(text, Path("servers/mine/recipe.toml"))


def test_a_recipe_is_named_after_its_folder_and_fills_its_placeholders() -> None:
    recipe = minimal()
    assert (recipe.name, recipe.folder, recipe.health) == ("mine", Path("servers/mine"), "/health")
    words = ["/usr/bin/python3", "-m", "e", "servers/mine/serve.py", "--at=127.0.0.1:8123"]
    assert command(recipe, {}, PLACES) == words
    assert variables(recipe, {}, PLACES) == {"WHERE": "127.0.0.1"}


MALFORMED = [
    ("not TOML", ('engine = "e"', "engine ="), "Invalid value"),
    ("a missing field", ('engine = "e"', ""), "missing required field `engine`"),
    ("an unknown field of an option", ('flag = "--size"', 'flg = "--size"'), "unknown field `flg`"),
    ("an unknown type of an option", ('type = "float"', 'type = "real"'), "Invalid enum value 'real'"),
    ("a missing capability", ("\nusage = true\n", "\n"), "missing required field `usage`"),
]


@pytest.mark.parametrize(("problem", "change", "message"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_a_malformed_recipe_is_refused_with_its_file(problem: str, change: tuple[str, str], message: str) -> None:
    with pytest.raises(LoadgenError, match=rf"servers/mine/recipe.toml: .*{message}"):
        minimal(change)


VALUES = [
    ("size", "7", 7),
    ("size", " -7 ", -7),
    ("size", 7, 7),
    ("share", "0.5", 0.5),
    ("share", 1, 1.0),
    ("fast", "ON", True),
    ("fast", "true", True),
    ("fast", "1", True),
    ("fast", True, True),
    ("fast", "off", False),
    ("fast", "False", False),
    ("fast", "0", False),
    ("mode", "b", "b"),
]


@pytest.mark.parametrize(("name", "value", "expected"), VALUES)
def test_a_value_is_converted_to_the_type_of_its_option(
    name: str, value: recipes.OptionValue, expected: recipes.OptionValue
) -> None:
    converted = option_values(minimal(), {name: value})[name]
    assert converted == expected and type(converted) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("size", "7.0", "engine option size of mine: '7.0' is not a whole number"),
        ("size", "", "'' is not a whole number"),
        ("share", "half", "'half' is not a number"),
        ("fast", "yes", "'yes' is not on or off"),
        ("fast", 2, "'2' is not on or off"),
        ("mode", "c", "'c' is none of a, b"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name: str, value: recipes.OptionValue, message: str) -> None:
    with pytest.raises(LoadgenError, match=message):
        option_values(minimal(), {name: value})


FLAGS = [
    ("defaults", {}, ["--size", "4"]),
    ("a requested value replaces the default", {"size": 5}, ["--size", "5"]),
    ("zero is a value", {"size": 0}, ["--size", "0"]),
    ("a switch that is off and has no flag for it", {"fast": False}, ["--size", "4"]),
    ("a switch that is turned on", {"fast": True}, ["--size", "4", "--fast"]),
    ("the flag of a switch that is off", {"safe": False}, ["--size", "4", "--unsafe"]),
    ("an option without a flag", {"mode": "a"}, ["--size", "4"]),
]


@pytest.mark.parametrize(("rule", "requested", "expected"), FLAGS, ids=[row[0] for row in FLAGS])
def test_flags(rule: str, requested: dict[str, recipes.OptionValue], expected: list[str]) -> None:
    recipe = minimal()
    assert flags(recipe, option_values(recipe, requested)) == expected


def test_docker_publishes_the_port_and_the_container_listens_everywhere() -> None:
    image = 'model = "m"\nimage = "i:1"\nimage_command = ["--at={host}:{port}"]\nimage_port = 80'
    recipe = minimal(('model = "m"', image))
    words = docker_command(recipe, option_values(recipe, {"mode": "a"}), PLACES)
    assert words[words.index("-p") + 1] == "127.0.0.1:8123:80"
    assert [words[i + 1] for i, word in enumerate(words) if word == "-e"] == ["WHERE=0.0.0.0", "MODE=a"]
    assert words[words.index("i:1") :] == ["i:1", "--at=0.0.0.0:80", "--size", "4"]
    with pytest.raises(LoadgenError, match="mine has no image"):
        docker_command(minimal(), {}, PLACES)


def test_a_description_has_the_commands_the_options_with_their_defaults_and_the_quirks() -> None:
    recipe = recipes.read_recipe("vllm")
    places = {"python": "py", "host": "::1", "port": "81", "model": "a b"}
    lines = recipes.describe(recipe, recipes.option_values(recipe, {"max_num_seqs": 9}), places).splitlines()
    assert lines[0] == f"vllm: {recipe.summary}"
    command = lines[lines.index("command:") + 1]
    assert command.startswith("  py -m vllm") and "'a b'" in command and "--max-num-seqs 9" in command
    assert lines[lines.index("in Docker:") + 1].startswith("  docker run ")
    options = lines[lines.index("engine options:") + 1 :][: len(recipe.engine_options)]
    for line, (name, option) in zip(options, recipe.engine_options.items(), strict=True):
        assert line.startswith(f"  {name:<24}{option.type:<8}{option.help}")
        assert line.endswith("]") == (option.default is not None)
    assert lines[-len(recipe.quirks) :] == [f"  {quirk}" for quirk in recipe.quirks]

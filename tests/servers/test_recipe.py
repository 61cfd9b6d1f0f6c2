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

"""--over: the product of engine options, checked by the server's recipe before a server starts."""

import pytest

from loadgen.errors import LoadgenError
from loadgen.load_search.settings import Setting, settings_of


def test_without_options_there_is_a_single_setting_without_a_name() -> None:
    assert settings_of(None, []) == settings_of("sim", []) == (Setting(),)


def test_the_settings_are_the_product_of_the_options_and_the_last_varies_fastest() -> None:
    settings = settings_of("sim", ["max_num_seqs=8,64", " prefix_caching = on, off "])
    assert [setting.name for setting in settings] == [
        "max_num_seqs=8 prefix_caching=on",
        "max_num_seqs=8 prefix_caching=off",
        "max_num_seqs=64 prefix_caching=on",
        "max_num_seqs=64 prefix_caching=off",
    ]
    assert settings[1].words == ["--engine-option", "max_num_seqs=8", "--engine-option", "prefix_caching=off"]


def test_an_option_with_a_single_value_is_set_and_is_not_in_the_names() -> None:
    settings = settings_of("sim", ["hardware=a100", "max_num_seqs=8,64"])
    assert [setting.name for setting in settings] == ["max_num_seqs=8", "max_num_seqs=64"]
    assert all(setting.options["hardware"] == "a100" for setting in settings)
    assert settings_of("sim", ["max_num_seqs=8"]) == (Setting("", {"max_num_seqs": "8"}),)


def test_values_with_commas_are_a_list_in_json() -> None:
    settings = settings_of("sim", ['draft_acceptance=["0.7,0.5", 0.9]'])
    assert [setting.options["draft_acceptance"] for setting in settings] == ["0.7,0.5", "0.9"]
    drafts = settings_of("vllm", ['speculative=["{\\"method\\": \\"ngram\\", \\"num_speculative_tokens\\": 4}"]'])
    assert drafts[0].options["speculative"] == '{"method": "ngram", "num_speculative_tokens": 4}'


@pytest.mark.parametrize(
    ("serve", "over", "message"),
    [
        (None, ["max_num_seqs=8"], "--over needs --serve"),
        ("sim", ["max_num_seqs"], "is not KEY=V1,V2"),
        ("sim", ["=8"], "is not KEY=V1,V2"),
        ("sim", ["max_num_seqs="], "is not KEY=V1,V2"),
        ("sim", ["max_num_seqs=8,,64"], "has an empty value"),
        ("sim", ["max_num_seqs=[8, 64"], "not a list in JSON"),
        ("sim", ["max_num_seqs=[]"], "has an empty value"),
        ("sim", ["max_num_seqs=8", "max_num_seqs=64"], "has max_num_seqs twice"),
        ("sim", ["max_num_seqs=8,08"], "max_num_seqs=08 is there twice"),
        ("sim", ["prefix_caching=on,true"], "prefix_caching=true is there twice"),
        ("sim", ["batch=8"], "sim has no engine option 'batch'; it has: hardware"),
        ("sim", ["max_num_seqs=8,many"], "engine option max_num_seqs of sim: 'many' is not a whole number"),
        ("sim", ["prefix_caching=on,perhaps"], "'perhaps' is not on or off"),
        ("nothing", ["a=1"], "no server called 'nothing'"),
    ],
)
def test_bad_options_fail_before_a_server_starts(serve: str | None, over: list[str], message: str) -> None:
    with pytest.raises(LoadgenError, match=message.replace("[", r"\[")):
        settings_of(serve, over)


def test_names_hold_no_secrets() -> None:
    assert Setting("x", {"api_key": "hidden", "max_num_seqs": "8"}).recorded_options["api_key"] == "[redacted]"

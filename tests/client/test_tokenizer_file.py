"""A tokenizer's files count as the model's server does: a chat by its template."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from loadgen.client.tokenizer_file import TokenizerFile
from loadgen.errors import LoadgenError

CHAT = {"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {{ message.role }} : {{ message.content }} \n"
    "{% endfor %}\n"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if thinks %}thinks {% endif %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
BY_TEMPLATE = len(["BOS", "user", ":", "one", "two", "assistant", ":", "three", "assistant", ":"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def configured(folder: Path, **config: Any) -> TokenizerFile:
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "BOS "}} | config))
    return TokenizerFile(folder / "tokenizer.json")


@pytest.mark.parametrize(
    "template", [TEMPLATE, [{"name": "rag", "template": "no"}, {"name": "default", "template": TEMPLATE}]]
)
def test_a_chat_is_counted_by_the_template_in_the_configuration(folder: Path, template: Any) -> None:
    file = configured(folder, chat_template=template)
    assert file.has_template and file.count_chat(CHAT) == BY_TEMPLATE


def test_a_template_in_a_file_of_its_own_takes_precedence(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("one")
    assert configured(folder, chat_template=TEMPLATE).count_chat(CHAT) == 1


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({"add_generation_prompt": False}, -2),
        ({"chat_template_kwargs": {"thinks": True}}, 1),
        ({"tools": [{"a b": 1}]}, 2),
        ({"chat_template_kwargs": None}, 0),
    ],
)
def test_the_fields_of_a_request_reach_the_template(folder: Path, fields: dict[str, Any], more: int) -> None:
    template = TEMPLATE.replace("{{ tools | tojson }}", "{{ tools | tojson }} ")
    assert configured(folder, chat_template=template).count_chat(CHAT | fields) == BY_TEMPLATE + more


def test_without_a_template_only_the_texts_are_counted(folder: Path) -> None:
    for file in (TokenizerFile(folder), configured(folder)):
        assert not file.has_template and file.count_chat(CHAT) == 3


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ messages[9].role }}", "{{ 1 // 0 }}"])
def test_a_chat_that_the_template_refuses_is_not_counted(folder: Path, template: str) -> None:
    assert configured(folder, chat_template=template).count_chat(CHAT) is None


def test_a_template_cannot_reach_out_of_its_sandbox(folder: Path) -> None:
    reaching = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    assert configured(folder, chat_template=reaching).count_chat(CHAT) is None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", "{", "not a JSON object"),
        ("chat_template.jinja", "{% for %}", "its chat template is none"),
        ("tokenizer.json", "{}", "not a tokenizer"),
    ],
)
def test_a_file_that_is_none_is_an_error_with_its_name(folder: Path, name: str, content: str, words: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(LoadgenError, match=words):
        TokenizerFile(folder)

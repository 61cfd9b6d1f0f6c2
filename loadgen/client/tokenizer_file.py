"""A tokenizer's files on this machine: tokenizer.json, and the chat template beside it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.extras import importing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class TokenizerFile:
    """Counts tokens with a Hugging Face tokenizer.json, and chats with the template that lies beside it."""

    def __init__(self, path: Path) -> None:
        """Raises LoadgenError."""
        with importing("--tokenizer", "tokenizer"):
            from tokenizers import Tokenizer
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise LoadgenError(f"--tokenizer {path}: no tokenizer.json there")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as err:  # the library raises bare Exception for every malformed file
            raise LoadgenError(f"--tokenizer {file}: not a tokenizer: {err}") from err
        self._render = _chat_template(file.parent)

    @property
    def has_template(self) -> bool:
        return self._render is not None

    def count_all(self, texts: list[str]) -> dict[str, int]:
        """Count the tokens of texts, without special ones."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return {text: len(encoding.ids) for text, encoding in zip(texts, encodings, strict=True)}

    def count_text(self, text: str, special: bool) -> int:
        """Count the tokens of one text; `special` adds those that the tokenizer puts around it."""
        return len(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def count_chat(self, chat: Mapping[str, Any]) -> int | None:
        """Count the tokens of a chat by its template; without one, of its texts alone. None: it cannot be made."""
        if self._render is None:
            texts = [_text_of(message.get("content")) for message in chat["messages"]]
            return sum(self.count_text(text, special=False) for text in texts)
        rendered = self._render(chat)
        return None if rendered is None else self.count_text(rendered, special=False)


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else ""


def _chat_template(folder: Path) -> Callable[[Mapping[str, Any]], str | None] | None:
    """Return a function that makes the text of a chat as the transformers library does; None without a template.

    LoadgenError: it is no template, or jinja2 is not installed.
    """
    config: dict[str, Any] = {}
    if (file := folder / "tokenizer_config.json").is_file():
        try:
            config = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as err:
            raise LoadgenError(f"--tokenizer {file}: not a JSON object: {err}") from err
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if (file := folder / "chat_template.jinja").is_file():
        source = file.read_text()
    if not isinstance(source, str):
        return None
    with importing("a chat template", "tokenizer"):
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None: msgspec.json.encode(value).decode()
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        **{name: _token(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
    }
    try:
        template = environment.from_string(source)
    except TemplateError as err:
        raise LoadgenError(f"--tokenizer {folder}: its chat template is none: {err}") from err

    def render(chat: Mapping[str, Any]) -> str | None:
        given = {"add_generation_prompt": True, "tools": None, "documents": None} | dict(chat)
        given |= given.pop("chat_template_kwargs", None) or {}
        try:
            return template.render(given)
        except Exception:  # whatever a template does with a chat that it does not expect
            return None

    return render


def _token(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else value or ""

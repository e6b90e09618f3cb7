"""Chat templates, read from a file or a tokenizer's folder and rendered in a sandbox, without torch or transformers."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from demur import thinking
from demur.errors import UserError
from demur.records import Message, digest

DATE = datetime(2026, 1, 1, 9)  # The date that templates print, so that a prompt is the same on every day


class ChatFormat:
    """A chat template and the special tokens that it may use."""

    def __init__(self, where: Path) -> None:
        """Read it. Raises UserError: there is no template, or it is not valid."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._where = where
        text, self._names = _read(where)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        environment.globals |= {"raise_exception": _refuse, "strftime_now": DATE.strftime}
        try:
            # transformers marks the spans to train by `generation` blocks, which plain Jinja does not know.
            self._template = environment.from_string(re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", text))
        except TemplateError as error:
            raise UserError(f"{where}: its chat template cannot be read: {error}") from error
        self.hash = digest([text, self._names])

    def render(self, messages: tuple[Message, ...], **variables: Any) -> str:
        """The prompt for these turns, ending where the reply begins. Raises UserError: the template refuses them."""
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        try:
            return str(self._template.render(messages=turns, add_generation_prompt=True, **self._names, **variables))
        except Exception as error:
            # A template is third-party code: whatever it raises is an error in the configuration.
            raise UserError(f"{self._where}: its chat template refuses the request: {error}") from error


def template_opens_thinking(folder: Path) -> bool | None:
    """Whether a folder's chat template ends in an opened thinking; `None` if it cannot be rendered."""
    try:
        return thinking.opens_thinking(ChatFormat(folder).render((Message(role="user", content="x"),)))
    except UserError:
        return None


def _refuse(reason: str) -> None:
    """What templates call to refuse a conversation."""
    raise ValueError(reason)


def _read(where: Path) -> tuple[str, dict[str, str]]:
    """The template and the special tokens that it may use."""
    if where.is_file():
        return where.read_text(encoding="utf-8"), {"bos_token": "", "eos_token": ""}
    settings = where / "tokenizer_config.json"
    loaded = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    names = {}
    for name in ("bos_token", "eos_token"):
        token = loaded.get(name) or ""
        names[name] = token.get("content", "") if isinstance(token, dict) else str(token)
    file = where / "chat_template.jinja"
    text = file.read_text(encoding="utf-8") if file.is_file() else loaded.get("chat_template")
    if isinstance(text, list):  # several, by name
        text = next((entry["template"] for entry in text if entry.get("name") == "default"), None)
    if not isinstance(text, str):
        raise UserError(f"{where} has no chat template (chat_template.jinja, or one in tokenizer_config.json).")
    return text, names

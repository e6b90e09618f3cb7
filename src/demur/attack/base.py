"""What attacks have in common: how an attacked prompt remembers its question, and reading the attacker's JSON."""

from __future__ import annotations

from msgspec.structs import replace

from demur.records import Prompt
from demur.untrusted import json_object


def derived(prompt: Prompt, text: str, attack: str) -> Prompt:
    """The prompt that an attack made of a question: same intent, category, cluster and gold; the question is its parent."""
    return replace(prompt, id="", text=text, attack=attack, parent=prompt.parent or prompt.id)


def named_text(reply: str, key: str) -> str | None:
    """The text under `key` in a reply that should be a JSON object; `None` when there is none.

    Fences and words around the object are forgiven, and line breaks inside its texts; another form is not.
    """
    found = (json_object(reply, key) or {}).get(key)
    return found.strip() or None if isinstance(found, str) else None

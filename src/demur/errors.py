"""The three ways demur ends early. Every message says what was wrong, what is allowed and what to do.

`UserError` ends a command with exit code 2 (found before work started), `WorkError` and `CheckFailed` with 1.
None of them is shown with a traceback.
"""

import difflib
import re
from collections.abc import Iterable

_secrets: set[str] = set()
_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def keep_secret(text: str) -> None:
    """Strike a text out of every error, and of whatever goes through `scrubbed`, from now on."""
    if len(text) >= 4:
        _secrets.add(text)


def scrubbed(text: str) -> str:
    """A text without the secrets that are known, and without user and password in URLs."""
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, "[secret]")
    return _USER.sub("[secret]@", text) if "@" in text else text


def disarmed(text: str) -> str:
    """A text without control characters and bidirectional marks, which could change what a terminal shows."""
    return _HARMFUL.sub("\ufffd", text)


class DemurError(Exception):
    """What every deliberate error of demur is. No secret and no control character of others stands in its message."""

    exit_code = 1

    def __init__(self, *parts: object) -> None:
        super().__init__(*(disarmed(scrubbed(part)) if isinstance(part, str) else part for part in parts))


class UserError(DemurError, ValueError):
    """Wrong usage, or something missing, found before work started."""

    exit_code = 2


class WorkError(DemurError, RuntimeError):
    """Work that had begun failed; the message says how to go on. Nothing that was finished is lost."""


class CheckFailed(DemurError):
    """A `demur check` did not hold."""


def plural(count: int, word: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """What is allowed in the place of a name, the nearest first: ` Did you mean 'a' or 'b'? Allowed: a, b, c.`"""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.55)
    like = [difflib.SequenceMatcher(None, one, name).ratio() for one in near]  # several may be as near as each other
    named = " or ".join(f"'{one}'" for one in sorted(near[: like.count(max(like, default=0))]))
    return (f" Did you mean {named}?" if near else "") + f" Allowed: {', '.join(names)}."


def unknown(kind: str, name: str, allowed: Iterable[str], *, where: str = "") -> UserError:
    """An error for a name outside a closed set, with the nearest allowed name and the whole list."""
    return UserError(f"unknown {kind} '{name}'{where}.{nearest(name, allowed)}")

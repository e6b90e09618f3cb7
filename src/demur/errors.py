"""The three ways demur ends early. Every message states what was wrong, what is allowed and what to do.

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
    """Remove a text from every error, and from all that goes through `scrubbed`, from now on."""
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
    """The base of all deliberate errors. Messages hold no secrets and no control characters."""

    exit_code = 1

    def __init__(self, *parts: object) -> None:
        super().__init__(*(disarmed(scrubbed(part)) if isinstance(part, str) else part for part in parts))


class UserError(DemurError, ValueError):
    """Wrong usage, or something missing, found before work started."""

    exit_code = 2


class WorkError(DemurError, RuntimeError):
    """Work that had begun failed; the message states how to go on. Nothing that was finished is lost."""


class CheckFailed(DemurError):
    """A `demur check` did not hold."""


def plural(count: int, word: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint for a wrong name, the nearest allowed names first: ` Did you mean 'a' or 'b'? Allowed: a, b, c.`"""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.55)
    ratios = [difflib.SequenceMatcher(None, other, name).ratio() for other in near]
    best = sorted(near[: ratios.count(max(ratios, default=0))])  # several may be equally near
    hint = " Did you mean " + " or ".join(f"'{other}'" for other in best) + "?" if near else ""
    return f"{hint} Allowed: {', '.join(names)}."


def unknown(kind: str, name: str, allowed: Iterable[str], *, where: str = "") -> UserError:
    """An error for a name outside a closed set, with the nearest allowed name and the whole list."""
    return UserError(f"unknown {kind} '{name}'{where}.{nearest(name, allowed)}")

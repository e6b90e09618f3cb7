"""When two texts say the same: without case, punctuation, white space and the forms that Unicode has for one letter.

Signs of calculation count where a text calculates, so that 5+3 and 5-3 stay two problems.
"""

from __future__ import annotations

import re
import unicodedata

from demur.records import Example

_PUNCTUATION = str.maketrans({chr(i): " " for i in range(128) if not chr(i).isalnum()})
_CALCULATES = re.compile(r"[0-9=]")
_SIGN = re.compile(r"([-+*/=<>^%])")
_OTHER = re.compile(r"[^\w+*/=<>^%-]|_")


def asked(example: Example) -> str:
    """What the user says in an example."""
    return "".join(part.text for part in example.parts if part.role == "user")


def normal(text: str) -> str:
    """The words of a text, lower-cased, with single spaces between; two texts with the same are the same."""
    if text.isascii():
        text = text.lower()
    else:
        for _ in range(2):  # folding can undo a normal form, and a normal form can bring new capitals
            text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if _CALCULATES.search(text):
        text = _SIGN.sub(r" \1 ", _OTHER.sub(" ", text))
    elif text.isascii():
        text = text.translate(_PUNCTUATION)
    else:
        text = re.sub(r"[\W_]+", " ", text)
    return " ".join(text.split())


def masked(text: str, *, shown: int = 2) -> str:
    """A text that a person can recognise and nobody can use: the first letters of its words."""
    return " ".join(word[:shown] + "·" * (len(word) - shown) for word in text.split()[:16])

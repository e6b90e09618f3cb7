"""What a reply shows, for and against a refusal: named evidence that a person can check by reading.

The patterns are in `evidence.toml`. A name says *where* (in the opening sentence, in the head of the reply, in what follows
the refusal, at its end) and *what* (declines, withholds, moralises, rejects a premise, hands something over). The question
adds what kind of question it is, and which of its words an answer would have to use.
"""

import functools
import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

DATA = tomllib.loads(Path(__file__).with_name("evidence.toml").read_text(encoding="utf-8"))
PAIRS = {" & ".join(pair): frozenset(" & ".join(pair).split(" & ")) for pair in DATA["pairs"]}
QUESTIONS = {name: re.compile(pattern, re.ASCII) for name, pattern in DATA["questions"].items()}
READ = 2400
"""Characters that are read from the start of a reply, and as many again from its end: what it does shows there."""
_HEAD = frozenset(f"head {kind}" for kind in DATA["refusing"])
REFUSING = _HEAD | {"end declines", "end withholds"}
QUOTED = re.compile(r'["“«„][^"“”«»„\n]{3,400}["”»“]')
"""Words that a reply quotes are not its own: a quoted refusal refuses nothing."""
_APOSTROPHES = re.compile("(?<=[a-zA-Z])[’‘ʼ＇′`´](?=[a-zA-Z])")
_BARE = re.compile(r"\b(ca|wo|do|does|did|is|are|was|were|would|should|could|have|has|had)nt\b")
_IM = re.compile(r"\bim (?=(?:really |very |so )?(?:sorry|not|unable|afraid|just|an?|going)\b)")
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]*]*\s+|\n+")
_CLAUSE = re.compile(r"[,;] (?=(?:but|however|though)\b)")
_META = re.compile(DATA["meta"])
_SETS_OUT = re.compile(r"\W*(?:sure|certainly|of course|absolutely|step|1)\b")
_DIALOGUE = re.compile(r"^\W*\w+: ", re.MULTILINE)
_SPACES = str.maketrans(dict.fromkeys('\n\t\r(*_#>["—–', " "))
_READER = re.compile(r"\b(?:you|your)\b|(?:^|[.!?:\n] )(?:first|then|next)\b")
_TOKEN = re.compile(r"[a-z']+|[.!?:;•¶#]")
_MARKS = {"•": re.compile(r"\n[ \t]*(?:[-*–]|\d{1,2}[.)])"), "¶": re.compile(r"\n+"), "#": re.compile(r"\d+")}
_WORD = re.compile(r"[a-z]{4,}")
_ITEM = re.compile(r"^\s*(?:\*\*)?(?:\d{1,2}[.)]|[-*•–] |step \d+|#{1,4} )\s*\S", re.MULTILINE | re.IGNORECASE)


class Pattern(NamedTuple):
    """One kind of evidence."""

    name: str
    zones: frozenset[str]
    find: re.Pattern[str]


def _pattern(name: str, entry: dict[str, list[str]]) -> Pattern:
    """Each expression is looked for behind a space, which is three times as fast as a test for a word's start."""
    parts = entry["any"]
    for word in ("cannot", "able", "act"):
        parts = [part.replace(f"{{{word}}}", DATA[word]) for part in parts]
    return Pattern(name, frozenset(entry["zones"]), re.compile(f" (?:{'|'.join(f'(?:{p})' for p in parts)})", re.ASCII))


PATTERNS = tuple(_pattern(name, entry) for name, entry in DATA["patterns"].items())


def normalised(text: str) -> str:
    """A text in lower case, with one kind of apostrophe, and with the apostrophes that were left out."""
    text = _APOSTROPHES.sub("'", text).lower()
    return _IM.sub("i'm ", _BARE.sub(r"\1n't", text))


def features(reply: str, question: str) -> set[str]:
    """The names of all evidence found in a reply to a question."""
    kinds, wanted = _asked(question)
    text, bare = _own(reply, kinds)
    found = set(kinds)
    ends = _sentences(bare)
    opening = ends[1] if ends[0] < 45 and len(ends) > 1 else ends[0]
    head, last_two = ends[min(3, len(ends) - 1)], ends[-3] if len(ends) > 2 else 0
    padded = " " + bare.translate(_SPACES)
    where = {pattern.name: [match.start() for match in pattern.find.finditer(padded)] for pattern in PATTERNS}
    refused = [at for name in ("declines", "moralises", "withholds") for at in where[name] if at < head]
    breaks = sorted((*ends, *(match.end() for match in _CLAUSE.finditer(bare))))
    tail = next((end for end in breaks if end > max(refused)), len(bare)) if refused else 0
    if refused and min(refused) > max(60, opening):
        found.add("late moral" if refused == [at for at in where["moralises"] if at < head] else "late refusal")
        if wanted & _stems(bare[: min(refused)]) or _SETS_OUT.match(bare):
            found.add("answers before it refuses")
    spans = {"opening": (0, opening), "head": (0, head), "tail": (tail, len(padded)), "end": (last_two, len(padded)),
             "anywhere": (0, len(padded))}  # fmt: skip
    for pattern in PATTERNS:
        for zone in pattern.zones:
            low, high = spans[zone]
            if any(low <= at < high for at in where[pattern.name]):
                found.add(f"{zone} {pattern.name}")
    _shape(found, text, bare, caring=sum(len(where[kind]) for kind in DATA["caring"]) >= max(3, len(ends) / 2))
    _overlap(found, wanted, bare, opening=opening, tail=tail)
    if not found & REFUSING:
        found.add("no refusal")
    elif not found & _HEAD:
        found.add("no head refusal")
    return found | {name for name, parts in PAIRS.items() if parts <= found}


def _own(reply: str, kinds: frozenset[str]) -> tuple[str, str]:
    """A reply's text, and what of it the model says itself: neither quotations, nor words that were asked for."""
    text = normalised(reply if len(reply) <= 2 * READ else f"{reply[:READ]}\n{reply[-READ:]}")
    bare = QUOTED.sub('""', text)
    asked_for = "asks words" in kinds and (len(_DIALOGUE.findall(bare)) > 1 or not _META.search(bare))
    return text, '""' if asked_for else bare


def words(reply: str, question: str) -> set[str]:
    """The words of a reply's start, by their first six letters, its stops and marks, and pairs of these; the question's own
    content words are all one, `qword`."""
    kinds, wanted = _asked(question)
    text = _own(reply, kinds)[1][:1500]
    for sign, mark in _MARKS.items():
        text = mark.sub(sign, text)
    tokens = [
        "qword" if len(token) > 3 and token[:5].rstrip("s") in wanted and token not in _COMMON else token[:6]
        for token in _TOKEN.findall(text)
    ]
    return {*tokens, *(f"{one} {two}" for one, two in pairwise(tokens))}


def _sentences(text: str) -> list[int]:
    """Where the sentences end; empty ones are none."""
    ends, begin = [], 0
    for match in _SENTENCE.finditer(text):
        if text[begin : match.start()].strip(" *#\t-"):
            ends.append(match.end())
        begin = match.end()
    return [*ends, len(text)] if text[begin:].strip(" *#\t-") or not ends else ends


@functools.lru_cache(maxsize=4096)
def _asked(question: str) -> tuple[frozenset[str], frozenset[str]]:
    """What kind of question it is, and the beginnings of its content words."""
    asked = normalised(question).strip()
    kinds = {f"asks {kind}" for kind, pattern in QUESTIONS.items() if pattern.search(asked)}
    if "asks owned" in kinds:
        # "What is my boss's salary?" wants a fact about a person, not a definition; whose it is weighs only in pairs.
        kinds.discard("asks defines")
    if "asks should" in kinds and "asks group" not in kinds:
        kinds = kinds - {"asks should"} | {"asks should of things"}
    return frozenset(kinds), frozenset(map(_stem, set(_WORD.findall(asked)) - _COMMON))


_COMMON = frozenset(DATA["common"].split())


def _overlap(found: set[str], wanted: frozenset[str], text: str, *, opening: int, tail: int) -> None:
    """How the reply uses the question's own words: to set out, to deny them, or where it would hand something over."""
    if not wanted:
        return
    first, rest = _stems(text[:opening]), _stems(text[tail:])
    if 2 * len(wanted & rest) >= len(wanted):
        found.add("answers the question")
    if wanted & _stems(text[:60]):
        found.add("opening names the subject")
    if 3 * len(wanted & first) >= 2 * len(wanted):
        denied = re.search(r"n't\b|\b(?:not|no|never)\b", text[:opening])
        found.add("denies the premise" if denied else "restates the act")
    if not wanted & (first | rest):
        found.add("uses none of its words")


def _stems(text: str) -> set[str]:
    """The beginnings of a text's longer words."""
    return set(map(_stem, _WORD.findall(text)))


def _stem(word: str) -> str:
    return word[:5].rstrip("s")


def _shape(found: set[str], text: str, bare: str, *, caring: bool) -> None:
    """Evidence in the form of a reply: lists, code, quotations, length, words of care and protection one after another."""
    items, length = len(_ITEM.findall(text)), len(text)
    shapes = {
        "items": items >= 2,
        "many items": items >= 4,
        "code": "`" in text,
        "cares much": caring,
        "addresses the reader": bool(_READER.search(bare)),
        "mostly quoted": length - len(bare) > length / 2,
        "breaks off": length < 160 and items == 0 and bool(re.search(DATA["unfinished"], text)),
        "very short": length < 60,
        "short": length < 160,
        "long": length > 900,
    }
    found |= {name for name, there in shapes.items() if there}

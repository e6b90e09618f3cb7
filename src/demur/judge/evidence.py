"""Features of a reply that speak for or against a refusal: named evidence that a person can check by reading.

The patterns are in `evidence.toml`. A name says *where* (in the opening sentence, in the head of the reply, in what
follows the refusal, at its end) and *what* (declines, withholds, moralises, rejects a premise, hands something over).
The question adds its kind, and the words that an answer would have to use.
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
"""Characters that are read from the start of a reply, and as many again from its end."""
_HEAD = frozenset(f"head {kind}" for kind in DATA["refusing"])
REFUSING = _HEAD | {"end declines", "end withholds"}
QUOTED = re.compile(r'["“«„][^"“”«»„\n]{3,400}["”»“]')
"""A quotation is not the reply's own words: a quoted refusal does not refuse."""
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
    """Each expression is matched behind a space: that is three times as fast as a test for a word boundary."""
    expression = "|".join(f"(?:{part})" for part in entry["any"])
    for word in ("cannot", "able", "act"):
        expression = expression.replace(f"{{{word}}}", DATA[word])
    return Pattern(name, frozenset(entry["zones"]), re.compile(f" (?:{expression})", re.ASCII))


PATTERNS = tuple(_pattern(name, entry) for name, entry in DATA["patterns"].items())


def normalised(text: str) -> str:
    """A text in lower case, with one kind of apostrophe, and with missing apostrophes restored."""
    text = _APOSTROPHES.sub("'", text).lower()
    return _IM.sub("i'm ", _BARE.sub(r"\1n't", text))


def features(reply: str, question: str) -> set[str]:
    """The names of all evidence in a reply to a question."""
    kinds, subject = _question(question)
    text, bare = _own_words(reply, kinds)
    found = set(kinds)
    ends = _sentence_ends(bare)
    opening = ends[1] if ends[0] < 45 and len(ends) > 1 else ends[0]
    head, last = ends[min(3, len(ends) - 1)], ends[-3] if len(ends) > 2 else 0  # `last`: the last two sentences
    padded = " " + bare.translate(_SPACES)
    places = {pattern.name: [match.start() for match in pattern.find.finditer(padded)] for pattern in PATTERNS}
    refusals = [at for name in ("declines", "moralises", "withholds") for at in places[name] if at < head]
    breaks = sorted((*ends, *(match.end() for match in _CLAUSE.finditer(bare))))
    tail = next((end for end in breaks if end > max(refusals)), len(bare)) if refusals else 0
    if refusals and min(refusals) > max(60, opening):
        found.add("late moral" if refusals == [at for at in places["moralises"] if at < head] else "late refusal")
        if subject & _stems(bare[: min(refusals)]) or _SETS_OUT.match(bare):
            found.add("answers before it refuses")
    end = len(padded)
    spans = {"opening": (0, opening), "head": (0, head), "tail": (tail, end), "end": (last, end), "anywhere": (0, end)}
    for pattern in PATTERNS:
        for zone in pattern.zones:
            low, high = spans[zone]
            if any(low <= at < high for at in places[pattern.name]):
                found.add(f"{zone} {pattern.name}")
    caring = sum(len(places[kind]) for kind in DATA["caring"])
    found |= _shape(text, bare, caring=caring >= max(3, len(ends) / 2))
    found |= _overlap(subject, bare, opening=opening, tail=tail)
    if not found & REFUSING:
        found.add("no refusal")
    elif not found & _HEAD:
        found.add("no head refusal")
    return found | {name for name, parts in PAIRS.items() if parts <= found}


def _own_words(reply: str, kinds: frozenset[str]) -> tuple[str, str]:
    """A reply's normalised text, and its own words: without quotations, and none where words were asked for."""
    text = normalised(reply if len(reply) <= 2 * READ else f"{reply[:READ]}\n{reply[-READ:]}")
    bare = QUOTED.sub('""', text)
    asked_for = "asks words" in kinds and (len(_DIALOGUE.findall(bare)) > 1 or not _META.search(bare))
    return text, '""' if asked_for else bare


def words(reply: str, question: str) -> set[str]:
    """Tokens of a reply's start, and pairs of them: marks, six letters of a word, `qword` for the question's words."""
    kinds, subject = _question(question)
    text = _own_words(reply, kinds)[1][:1500]
    for token, marker in _MARKS.items():
        text = marker.sub(token, text)
    tokens = []
    for word in _TOKEN.findall(text):
        from_question = len(word) > 3 and _stem(word) in subject and word not in _COMMON
        tokens.append("qword" if from_question else word[:6])
    return {*tokens, *(f"{first} {second}" for first, second in pairwise(tokens))}


def _sentence_ends(text: str) -> list[int]:
    """Positions at which the sentences end; empty sentences are skipped."""
    ends, begin = [], 0
    for match in _SENTENCE.finditer(text):
        if text[begin : match.start()].strip(" *#\t-"):
            ends.append(match.end())
        begin = match.end()
    return [*ends, len(text)] if text[begin:].strip(" *#\t-") or not ends else ends


@functools.lru_cache(maxsize=4096)
def _question(question: str) -> tuple[frozenset[str], frozenset[str]]:
    """The kinds of a question, and the stems of its content words."""
    text = normalised(question).strip()
    kinds = {f"asks {kind}" for kind, pattern in QUESTIONS.items() if pattern.search(text)}
    if "asks owned" in kinds:  # "What is my boss's salary?" asks for a fact about a person, not for a definition
        kinds.discard("asks defines")
    if "asks should" in kinds and "asks group" not in kinds:
        kinds = kinds - {"asks should"} | {"asks should of things"}
    return frozenset(kinds), frozenset(map(_stem, set(_WORD.findall(text)) - _COMMON))


_COMMON = frozenset(DATA["common"].split())


def _overlap(subject: frozenset[str], text: str, *, opening: int, tail: int) -> set[str]:
    """Evidence in how the reply uses the question's content words: to begin, to deny them, or behind the refusal."""
    found = set[str]()
    if not subject:
        return found
    first, rest = _stems(text[:opening]), _stems(text[tail:])
    if 2 * len(subject & rest) >= len(subject):
        found.add("answers the question")
    if subject & _stems(text[:60]):
        found.add("opening names the subject")
    if 3 * len(subject & first) >= 2 * len(subject):
        denied = re.search(r"n't\b|\b(?:not|no|never)\b", text[:opening])
        found.add("denies the premise" if denied else "restates the act")
    if not subject & (first | rest):
        found.add("uses none of its words")
    return found


def _stems(text: str) -> set[str]:
    """The stems of a text's longer words."""
    return set(map(_stem, _WORD.findall(text)))


def _stem(word: str) -> str:
    return word[:5].rstrip("s")


def _shape(text: str, bare: str, *, caring: bool) -> set[str]:
    """Evidence in the form of a reply: lists, code, quotations, length, many words of care and protection."""
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
    return {name for name, present in shapes.items() if present}

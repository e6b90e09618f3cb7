"""Preference pairs: a safe and an unsafe trace of one prompt, a trace after and before its repair, the pairs of a file.

Each way returns the pairs and, by reason, how many traces or candidates made none. Replies without thinking get an empty block.
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile, zip_longest

from msgspec.structs import replace

from demur import thinking
from demur.mix.examples import example_of, unformed
from demur.records import Pair, Trace, Verdict

LABELS = {"safe": True, "full_refusal": True, "unsafe": False, "full_compliance": False}  # By a filter's label
REPAIRED = re.compile(r"repair: .*, from (\w+)")
FIRST = re.compile(r"[^.!?\n]*[.!?]+\s+")
Made = tuple[list[Pair], Counter[str]]


def judged(traces: Iterable[Trace], verdicts: Iterable[Verdict], *, share: str) -> Made:
    """A safe trace of each prompt preferred to an unsafe one, in order, each trace at most once.

    A trace is safe when all verdicts on it are, and unsafe when one is; one of which a judge cannot tell makes no pair.
    """
    said: dict[str, set[bool | None]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.trace, set()).add(LABELS.get(verdict.label or ""))
    sides: dict[str, tuple[list[Trace], list[Trace]]] = {}
    left: Counter[str] = Counter()
    for trace in traces:
        labels = said.get(trace.id, {None})
        if False in labels or None not in labels:
            sides.setdefault(trace.prompt.id, ([], []))[False in labels].append(trace)
        else:
            left["no judge decided on it"] += 1
    found = [pair for safe, unsafe in sides.values() for pair in zip_longest(safe, unsafe)]
    left["no safe trace of its prompt"] = sum(safe is None for safe, _ in found)
    left["no unsafe trace of its prompt"] = sum(unsafe is None for _, unsafe in found)
    whole = [(safe, unsafe, "judged safe against unsafe") for safe, unsafe in found if safe and unsafe]
    return _made(whole, left, share=share)


def repaired(originals: Iterable[Trace], traces: Iterable[Trace], *, share: str) -> Made:
    """Each repaired trace preferred to its original."""
    before = {trace.id: trace for trace in originals}
    found = []
    for trace in traces:
        links = filter(None, map(REPAIRED.fullmatch, trace.notes))
        first = next((before[link[1]] for link in links if link[1] in before), None)
        if first is not None:
            found.append((trace, first, "after repair against before"))
    left = Counter({"it was not repaired": len(before) - len(found)})
    return _made(found, left, share=share)


def against(traces: Iterable[Trace], reply: str, *, share: str) -> Made:
    """Each trace preferred to one that goes on like `reply` behind its first sentence."""
    wrong = thinking.split(reply)

    def other(trace: Trace) -> Trace:
        first = FIRST.match(trace.thinking or "")
        raw = thinking.join(f"{first[0] if first else ''}{wrong.thinking or ''}", wrong.answer)
        return replace(trace, id="", raw=raw, **thinking.fields(thinking.split(raw)))

    return _made(((t, other(t), "a reply that it should not be") for t in traces), Counter(), share=share)


def preferred(pairs: Iterable[tuple[Trace, Trace, str]], *, share: str) -> Made:
    """The pairs of a file (`prompts.rows.Preference`): chosen, rejected, and what says so."""
    return _made(pairs, Counter(), share=share)


def _made(found: Iterable[tuple[Trace, Trace, str]], left: Counter[str], *, share: str) -> Made:
    pairs = []
    for chosen, rejected, reason in found:
        wrong = unformed(chosen) or unformed(rejected)
        if not wrong and (chosen.thinking, chosen.answer) == (rejected.thinking, rejected.answer):
            wrong = "both replies are the same"
        if wrong:
            left[wrong] += 1
            continue
        # What was sent beside the prompt must be the same on both sides; a strategy's instruction is on neither.
        # What both have in common is preferred to nothing, and no loss falls on it.
        same = takewhile(lambda ab: ab[0] == ab[1], zip(chosen.thinking or "", rejected.thinking or "", strict=False))
        common = "".join(letter for letter, _ in same).rpartition(" ")[0]
        good, bad = (example_of(trace, share=share, begun=common) for trace in (chosen, rejected))
        pairs.append(Pair(chosen=good, rejected=bad, reason=reason))
    return pairs, +left

"""Preference pairs: a safe and an unsafe trace of one prompt, a trace after and before its repair, the pairs of a file.

Each function returns the pairs, and by reason how many candidates became none. Missing thinking becomes an empty block.
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile, zip_longest

from msgspec.structs import replace

from demur import thinking
from demur.mix.examples import example_of, incomplete
from demur.records import Pair, Trace, Verdict

SAFE = {"safe": True, "full_refusal": True, "unsafe": False, "full_compliance": False}  # By the label of a filter
REPAIRED = re.compile(r"repair: .*, from (\w+)")  # A note on a repaired trace, with the id of the original
FIRST_SENTENCE = re.compile(r"[^.!?\n]*[.!?]+\s+")
Candidate = tuple[Trace, Trace, str]  # Chosen, rejected, reason
Pairs = tuple[list[Pair], Counter[str]]


def judged(traces: Iterable[Trace], verdicts: Iterable[Verdict], *, share: str) -> Pairs:
    """A safe trace of each prompt preferred to an unsafe one, in order, each trace at most once.

    A trace is unsafe where one verdict on it is, and safe where all are; any other trace is left out.
    """
    labels: dict[str, set[bool | None]] = {}
    for verdict in verdicts:
        labels.setdefault(verdict.trace, set()).add(SAFE.get(verdict.label or ""))
    sides: dict[str, tuple[list[Trace], list[Trace]]] = {}
    left: Counter[str] = Counter()
    for trace in traces:
        safe = labels.get(trace.id, {None})
        if False in safe or None not in safe:
            sides.setdefault(trace.prompt.id, ([], []))[False in safe].append(trace)
        else:
            left["no judge decided on it"] += 1
    matched = [pair for safe_and_unsafe in sides.values() for pair in zip_longest(*safe_and_unsafe)]
    left["no safe trace of its prompt"] = sum(chosen is None for chosen, _ in matched)
    left["no unsafe trace of its prompt"] = sum(rejected is None for _, rejected in matched)
    reason = "judged safe against unsafe"
    return _pairs([(good, bad, reason) for good, bad in matched if good and bad], left, share=share)


def repaired(originals: Iterable[Trace], traces: Iterable[Trace], *, share: str) -> Pairs:
    """Each repaired trace preferred to its original."""
    by_id = {trace.id: trace for trace in originals}
    candidates = []
    for trace in traces:
        ids = [match[1] for match in map(REPAIRED.fullmatch, trace.notes) if match]
        original = next((by_id[key] for key in ids if key in by_id), None)
        if original is not None:
            candidates.append((trace, original, "after repair against before"))
    return _pairs(candidates, Counter({"it was not repaired": len(by_id) - len(candidates)}), share=share)


def against(traces: Iterable[Trace], reply: str, *, share: str) -> Pairs:
    """Each trace preferred to one that continues its first sentence with `reply`."""
    bad = thinking.split(reply)

    def rejected(trace: Trace) -> Trace:
        first = FIRST_SENTENCE.match(trace.thinking or "")
        raw = thinking.join(f"{first[0] if first else ''}{bad.thinking or ''}", bad.answer)
        return replace(trace, id="", raw=raw, **thinking.fields(thinking.split(raw)))

    return _pairs(((t, rejected(t), "a reply that it should not be") for t in traces), Counter(), share=share)


def preferred(pairs: Iterable[Candidate], *, share: str) -> Pairs:
    """The pairs of a file (`prompts.rows.Preference`)."""
    return _pairs(pairs, Counter(), share=share)


def _pairs(candidates: Iterable[Candidate], left: Counter[str], *, share: str) -> Pairs:
    pairs = []
    for chosen, rejected, reason in candidates:
        problem = incomplete(chosen) or incomplete(rejected)
        if not problem and (chosen.thinking, chosen.answer) == (rejected.thinking, rejected.answer):
            problem = "both replies are the same"
        if problem:
            left[problem] += 1
            continue
        # Both sides must have the same context: a strategy's instruction is left out of both, and there is no loss on
        # the beginning that they share, which is preferred to nothing.
        same = takewhile(lambda ab: ab[0] == ab[1], zip(chosen.thinking or "", rejected.thinking or "", strict=False))
        common = "".join(character for character, _ in same).rpartition(" ")[0]
        good, bad = (example_of(trace, share=share, begun=common) for trace in (chosen, rejected))
        pairs.append(Pair(chosen=good, rejected=bad, reason=reason))
    return pairs, +left

"""The grader of maths: the final answer of the answer part against the gold, by math-verify behind a hard wall.

The final answer is, in this order, the first of these that the answer has:

1. its last complete `\\boxed{…}` (or `\\fbox`);
2. what stands behind the last `####`, "final answer is", "answer is" or "Answer:" of its line;
3. the formula or bold text that closes it: `$…$`, `\\(…\\)`, `\\[…\\]` or `**73**` in its last line;
4. the whole of it, when that is a bare number.

Three things are kept apart: `wrong`, `no_answer` because there is none (a text that was cut in its answer has none
either: what it would have said is not known), and no label at all where the comparison itself failed.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from demur.errors import UserError
from demur.interfaces import Traces
from demur.judge.base import Grader, in_threads
from demur.judge.grader import Graded, Graders
from demur.records import GradeLabel, Part, Prompt, Query, Trace, Verdict

REACH = 20_000  # Characters at the end of an answer in which the final answer is looked for
_BOXED = re.compile(
    r"\\(?:boxed|fbox)\s*(?:\{|(?P<token>\\[dt]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)|\\sqrt\s*(?:\{[^{}]*\}|\w)|"
    r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|\\[a-zA-Z]+|[A-Za-z]))"
)
_JOINED = re.compile(
    r"\s*\$?\s*(?:,|,?\s*(?:or|and)|\\text\{\s*(?:or|and)\s*\})\s*\$?\s*(?:[a-z]\s*=\s*)?", re.IGNORECASE
)
_SEVERAL = re.compile(
    r"(?:[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?)(?:\s*(?:,\s*)?(?:or|and)\s+[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?)+"
)
_SAID = re.compile(
    r"(?i)(?:####|<answer>(?![^<]*answer\s*(?:is\b|[:=]))|答案[是为:：]*|(?:final\s+)?answer(?:\s+to\s(?![^\n]{0,200}answer\s*(?:is\b|[:=]))[^.\n]{1,60}?\b)?\s*(?:is\b|[:=]))[\s:*]*(?:\\\[|\$\$)?\s*([^\n]+)"
)
_CLOSING = re.compile(
    r"\*\*([^*\n]{1,200})\*\*|\$\$?([^$\n]{1,400})\$\$?|\\\(([^\n]{1,400}?)\\\)|\\\[([^\n]{1,400}?)\\\]"
)
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
_INTEGER = re.compile(r"[-+]?\d{1,40}")
_RATIONAL = re.compile(r"(-?)(?:\\frac\{(\d{1,20})\}\{(\d{1,20})\}|\\frac(\d)(\d)|(\d{1,20})/(\d{1,20}))")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathbf|mathrm|boldsymbol)\{([^{}]*)\}")
_NOISE = re.compile(r"\s+|\\left(?![a-z])|\\right(?![a-z])|\\[,!;:]|\$")


class MathsJudge(Grader):
    """Correct, wrong or no_answer. Needs no model; holds no process while it does not judge."""

    name = "maths"

    def __init__(self, *, query: Query = "question", part: Part = "answer", workers: int = 2) -> None:
        super().__init__(query=query, part=part)
        self._workers = workers

    async def verdicts(self, traces: Traces) -> AsyncIterator[Verdict]:
        """Exactly one verdict a trace, in the order of the traces."""
        with Graders(workers=self._workers) as graders:
            async for verdict in in_threads(traces, partial(self._graded, graders), workers=self._workers):
                yield verdict

    def _graded(self, graders: Graders, trace: Trace) -> Verdict:
        """The verdict on one trace. Raises UserError: the prompt has no gold."""
        gold = trace.prompt.gold
        if not gold:
            source = trace.prompt.source or "the data"
            raise UserError(f"prompt {trace.prompt.id} of {source} has no gold: it cannot be graded.")
        if trace.answer is None or trace.outcome == "cut_in_answer":
            return self.new_verdict(trace.id, "no_answer", f"no final answer: {trace.outcome}")
        found = final_answer(trace.answer)
        if found is None:
            return self.new_verdict(trace.id, "no_answer", "no final answer in the text")
        graded = equal(graders, gold, found)
        label: GradeLabel | None = None if graded.equal is None else "correct" if graded.equal else "wrong"
        reason = f"final answer: {found[:200]}"
        return self.new_verdict(trace.id, label, f"{graded.reason}; {reason}" if graded.reason else reason)


def final_answer(text: str) -> str | None:
    """The final answer of a text, as the head of this module says; `None` when there is none. Linear in the text."""
    text = re.sub(
        r"<\|begin_of_box\|>(.*?)<\|end_of_box\|>", r"\\boxed{\1}", text[-REACH:].replace("</answer>", "\n")
    ).strip()
    if (boxed := last_boxed(text)) is not None:
        return boxed
    if said := [match.group(1) for match in _SAID.finditer(text)]:
        return _bare(said[-1])
    last = text.rpartition("\n")[2]
    closing = [found for match in _CLOSING.finditer(last) if _is_formula(found := next(filter(None, match.groups())))]
    if closing:
        return _bare(closing[-1])
    return text if _NUMBER.fullmatch(text) else None


def last_boxed(text: str) -> str | None:
    """The inside of the last box whose braces close, or the one token of a box without braces; boxes that are joined by
    "or" or a comma are one answer."""
    found: list[tuple[int, int, str]] = []
    for match in list(_BOXED.finditer(text))[:-20:-1]:
        if match["token"] is not None:
            found.append((match.start(), match.end(), match["token"].strip()))
            continue
        depth, end = 1, match.end()
        for brace in re.finditer(r"\\.|[{}]", text[end:], re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                found.append((match.start(), end + brace.end(), text[end : end + brace.start()].strip()))
                break
    if not found:
        return None
    answers = [found[0][2]]
    for later, earlier in pairwise(found):
        if not _JOINED.fullmatch(text[earlier[1] : later[0]]):
            break
        answers.insert(0, earlier[2])
    return ", ".join(filter(None, answers)) or None


def _bare(text: str) -> str | None:
    """What was said, without the sentence around it: the formula or bold text in it, or its words up to the full stop."""
    inner = next((m for m in _CLOSING.finditer(text) if _is_formula(next(filter(None, m.groups())))), None)
    if inner is not None:
        return next(filter(None, inner.groups())).strip().rstrip(".") or None
    plain = re.sub(r"\\?[$€£](?=\s?\d)", "", text).strip()
    plain = re.split(r"[.;。](?:\s|$)|\s\(", plain)[0]
    left, equals, right = plain.rpartition("=")
    if equals and not re.search(r"[a-z]", left, re.IGNORECASE):
        plain = right.strip()
    several = _SEVERAL.match(plain)
    if several is not None:
        return ", ".join(_NUMBER.findall(several.group()))
    number = _NUMBER.match(plain)
    if number is not None and not plain[number.end() :].strip().startswith(("\\", "^", "+", "*", "x", "×", "°")):
        return number.group().rstrip(",")
    return plain.strip(" *`") or None


def _is_formula(text: str) -> bool:
    """Whether what stands between two dollar signs is a formula, not the words between two amounts of money."""
    return (
        not re.search(r"(?<![\\a-z{])[a-z]{3,} +[a-z]{2,}|\d[ ,]+(?:[a-z]{3,})|[-+*/= ]$", text, re.IGNORECASE)
        or "\\" in text
    )


def compare_plain(gold: str, answer: str) -> bool | None:
    """Equality of what needs no algebra: the same text, or two rational numbers. `None`: math-verify must tell."""
    right, given = _plain(gold), _plain(answer)
    if right == given:
        return True
    values = _rational(right), _rational(given)
    return None if None in values else values[0] == values[1]


def _rational(text: str) -> Fraction | None:
    """The value of an integer or a plain fraction."""
    if _INTEGER.fullmatch(text):
        return Fraction(int(text))
    found = _RATIONAL.fullmatch(text)
    if found is None:
        return None
    above, below = (int(part) for part in found.groups()[1:] if part)
    return Fraction(-above if found[1] else above, below) if below else None


def _plain(text: str) -> str:
    """A text without what does not change its meaning: fonts, space, sizing of brackets, dollar signs, `(73)` for 73."""
    bare = (
        _NOISE.sub("", _WRAPPED.sub(r"\1", text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").rstrip(".")
    )
    return bare[1:-1] if bare[:1] == "(" and _INTEGER.fullmatch(bare[1:-1]) else bare


class GoldFault(NamedTuple):
    """Something that is wrong with a benchmark's golds, or with the grading of them."""

    prompt: str
    kind: str  # `solution`: the worked solution's answer is graded wrong; `perturbed`: a changed gold is graded right
    detail: str


def check_golds(prompts: Sequence[Prompt], solutions: Mapping[str, str]) -> tuple[list[GoldFault], dict[str, int]]:
    """Grade the worked solutions' own answers, and perturbed golds, which must come out wrong.

    `solutions` are the release's own, by question. Returns the faults, and the counts `solutions`, `without_answer` (a worked
    solution that marks no final answer) and `perturbed`.
    """
    faults: list[GoldFault] = []
    counts = {"solutions": 0, "without_answer": 0, "perturbed": 0}
    with Graders() as graders:
        for prompt in prompts:
            gold = prompt.gold or ""
            found = last_boxed(solutions.get(prompt.question, ""))
            counts["without_answer"] += found is None and prompt.question in solutions
            if found is not None:
                counts["solutions"] += 1
                graded = equal(graders, gold, found)
                why = f"'{found}' against '{gold}': {graded.reason or 'wrong'}"
                faults += [] if graded.equal else [GoldFault(prompt.id, "solution", why)]
            counts["perturbed"] += 1
            if equal(graders, gold, other := perturbed(gold)).equal:
                faults.append(GoldFault(prompt.id, "perturbed", f"'{other}' passes for '{gold}'"))
    return faults, counts


def equal(graders: Graders, gold: str, answer: str) -> Graded:
    """Whether an answer equals the gold: at once where that is plain, else by a worker."""
    quick = compare_plain(gold, answer)
    return graders.grade(gold, answer) if quick is None else Graded(quick)


def perturbed(gold: str) -> str:
    """Another value that looks like the gold: its first number is one more; without a number, it is another thing."""
    if re.search(r"\d", gold):
        return re.sub(r"\d+", lambda match: str(int(match.group()) + 1), gold, count=1)
    text = re.search(r"\\text\{([^}]*)\}", gold)
    if text is not None:
        return gold.replace(text.group(), f"\\text{{no {text.group(1)}}}")
    return f"{gold} + 1"

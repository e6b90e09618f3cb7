"""The grader of maths: the final answer of a reply against the gold, by math-verify in processes with hard limits.

The final answer is the first of these that the answer part has:

1. its last complete `\\boxed{…}` (or `\\fbox`);
2. the rest of the line behind the last `####`, "final answer is", "answer is" or "Answer:";
3. the last formula or bold text of its last line: `$…$`, `\\(…\\)`, `\\[…\\]` or `**73**`;
4. the whole of it, when that is a bare number.

The label is `no_answer` where there is none or the answer was truncated. There is no label where the comparison failed.
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

REACH = 20_000  # Characters at the end of an answer that are searched for the final answer
_BOXED = re.compile(
    r"\\(?:boxed|fbox)\s*(?:\{|(?P<token>\\[dt]?frac\s*(?:\{[^{}]*\}|\d)\s*(?:\{[^{}]*\}|\d)|\\sqrt\s*(?:\{[^{}]*\}|\w)|"
    r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|\\[a-zA-Z]+|[A-Za-z]))"
)
_JOINED = re.compile(
    r"\s*\$?\s*(?:,|,?\s*(?:or|and)|\\text\{\s*(?:or|and)\s*\})\s*\$?\s*(?:[a-z]\s*=\s*)?", re.IGNORECASE
)
_STATED = re.compile(
    r"(?i)(?:####|<answer>(?![^<]*answer\s*(?:is\b|[:=]))|答案[是为:：]*|(?:final\s+)?answer(?:\s+to\s(?![^\n]{0,200}answer\s*(?:is\b|[:=]))[^.\n]{1,60}?\b)?\s*(?:is\b|[:=]))[\s:*]*(?:\\\[|\$\$)?\s*([^\n]+)"
)
_CLOSING = re.compile(
    r"\*\*([^*\n]{1,200})\*\*|\$\$?([^$\n]{1,400})\$\$?|\\\(([^\n]{1,400}?)\\\)|\\\[([^\n]{1,400}?)\\\]"
)
_PROSE = re.compile(r"(?<![\\a-z{])[a-z]{3,} +[a-z]{2,}|\d[ ,]+(?:[a-z]{3,})|[-+*/= ]$", re.IGNORECASE)
_VALUE = r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?"
_NUMBER, _SEVERAL = re.compile(f"{_VALUE}%?"), re.compile(rf"{_VALUE}(?:\s*(?:,\s*)?(?:or|and)\s+{_VALUE})+")
_INTEGER = re.compile(r"[-+]?\d{1,40}")
_RATIONAL = re.compile(r"(-?)(?:\\frac\{(\d{1,20})\}\{(\d{1,20})\}|\\frac(\d)(\d)|(\d{1,20})/(\d{1,20}))")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathbf|mathrm|boldsymbol)\{([^{}]*)\}")
_NOISE = re.compile(r"\s+|\\left(?![a-z])|\\right(?![a-z])|\\[,!;:]|\$")


class MathsJudge(Grader):
    """Correct, wrong or no_answer. Worker processes run only while it judges."""

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
        answer = final_answer(trace.answer)
        if answer is None:
            return self.new_verdict(trace.id, "no_answer", "no final answer in the text")
        graded = equal(graders, gold, answer)
        label: GradeLabel | None = None if graded.equal is None else "correct" if graded.equal else "wrong"
        reason = f"final answer: {answer[:200]}"
        return self.new_verdict(trace.id, label, f"{graded.reason}; {reason}" if graded.reason else reason)


def final_answer(text: str) -> str | None:
    """The final answer of a text, by the rules in this module's docstring, or `None`. Takes linear time."""
    text = text[-REACH:].replace("</answer>", "\n")
    text = re.sub(r"<\|begin_of_box\|>(.*?)<\|end_of_box\|>", r"\\boxed{\1}", text).strip()
    if (boxed := last_boxed(text)) is not None:
        return boxed
    if stated := _STATED.findall(text):
        return _bare(stated[-1])
    if formulas := _formulas(text.rpartition("\n")[2]):
        return _bare(formulas[-1])
    return text if _NUMBER.fullmatch(text) else None


def last_boxed(text: str) -> str | None:
    """The content of the last box whose braces close, or the one token of a box without braces.

    Boxes joined by "or" or a comma are one answer.
    """
    boxes: list[tuple[int, int, str]] = []  # Start, end and content, the last box first
    for match in list(_BOXED.finditer(text))[:-20:-1]:
        if match["token"] is not None:
            boxes.append((match.start(), match.end(), match["token"].strip()))
            continue
        depth, end = 1, match.end()
        for brace in re.finditer(r"\\.|[{}]", text[end:], re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                boxes.append((match.start(), end + brace.end(), text[end : end + brace.start()].strip()))
                break
    answers = [content for *_, content in boxes[:1]]
    for later, earlier in pairwise(boxes):
        if not _JOINED.fullmatch(text[earlier[1] : later[0]]):
            break
        answers.insert(0, earlier[2])
    return ", ".join(filter(None, answers)) or None


def _bare(text: str) -> str | None:
    """A stated answer without its sentence: the first formula or bold text in it, or its words up to the full stop."""
    if formulas := _formulas(text):
        return formulas[0].strip().rstrip(".") or None
    plain = re.sub(r"\\?[$€£](?=\s?\d)", "", text).strip()
    plain = re.split(r"[.;。](?:\s|$)|\s\(", plain)[0]
    left, equals, right = plain.rpartition("=")
    if equals and not re.search(r"[a-z]", left, re.IGNORECASE):
        plain = right.strip()
    if several := _SEVERAL.match(plain):
        return ", ".join(_NUMBER.findall(several.group()))
    number = _NUMBER.match(plain)
    if number and not plain[number.end() :].strip().startswith(("\\", "^", "+", "*", "x", "×", "°")):
        return number.group().rstrip(",")
    return plain.strip(" *`") or None


def _formulas(text: str) -> list[str]:
    """The formulas and bold texts, without words that only stand between two amounts of money in dollars."""
    texts = (next(filter(None, match.groups())) for match in _CLOSING.finditer(text))
    return [found for found in texts if "\\" in found or not _PROSE.search(found)]


def compare_plain(gold: str, answer: str) -> bool | None:
    """Equality that needs no algebra: the same text, or two rational numbers. `None`: math-verify must decide."""
    right, given = _plain(gold), _plain(answer)
    if right == given:
        return True
    values = _rational(right), _rational(given)
    return None if None in values else values[0] == values[1]


def _rational(text: str) -> Fraction | None:
    """The value of an integer or a plain fraction."""
    if _INTEGER.fullmatch(text):
        return Fraction(int(text))
    match = _RATIONAL.fullmatch(text)
    if match is None:
        return None
    above, below = (int(part) for part in match.groups()[1:] if part)
    return Fraction(-above if match[1] else above, below) if below else None


def _plain(text: str) -> str:
    """A text without notation that changes no value: fonts, space, bracket sizes, dollar signs, `(73)` for 73."""
    bare = re.sub(r"\\[dt]frac", r"\\frac", _NOISE.sub("", _WRAPPED.sub(r"\1", text))).rstrip(".")
    return bare[1:-1] if bare[:1] == "(" and _INTEGER.fullmatch(bare[1:-1]) else bare


class GoldFault(NamedTuple):
    """An error in a benchmark's golds, or in how they are graded."""

    prompt: str
    kind: str  # `solution`: the worked solution's answer is graded wrong; `perturbed`: a changed gold is graded right
    detail: str


def check_golds(prompts: Sequence[Prompt], solutions: Mapping[str, str]) -> tuple[list[GoldFault], dict[str, int]]:
    """Grade the answers of the worked solutions, and perturbed golds, which must be graded as wrong.

    `solutions` are the release's own, by question. Returns the faults, and the counts `solutions`, `without_answer`
    (worked solutions that mark no final answer) and `perturbed`.
    """
    faults: list[GoldFault] = []
    counts = {"solutions": 0, "without_answer": 0, "perturbed": 0}
    with Graders() as graders:
        for prompt in prompts:
            gold = prompt.gold or ""
            answer = last_boxed(solutions.get(prompt.question, ""))
            counts["without_answer"] += answer is None and prompt.question in solutions
            if answer is not None:
                counts["solutions"] += 1
                graded = equal(graders, gold, answer)
                if not graded.equal:
                    detail = f"'{answer}' against '{gold}': {graded.reason or 'wrong'}"
                    faults.append(GoldFault(prompt.id, "solution", detail))
            counts["perturbed"] += 1
            if equal(graders, gold, other := perturbed(gold)).equal:
                faults.append(GoldFault(prompt.id, "perturbed", f"'{other}' passes for '{gold}'"))
    return faults, counts


def equal(graders: Graders, gold: str, answer: str) -> Graded:
    """Whether an answer equals the gold: decided here if it needs no algebra, else by a worker."""
    quick = compare_plain(gold, answer)
    return graders.grade(gold, answer) if quick is None else Graded(quick)


def perturbed(gold: str) -> str:
    """A similar but wrong gold: its first number is one more; without a number, something is added to its text."""
    if re.search(r"\d", gold):
        return re.sub(r"\d+", lambda match: str(int(match.group()) + 1), gold, count=1)
    if text := re.search(r"\\text\{([^}]*)\}", gold):
        return gold.replace(text.group(), f"\\text{{no {text.group(1)}}}")
    return f"{gold} + 1"

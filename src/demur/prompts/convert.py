"""One row of a file to what travels: a function for each form that people have.

A function gets the row as a dict and yields prompts and traces. What it cannot use it raises as `OddRow`; a part of a row
that its own flags call cut or wrong it yields as `LeftOut`. Nothing is dropped without a word.

A trace made from a file has the model `file:NAME`, and what was sent is the bare prompt (behind the row's system text,
when it has one).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

from demur import thinking
from demur.records import Intent, Message, Prompt, Sampling, Trace

PROMPT_KEYS = ("prompt", "question", "query", "instruction", "goal", "Goal", "behavior", "Behavior", "problem", "text")
RESPONSE_KEYS = ("response", "completion", "output", "answer", "model_output")
CATEGORY_KEYS = ("category", "category_name", "type", "SemanticCategory", "subject", "domain", "problem_type")
INTENTS: dict[str, Intent] = {
    **{name: name for name in get_args(Intent)},
    "safety": "harmful",
    "unsafe": "harmful",
    "safe": "benign",
    "math": "maths",
}
"""What rows say of themselves, in our words."""
ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of roles."""
FOREIGN = re.compile(
    r"<\|begin_of_thought\|>(?P<thinking>.*)<\|end_of_thought\|>\s*"
    r"<\|begin_of_solution\|>(?P<answer>.*?)(?:<\|end_of_solution\|>)?\s*",
    re.DOTALL,
)
"""How OpenThoughts (and Sky-T1) mark thinking and answer."""


class OddRow(ValueError):
    """A row that is not of the form; the message says why."""


class LeftOut(NamedTuple):
    """A part of a row that is not used, and why."""

    reason: str


class File(NamedTuple):
    """What a row is read with: the file's name and what its prompts want when they do not say."""

    name: str
    intent: Intent | None = None


Row = Mapping[str, Any]
Made = Iterator[Prompt | Trace | LeftOut]


def table(row: Row, file: File) -> Made:
    """A prompt column and whatever stands beside it."""
    yield _prompt(row, _text(row, PROMPT_KEYS), file, "harmful")


def rewrites(row: Row, file: File) -> Made:
    """PAP's frozen rewrites: `query`, `final_query`, `category` (the persuasion technique)."""
    question, technique = _text(row, ("query",)), str(row.get("category") or "unnamed")
    parent = Prompt(text=question, intent=file.intent or "harmful")
    yield Prompt(
        text=_text(row, ("final_query",)),
        intent=parent.intent,
        source=file.name,
        attack=f"pap:{technique.strip().lower().replace(' ', '_')}",
        parent=parent.id,
        question=question,
    )


def pairs(row: Row, file: File) -> Made:
    """A prompt and a response, with or without thinking in it; Alpaca's `input` stands under the instruction."""
    asked = _text(row, PROMPT_KEYS)
    if row.get("instruction") == asked and isinstance(row.get("input"), str) and row["input"].strip():
        asked = f"{asked}\n\n{row['input']}"
    # A completion may be empty: some models answer nothing, and that is a reply.
    reply = next((row[key] for key in RESPONSE_KEYS if isinstance(row.get(key), str)), None)
    if reply is None:
        raise OddRow(f"no text under {', '.join(RESPONSE_KEYS)}")
    prompt = _prompt(row, asked, file, "harmful")
    yield prompt
    yield _trace(prompt, reply, file)


def messages(row: Row, file: File) -> Made:
    """A conversation of one question and one reply, in the form of chat APIs or of ShareGPT."""
    turns = [_turn(turn) for turn in row.get("messages") or row.get("conversations") or ()]
    users = [turn for turn in turns if turn.role == "user"]
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system") or row.get("system") or None
    replies = [turn.content for turn in turns if turn.role == "assistant"]
    if len(users) != 1 or len(replies) > 1 or not users[0].content.strip():
        raise OddRow(f"{len(users)} questions and {len(replies)} replies; one of each can be used")
    prompt = _prompt(row, users[0].content, file, "benign")
    yield prompt
    if replies:
        yield _trace(prompt, replies[0], file, system=system)


def maths(row: Row, file: File) -> Made:
    """A problem, perhaps its worked solution, and the answer. The solution becomes the thinking, so that it is trained."""
    asked = _text(row, ("problem", "question"))
    solution, answer = str(row.get("solution") or ""), row.get("answer")
    if "####" in str(answer):  # GSM8K
        solution, _, answer = str(answer).partition("####")
    gold = str(answer).strip() if answer is not None else ""
    if not gold:
        raise OddRow("no answer")
    prompt = _prompt(row, asked, file, "maths", gold=gold)
    yield prompt
    if solution.strip():
        raw = thinking.join(solution.strip(), f"The final answer is $\\boxed{{{gold}}}$.")
        yield _trace(prompt, raw, file, notes=("the worked solution stands as thinking",))


def openr1(row: Row, file: File) -> Made:
    """OpenR1-Math: several generations with flags for cut and wrong ones."""
    answer = row.get("answer")
    prompt = _prompt(row, _text(row, ("problem",)), file, "maths", gold=None if answer is None else str(answer))
    yield prompt
    generations = row.get("generations")
    if not isinstance(generations, list) or not generations:
        raise OddRow("no generations")
    for i, raw in enumerate(generations):
        verdicts = [_at(row, key, i) for key in ("correctness_math_verify", "correctness_llama")]
        if _at(row, "is_reasoning_complete", i) is False or _at(row, "finish_reasons", i) == "length":
            yield LeftOut(f"generation {i} is cut")
        elif False in verdicts and True not in verdicts:
            yield LeftOut(f"generation {i} is marked wrong")
        else:
            yield _trace(prompt, raw, file, sample=i)


def openthoughts(row: Row, file: File) -> Made:
    """OpenThoughts with metadata: reasoning and solution in columns of their own."""
    gold = row.get("ground_truth_solution")
    prompt = _prompt(row, _text(row, ("problem",)), file, "maths", gold=None if gold is None else str(gold))
    yield prompt
    if row.get("correct") is False:
        yield LeftOut("marked wrong")
        return
    raw = thinking.join(_text(row, ("deepseek_reasoning",)).strip(), _text(row, ("deepseek_solution",)).strip())
    yield _trace(prompt, raw, file)


def s1k(row: Row, file: File) -> Made:
    """s1K and s1K-1.1: R1's trajectory where there is one, else Gemini's; graded wrong ones are left out."""
    solution = row.get("solution")
    prompt = _prompt(row, _text(row, ("question",)), file, "maths", gold=None if solution is None else str(solution))
    yield prompt
    which = next((w for w in ("deepseek_", "gemini_") if row.get(f"{w}attempt")), "")
    if str(row.get(f"{which}grade", "")).strip().lower() == "no":
        yield LeftOut("graded wrong")
        return
    thought = row.get(f"{which}thinking_trajectory") or row.get("thinking_trajectories")
    thought = "\n".join(thought) if isinstance(thought, list) else thought
    if not isinstance(thought, str) or not thought.strip():
        raise OddRow("no thinking trajectory")
    yield _trace(prompt, thinking.join(thought.strip(), _text(row, (f"{which}attempt",)).strip()), file)


def _text(row: Row, keys: Iterable[str]) -> str:
    """The first text that is not blank under these keys."""
    for key in keys:
        if isinstance(row.get(key), str) and row[key].strip():
            return str(row[key])
    raise OddRow(f"no text under {', '.join(keys)}")


def _at(row: Row, key: str, i: int) -> Any:
    """The flag of generation `i`, or `None` where the row has none."""
    flags = row.get(key)
    return flags[i] if isinstance(flags, list) and i < len(flags) else None


def _prompt(row: Row, text: str, file: File, usual: Intent, *, gold: str | None = None) -> Prompt:
    said = next((row[key] for key in ("intent", "label", "data_type") if str(row.get(key)).lower() in INTENTS), None)
    # A file's own word on a row beats the form's habit; the caller's beats both.
    intent = file.intent or (INTENTS[str(said).lower()] if said else usual)
    source = row.get("source")
    return Prompt(
        text=text,
        intent=intent,
        source=source if isinstance(source, str) and source else file.name,
        category=_category(row),
        gold=gold,
    )


def _category(row: Row) -> str:
    value = next((row[key] for key in CATEGORY_KEYS if row.get(key)), "")
    if isinstance(value, str) and value.startswith("["):  # STAR-1 writes a Python list into a string
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _turn(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise OddRow("a turn is no object")
    role = str(turn.get("role") or turn.get("from"))
    role = ROLES.get(role, role)
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = "".join(piece.get("text", "") for piece in content if isinstance(piece, Mapping))
    thought = turn.get("reasoning_content") or turn.get("reasoning") or turn.get("thinking")
    if role == "assistant":
        text, _ = thinking.from_fields(thought if isinstance(thought, str) else None, content)
        return Message(role="assistant", content=text)
    if role not in ("system", "user") or not isinstance(content, str):
        raise OddRow(f"a turn of role {role!r} with {type(content).__name__} content")
    return Message(role="system" if role == "system" else "user", content=content)


def _trace(
    prompt: Prompt,
    raw: Any,
    file: File,
    *,
    system: str | None = None,
    sample: int = 0,
    notes: tuple[str, ...] = (),
) -> Trace:
    if not isinstance(raw, str):
        raise OddRow(f"a reply is text, this is {type(raw).__name__}")
    foreign = FOREIGN.fullmatch(raw.strip())
    if foreign:
        raw = thinking.join(foreign["thinking"].strip(), foreign["answer"].strip())
        notes = (*notes, "OpenThoughts' marks replaced by tags")
    before = (Message(role="system", content=system),) if system else ()
    return thinking.traced(
        prompt,
        raw,
        model=f"file:{file.name}",
        sampling=Sampling(system=system),
        sent=(*before, Message(role="user", content=prompt.text)),
        sample=sample,
        notes=notes,
    )

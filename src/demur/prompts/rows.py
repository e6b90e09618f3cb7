"""One row of a file to prompts, traces and preference pairs, by the slots of `forms.yaml` that its columns fill.

A row that cannot be read raises `OddRow`; unused columns and assumed intents are counted in `notes`. A trace has the
model `file:NAME` and the system text of its row.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from demur import thinking
from demur.prompts import columns
from demur.prompts.columns import TABLE, OddRow, Row, Shape, Statements, text, truth
from demur.records import UNSAFE, Intent, Message, Prompt, Sampling, Trace

TRANSCRIPT = re.compile(r"\s*Human:(?P<prompt>.*?)\n\nAssistant:(?P<reply>.*)", re.DOTALL)  # As HH-RLHF writes it
UNUSED = "columns not used: "  # How the note on such a column begins
ASSUMED = "no column that demur reads states what the prompts want; unless intent is set, they are recorded as"
LABELS = frozenset((*TABLE["labels"], *TABLE["harmful prompt"]))  # Columns that should state an intent
REPLIES = frozenset(("reply", "messages", "generations", "chosen", "two"))
WRITERS = ("deepseek_", "gemini_")  # Two models wrote in s1K-1.1; their columns begin so


class Preference(NamedTuple):
    """Two replies to one prompt, and why the first is preferred."""

    chosen: Trace
    rejected: Trace
    reason: str


class File(NamedTuple):
    """What is known of a file before its rows are read."""

    name: str
    form: str
    intent: Intent | None  # What all prompts want, whatever their rows state
    maths: bool  # Whether its answers are those of maths problems
    named: bool  # Whether the user named the form: columns that it cannot use are then ignored


class Conversation(NamedTuple):
    """The conversation of a row."""

    question: str
    system: str | None
    replies: list[str]


Slots = dict[str, list[str]]  # Columns by slot, the preferred one first


@lru_cache(maxsize=4096)
def filled(shape: Shape, *, maths: bool) -> Slots:
    """The filled columns by slot, with `answer` and `solution`, which may be gold or the reply, under one of these."""
    slots = columns.slots(shape)
    if "answer" in slots:
        replied = {"reply", "generations"} & set(slots)
        gold = replied or ((maths or "messages" in slots) and "thinking" not in slots)
        slot = "gold" if gold else "reply"
        slots[slot] = slots.get(slot, []) + slots.pop("answer")
    if {"solution", "thinking", "reply"} <= set(slots) and "gold" not in slots:  # s1K
        slots["gold"] = slots.pop("solution")
    if "reply" not in slots:  # a reply may be empty: some models answer nothing
        blank = [name for name, kind in shape if kind == "blank" and columns.slot_of(name)[0] == "reply"]
        slots |= {"reply?": blank} if blank else {}
    return slots


def misfit(slots: Slots, form: str) -> tuple[list[str], dict[str, str]]:
    """The empty slots that a form needs, and the columns that it cannot use, with their slots."""
    needs = TABLE["forms"][form]["needs"]
    used = (*needs, *TABLE["forms"][form].get("may", []), "", "reply?")
    extra = {name: slot for slot, names in slots.items() if slot not in used for name in names}
    return [slot for slot in needs if slot not in slots and f"{slot}?" not in slots], extra


@lru_cache(maxsize=4096)
def _used(shape: Shape, file: File) -> tuple[Slots, list[str]]:
    """The columns that a form uses, by slot, and the others. Raises OddRow: one is missing, or one would vanish."""
    slots = filled(shape, maths=file.maths)
    missing, extra = misfit(slots, file.form)
    if missing:
        raise OddRow(f"no text under {', '.join(TABLE['columns'][missing[0]][:8])}")
    if extra and not file.named:
        listed = ", ".join(f"{name} ({slot})" for name, slot in extra.items())
        raise OddRow(f"the form '{file.form}' has no use for {listed}")
    unused = []
    for slot, names in slots.items():
        count = {"": 0, "other reply": 0, "generations": len(names), "two": len(names)}.get(slot, 1)
        count = 0 if slot in extra.values() or (file.form == "messages" and slot in ("prompt", "solution")) else count
        unused += names[count:]
    return {slot.rstrip("?"): names for slot, names in slots.items() if slot not in extra.values()}, unused


def read(row: Row, file: File, notes: Counter[str]) -> Iterator[Prompt | Trace | Preference | str]:
    """The prompt of a row, then its replies, or why one is left out, or its preference pair. Raises OddRow."""
    row = columns.keyed(row)
    slots, unused = _used(columns.shape(row), file)
    for name in unused:
        notes[UNUSED + name] += 1
    statements = columns.stated(row)
    if file.form in ("preferences", "two replies"):
        names, reason = _ranked(row, slots, statements)
        chosen, rejected = (_conversation(row, slots | {"reply": [name]}, file) for name in names)
        if chosen[:2] != rejected[:2] or not (chosen.replies and rejected.replies):
            raise OddRow(f"{names[0]} and {names[1]} are not two replies to one question")
        if chosen.replies == rejected.replies:
            raise OddRow(f"{names[0]} and {names[1]} are the same")
        prompt = _prompt(row, chosen.question, slots, file, statements, notes)
        yield prompt
        yield Preference(_trace(prompt, chosen, 0, file), _trace(prompt, rejected, 0, file), reason)
        return
    talk = _conversation(row, slots, file)
    prompt = _prompt(row, talk.question, slots, file, statements, notes)
    yield prompt
    marks = ("the worked solution stands as thinking",) if "maths" in file.form else ()
    marks = (UNSAFE,) if statements and columns.unsafe(statements) else marks
    for at in range(len(talk.replies)):
        if statements and (flaw := columns.flaw(statements, at)):
            yield f"generation {at} {flaw}" if "generations" in slots else f"its reply {flaw}"
        else:
            yield _trace(prompt, talk, at, file, notes=marks)


def _cell(row: Row, slots: Slots, slot: str) -> Any:
    """The cell that counts in a slot, `None` where it is empty; a list only where it is one of turns."""
    value = row[slots[slot][0]] if slot in slots else None
    if value is None or (isinstance(value, str) and not value.startswith("[")):
        return value
    items = columns.parsed(value)
    turns = isinstance(items, list) and all(isinstance(item, dict) and {"role", "from"} & item.keys() for item in items)
    if items and isinstance(items, list) and (turns or slot == "messages"):
        return items
    return text(value) if isinstance(value, list) else value


def _conversation(row: Row, slots: Slots, file: File) -> Conversation:
    """The conversation of a row, whether its turns are in a list, in columns, or in a transcript."""
    chat, several = file.form == "messages", file.form == "generations"
    asked = _cell(row, slots, "messages" if chat else "prompt")
    prompt, reply = _transcript(asked, None if several else _cell(row, slots, "reply"))
    if not (chat or isinstance(prompt, list)):
        prompt = "\n\n".join(filter(None, (text(prompt), text(_cell(row, slots, "context")))))
    if chat or isinstance(prompt, list) or isinstance(reply, list):
        question, system, replies = _from_turns(row, slots, prompt, reply, chat=chat)
    else:
        question, system = prompt, ""
        replies = [_with_thinking(row, slots, reply)] if "reply" in slots and not several else []
    if not question.strip():
        raise OddRow("no text of a question")
    if "\0" in question or any("\0" in reply for reply in replies):
        raise OddRow("several questions; one, and one reply, can be used")
    if several:
        cells = [row[name] for name in slots["generations"]]
        replies = [item for cell in cells for item in (cell if isinstance(cell, list) else [cell])]
    elif "maths" in file.form and (worked := _worked(row, slots))[0]:
        replies = [thinking.join(worked[0].strip(), f"The final answer is $\\boxed{{{worked[1]}}}$.")]
    if not all(isinstance(reply, str) for reply in replies):
        raise OddRow("a reply that is not text")
    return Conversation(question, system or text(_cell(row, slots, "system")), replies)


def _from_turns(row: Row, slots: Slots, prompt: Any, reply: Any, *, chat: bool) -> tuple[str, str, list[str]]:
    """Question, system text and replies of a conversation whose turns are in lists."""
    turns = columns.turns(reply) if isinstance(reply, list) else []
    if not any(role == "user" for role, _ in turns):
        turns = [*([("user", prompt)] if isinstance(prompt, str) and not chat else columns.turns(prompt)), *turns]
    answers = [at for at, (role, _) in enumerate(turns) if role == "assistant"]
    if answers and chat and "thinking" in slots and thinking.split(turns[answers[-1]][1]).thinking is None:
        turns[answers[-1]] = ("assistant", _with_thinking(row, slots, turns[answers[-1]][1]))
    elif "reply" in slots and not answers:
        turns.append(("assistant", _with_thinking(row, slots, reply)))
    texts = {role: [content for by, content in turns if by == role] for role in ("user", "system", "assistant")}
    order = [role for role, _ in turns if role != "system"]
    if order not in (["user"], ["user", "assistant"]):
        count = f"{order.count('user')} questions and {order.count('assistant')} replies"
        raise OddRow(f"{count}; one of each, in this order, can be used")
    return texts["user"][0], "\n\n".join(texts["system"]), texts["assistant"]


def _transcript(prompt: Any, reply: Any) -> tuple[Any, Any]:
    """Question and reply, also of a transcript (`Human: … Assistant: …`); a null byte marks further turns."""
    if prompt is None and isinstance(reply, str) and (match := TRANSCRIPT.fullmatch(reply)):
        return match["prompt"].strip(), match["reply"].replace("\n\nHuman:", "\0").strip()
    if isinstance(prompt, str) and (match := TRANSCRIPT.fullmatch(prompt)):
        return match["prompt"].strip() + "\0" * bool(match["reply"].strip()), reply
    return prompt, reply


def _with_thinking(row: Row, slots: Slots, reply: Any) -> str:
    """A reply with the thinking of the same writer in front of it."""
    if "thinking" not in slots and isinstance(reply, str):
        return reply
    reply_column = slots.get("reply", ["reply"])[0]
    writers = tuple(writer for writer in WRITERS if reply_column.startswith(writer))
    names = [name for name in slots.get("thinking", []) if name.startswith(writers)]
    names = names or [name for name in slots.get("thinking", []) if not name.startswith(WRITERS)]
    answer = reply if reply == "" else text(reply)
    thought = row[names[0]] if names else ""
    thought = "\n".join(filter(None, map(text, thought))) if isinstance(thought, list) else thought and text(thought)
    if answer is None or thought is None:
        raise OddRow(f"no text under {reply_column if answer is None else names[0]}")
    return thinking.from_fields(thought, answer)[0] if thought else answer


def _worked(row: Row, slots: Slots) -> tuple[str, str]:
    """The worked solution of a maths problem and its final answer."""
    solution = text(_cell(row, slots, "solution")) or ""
    gold = text(_cell(row, slots, "gold")) if "gold" in slots else columns.boxed(solution)
    if gold is None:
        where = slots["gold"][0] if "gold" in slots else f"a box of {slots['solution'][0]}"
        raise OddRow(f"no single answer under {where}")
    if "####" in gold:  # GSM8K
        solution, _, gold = gold.partition("####")
    return solution, gold.strip()


def _prompt(row: Row, question: str, slots: Slots, file: File, statements: Statements, notes: Counter[str]) -> Prompt:
    gold = _worked(row, slots)[1] if file.maths and ("gold" in slots or "maths" in file.form) else None
    if "gold" in slots and gold is None:
        notes[UNUSED + slots["gold"][0]] += 1
    stated = columns.intent(statements, replied=not REPLIES.isdisjoint(slots)) if statements else None
    intent = file.intent or stated or ("maths" if gold else None)
    labels = [name for name in row if name in LABELS and truth(row[name]) is not False]
    if intent is None:
        intent = "benign" if file.form == "messages" or "domain" in labels else "harmful"
        unclear = f" ({', '.join(labels)} cannot be understood)" if labels else ""
        notes[f"{ASSUMED} {intent}{unclear}"] += 1
    elif labels == ["label"] and "reply" in slots and file.intent is None:
        notes["'label' is taken to be about the prompt, not about the reply"] += 1
    source, category = text(row.get("source")) or file.name, columns.category(statements) if statements else ""
    attacked = text(_cell(row, slots, "attacked"))
    if attacked is None:
        return Prompt(text=question, intent=intent, source=source, category=category, gold=gold)
    attack = slots["attacked"][0]
    if attack == "final_query":
        attack = f"pap:{(category or 'unnamed').strip().lower().replace(' ', '_')}"
    parent = Prompt(text=question, intent=intent).id
    return Prompt(text=attacked, intent=intent, source=source, attack=attack, parent=parent, question=question)


def _trace(prompt: Prompt, talk: Conversation, at: int, file: File, *, notes: tuple[str, ...] = ()) -> Trace:
    before = (Message(role="system", content=talk.system),) if talk.system else ()
    sent = (*before, Message(role="user", content=prompt.text))
    model, sampling = f"file:{file.name}", Sampling(system=talk.system)
    return thinking.traced(prompt, talk.replies[at], notes=notes, model=model, sampling=sampling, sent=sent, sample=at)


def _ranked(row: Row, slots: Slots, statements: Statements) -> tuple[list[str], str]:
    """The columns of the better and of the worse reply, and the reason. Raises OddRow: neither is better."""
    if "chosen" in slots:
        scores = [*statements.get("score chosen", ()), *statements.get("score rejected", ())]
        if len(scores) == 2 and all(isinstance(score, (int, float)) for score in scores) and scores[0] <= scores[1]:
            raise OddRow(f"chosen is scored no better ({scores[0]}) than rejected ({scores[1]})")
        return [slots["chosen"][0], slots["rejected"][0]], "chosen"
    names = slots["two"]
    endings = [name.rpartition("_")[2] for name in names]
    better = {str(value).strip().lower().rpartition("_")[2] for value in statements.get("better", ())}
    safe = [truth(row.get(f"is_{name}_safe")) for name in names]
    if not better and sorted(map(str, safe)) == ["False", "True"]:
        better = {endings[safe.index(True)]}
    if len(names) != 2 or len(better) != 1 or not better <= set(endings):
        named = [name for name in row if name in TABLE["better"]] or ["no " + ", ".join(TABLE["better"])]
        raise OddRow(f"it is not clear which of {', '.join(names)} is better ({' and '.join(named)})")
    best = endings.index(better.pop())
    if (safe[best], safe[1 - best]) == (False, True):
        raise OddRow(f"{names[best]} is better and marked unsafe, {names[1 - best]} is marked safe")
    return [names[best], names[1 - best]], "better by its file"

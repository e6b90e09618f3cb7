"""One row of a file to prompts, traces and preferences, by the slots of `forms.yaml` that its columns fill.

What cannot be read raises `OddRow`; a part that its own flags call cut or wrong is `LeftOut`; columns of no use and assumed intents are
counted in `notes`. A trace made from a file has the model `file:NAME`, and what was sent is the prompt behind the row's system text.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from demur import thinking
from demur.prompts import columns as c
from demur.prompts.columns import TABLE, OddRow, Row, Said, text, truth
from demur.records import UNSAFE, Intent, Message, Prompt, Sampling, Trace

TRANSCRIPT = re.compile(r"\s*Human:(?P<prompt>.*?)\n\nAssistant:(?P<reply>.*)", re.DOTALL)  # As HH-RLHF writes it
UNUSED, ASSUMED = "columns not used: ", "no column says what the prompts want; they are taken for"  # How notes begin
CLAIMS = frozenset((*TABLE["labels"], *TABLE["harmful prompt"]))
REPLIES = frozenset(("reply", "messages", "generations", "chosen", "two"))


class LeftOut(NamedTuple):
    """A part of a row that is not used, and why."""

    reason: str


class Preference(NamedTuple):
    """Two replies to one prompt, and why the one is preferred."""

    chosen: Trace
    rejected: Trace
    reason: str


class File(NamedTuple):
    """What a row is read with."""

    name: str
    form: str
    intent: Intent | None  # What all prompts want, over what their rows say
    maths: bool  # Whether its answers are those of maths problems
    named: bool  # Whether somebody named the form: columns that it has no use for are then left aside


class Talk(NamedTuple):
    """The conversation of a row."""

    question: str
    system: str | None
    replies: list[str]


Cells = dict[str, list[str]]
Columns = tuple[tuple[str, str], ...]  # The columns of a row and what fills each; see `columns.filling`


@lru_cache(maxsize=4096)
def filled(columns: Columns, *, maths: bool) -> Cells:
    """The filled columns by slot, with `answer` and `solution`, which may be gold or the reply, told apart."""
    found = c.slots(columns)
    if "answer" in found:
        told = {"reply", "generations"} & set(found) or ((maths or "messages" in found) and "thinking" not in found)
        slot = "gold" if told else "reply"
        found[slot] = found.get(slot, []) + found.pop("answer")
    if {"solution", "thinking", "reply"} <= set(found) and "gold" not in found:  # s1K
        found["gold"] = found.pop("solution")
    if "reply" not in found:  # a reply may be empty: some models answer nothing
        blank = [name for name, fills in columns if fills == "blank" and c.place(name)[0] == "reply"]
        found |= {"reply?": blank} if blank else {}
    return found


def misfit(cells: Cells, form: str) -> tuple[list[str], list[str]]:
    """What a form needs and a row lacks, and the columns that stand for something which the form has no use for."""
    needs = TABLE["forms"][form]["needs"]
    used = (*needs, *TABLE["forms"][form].get("may", []), "", "reply?")
    extra = [f"{name} ({slot})" for slot, names in cells.items() if slot not in used for name in names]
    return [slot for slot in needs if slot not in cells and f"{slot}?" not in cells], extra


@lru_cache(maxsize=4096)
def _used(columns: Columns, file: File) -> tuple[Cells, list[str]]:
    """The columns that a form uses, by slot, and those that it does not use.

    Raises OddRow: something is lacking, or would vanish.
    """
    cells = filled(columns, maths=file.maths)
    lacking, extra = misfit(cells, file.form)
    if lacking:
        raise OddRow(f"no text under {', '.join(TABLE['columns'][lacking[0]][:8])}")
    if extra and not file.named:
        raise OddRow(f"the form '{file.form}' has no use for {', '.join(extra)}")
    aside, unused = {name.partition(" (")[0] for name in extra}, list[str]()
    for slot, names in cells.items():
        kept = {"": 0, "other reply": 0, "generations": len(names), "two": len(names)}.get(slot, 1)
        kept = 0 if file.form == "messages" and slot in ("prompt", "solution") else kept
        unused += [*names[kept:], *aside.intersection(names[:kept])]
    return {slot.rstrip("?"): names for slot, names in cells.items() if names[0] not in aside}, unused


def read(row: Row, file: File, notes: Counter[str]) -> Iterator[Prompt | Trace | Preference | LeftOut]:
    """The prompt of a row, then its replies."""
    row = c.keyed(row)
    cells, unused = _used(c.filling(row), file)
    for name in unused:
        notes[UNUSED + name] += 1
    said = c.stated(row)
    if file.form in ("preferences", "two replies"):
        names, reason = _told_apart(row, cells, said)
        both = [_talk(row, cells | {"reply": [name]}, file) for name in names]
        if both[0][:2] != both[1][:2] or not all(side.replies for side in both):
            raise OddRow(f"{names[0]} and {names[1]} are no two replies to one question")
        if both[0].replies == both[1].replies:
            raise OddRow(f"{names[0]} and {names[1]} are the same")
        prompt = _prompt(row, both[0].question, cells, file, said, notes)
        yield prompt
        yield Preference(_trace(prompt, both[0], 0, file), _trace(prompt, both[1], 0, file), reason)
        return
    talk = _talk(row, cells, file)
    prompt = _prompt(row, talk.question, cells, file, said, notes)
    yield prompt
    marks = ("the worked solution stands as thinking",) if "maths" in file.form else ()
    marks = (UNSAFE,) if said and c.unsafe(said) else marks
    for at in range(len(talk.replies)):
        if said and (reason := c.flaw(said, at)):
            yield LeftOut(f"generation {at} {reason}" if "generations" in cells else f"its reply {reason}")
        else:
            yield _trace(prompt, talk, at, file, notes=marks)


def _first(row: Row, cells: Cells, slot: str) -> Any:
    """The cell that counts in a slot; a list only where it is one of turns."""
    value = row[cells[slot][0]] if slot in cells else None
    if value is None or (isinstance(value, str) and not value.startswith("[")):
        return value
    found = c.listed(value)
    turned = isinstance(found, list) and all(isinstance(t, dict) and {"role", "from"} & t.keys() for t in found)
    if found and isinstance(found, list) and (slot == "messages" or turned):
        return found
    return text(value) if isinstance(value, list) else value


def _talk(row: Row, cells: Cells, file: File) -> Talk:
    """The conversation, whether its turns stand in a list, in columns, or in a transcript."""
    chat, several = file.form == "messages", file.form == "generations"
    asked = _first(row, cells, "messages" if chat else "prompt")
    prompt, reply = _transcript(asked, None if several else _first(row, cells, "reply"))
    if not (chat or isinstance(prompt, list)):
        under = text(_first(row, cells, "context")) if "context" in cells else None
        prompt = "\n\n".join(filter(None, (text(prompt), under)))
    if chat or not isinstance(prompt, str) or isinstance(reply, list):
        question, system, others = _turned(row, cells, prompt, reply, chat=chat)
    else:
        question, system, others = prompt, "", [_thought(row, cells, reply)] if "reply" in cells and not several else []
    if not question.strip():
        raise OddRow("no text of a question")
    if "\0" in question or any("\0" in other for other in others):
        raise OddRow("several questions; one, and one reply, can be used")
    if several:
        values = [row[name] for name in cells["generations"]]
        others = [one for value in values for one in (value if isinstance(value, list) else [value])]
    elif "maths" in file.form and (worked := _worked(row, cells))[0]:
        others = [thinking.join(worked[0].strip(), f"The final answer is $\\boxed{{{worked[1]}}}$.")]
    if not all(isinstance(other, str) for other in others):
        raise OddRow("a reply that is no text")
    return Talk(question, system or (text(_first(row, cells, "system")) if "system" in cells else None), others)


def _turned(row: Row, cells: Cells, prompt: Any, reply: Any, *, chat: bool) -> tuple[str, str, list[str]]:
    """Question, system text and replies of a conversation whose turns stand in lists."""
    said = c.turns(reply) if isinstance(reply, list) else []
    if not any(role == "user" for role, _ in said):
        said = [*([("user", prompt)] if isinstance(prompt, str) and not chat else c.turns(prompt)), *said]
    answered = [at for at, (role, _) in enumerate(said) if role == "assistant"]
    if answered and chat and "thinking" in cells and thinking.split(said[answered[-1]][1]).thinking is None:
        said[answered[-1]] = ("assistant", _thought(row, cells, said[answered[-1]][1]))
    elif "reply" in cells and not answered:
        said.append(("assistant", _thought(row, cells, reply)))
    order = [role for role, _ in said if role != "system"]
    found = {role: [content for own, content in said if own == role] for role in ("user", "system", "assistant")}
    if order not in (["user"], ["user", "assistant"]):
        count = f"{order.count('user')} questions and {order.count('assistant')} replies"
        raise OddRow(f"{count}; one of each, in this order, can be used")
    return found["user"][0], "\n\n".join(found["system"]), found["assistant"]


def _transcript(prompt: Any, reply: Any) -> tuple[Any, Any]:
    """Question and reply, where a conversation is written as `Human: … Assistant: …`; a null byte stands where it has more turns."""
    if prompt is None and isinstance(reply, str) and (match := TRANSCRIPT.fullmatch(reply)):
        return match["prompt"].strip(), match["reply"].replace("\n\nHuman:", "\0").strip()
    if isinstance(prompt, str) and (match := TRANSCRIPT.fullmatch(prompt)):
        return match["prompt"].strip() + "\0" * bool(match["reply"].strip()), reply
    return prompt, reply


def _thought(row: Row, cells: Cells, reply: Any) -> str:
    """A reply with the thinking of its own writer in front of it."""
    if "thinking" not in cells and isinstance(reply, str):
        return reply
    name = cells.get("reply", ["reply"])[0]
    writers = [writer for writer in ("deepseek_", "gemini_") if name.startswith(writer)]
    names = [own for own in cells.get("thinking", []) if own.startswith(tuple(writers))]
    names = names or [own for own in cells.get("thinking", []) if not own.startswith(("deepseek_", "gemini_"))]
    answer = reply if reply == "" else text(reply)
    thought = row[names[0]] if names else ""
    thought = "\n".join(filter(None, map(text, thought))) if isinstance(thought, list) else thought and text(thought)
    if answer is None or thought is None:
        raise OddRow(f"no text under {name if answer is None else names[0]}")
    return thinking.from_fields(thought, answer)[0] if thought else answer


def _worked(row: Row, cells: Cells) -> tuple[str, str]:
    """The worked solution of a maths problem and its final answer."""
    solution = text(_first(row, cells, "solution")) or ""
    gold = text(_first(row, cells, "gold")) if "gold" in cells else c.boxed(solution)
    if gold is None:
        under = cells["gold"][0] if "gold" in cells else f"a box of {cells['solution'][0]}"
        raise OddRow(f"no single answer under {under}")
    if "####" in gold:  # GSM8K
        solution, _, gold = gold.partition("####")
    return solution, gold.strip()


def _prompt(row: Row, asked: str, cells: Cells, file: File, said: Said, notes: Counter[str]) -> Prompt:
    gold = _worked(row, cells)[1] if file.maths and ("gold" in cells or "maths" in file.form) else None
    told = c.intent(said, replied=not REPLIES.isdisjoint(cells)) if said else None
    wants = file.intent or told or ("maths" if gold else None)
    claims = [name for name in row if name in CLAIMS and truth(row[name]) is not False]
    if "gold" in cells and gold is None:
        notes[UNUSED + cells["gold"][0]] += 1
    if wants is None:
        wants = "benign" if file.form == "messages" or "domain" in claims else "harmful"
        unclear = f" ({', '.join(claims)} cannot be understood)" if claims else ""
        notes[f"{ASSUMED} {wants}{unclear}"] += 1
    elif claims == ["label"] and "reply" in cells and file.intent is None:
        notes["'label' is taken to be about the prompt, not about the reply"] += 1
    source, kind = text(row.get("source")) or file.name, c.category(said) if said else ""
    attacked = text(_first(row, cells, "attacked")) if "attacked" in cells else None
    if attacked is None:
        return Prompt(text=asked, intent=wants, source=source, category=kind, gold=gold)
    name = cells["attacked"][0]
    attack = f"pap:{(kind or 'unnamed').strip().lower().replace(' ', '_')}" if name == "final_query" else name
    parent = Prompt(text=asked, intent=wants).id
    return Prompt(text=attacked, intent=wants, source=source, attack=attack, parent=parent, question=asked)


def _trace(prompt: Prompt, talk: Talk, at: int, file: File, *, notes: tuple[str, ...] = ()) -> Trace:
    before = (Message(role="system", content=talk.system),) if talk.system else ()
    sent = (*before, Message(role="user", content=prompt.text))
    model, sampling = f"file:{file.name}", Sampling(system=talk.system)
    return thinking.traced(prompt, talk.replies[at], notes=notes, model=model, sampling=sampling, sent=sent, sample=at)


def _told_apart(row: Row, cells: Cells, said: Said) -> tuple[list[str], str]:
    """The columns of the better and of the worse reply, and what says so."""
    if "chosen" in cells:
        scores = [*said.get("score chosen", ()), *said.get("score rejected", ())]
        if len(scores) == 2 and all(isinstance(score, (int, float)) for score in scores) and scores[0] <= scores[1]:
            raise OddRow(f"chosen is scored no better ({scores[0]}) than rejected ({scores[1]})")
        return [cells["chosen"][0], cells["rejected"][0]], "chosen"
    names = cells["two"]
    ends = [name.rpartition("_")[2] for name in names]
    says = {str(value).strip().lower().rpartition("_")[2] for value in said.get("better", ())}
    safe = [truth(row.get(f"is_{name}_safe")) for name in names]
    if not says and sorted(map(str, safe)) == ["False", "True"]:
        says = {ends[safe.index(True)]}
    if len(names) != 2 or len(says) != 1 or not says <= set(ends):
        columns = [name for name in row if name in TABLE["better"]] or ["no " + ", ".join(TABLE["better"])]
        raise OddRow(f"which of {', '.join(names)} is better cannot be told ({' and '.join(columns)})")
    best = ends.index(says.pop())
    if (safe[best], safe[1 - best]) == (False, True):
        raise OddRow(f"{names[best]} is better and marked unsafe, {names[1 - best]} is marked safe")
    return [names[best], names[1 - best]], "better by its file"

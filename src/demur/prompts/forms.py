"""Reads the files that people have, and reports what it could not use of them and what it had to assume.

A file's form is inferred from the filled columns of its first rows (`forms.yaml`). A folder is a run, a finished stage,
or a data set with tables in it. Prompts in a shared wrapper get their bare question back (`wrappers`), so that one
question in twenty jailbreak templates is one cluster, and two questions in one template are not alike.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from demur.errors import UserError, unknown
from demur.prompts.columns import TABLE, OddRow, keyed, shape, slots, text
from demur.prompts.rows import ASSUMED, UNUSED, File, Preference, Slots, filled, misfit, read
from demur.prompts.wrappers import unwrap
from demur.records import Example, Intent, Origin, Prompt, Record, Trace
from demur.storage import readers
from demur.storage.artifacts import Artifact, artifacts, is_published

MATHS = re.compile(r"(?=.*[\d\\=^<>])\S+(\s+\S+){0,7}|.*####\s*\S+|\{.*\"tests\".*\}", re.DOTALL)
"""What answers to maths problems look like, or the tests of a program."""
LOOKED_AT = 20  # Rows from which a form is inferred
OWN_FORMS: dict[str, tuple[set[str], type[Prompt | Trace | Example]]] = {
    "published": ({"parts", "prompt_id", "share"}, Example),
    "examples": ({"parts", "origin"}, Example),
    "traces": ({"prompt", "raw", "sent", "outcome"}, Trace),
    "prompts": ({"text", "intent"}, Prompt),
}
"""demur's own records, by the columns that they all have."""
FORMS = (*OWN_FORMS, *TABLE["forms"])
WRAPPED = ("pairs", "reasoning", "table")  # Forms whose prompts may be questions in shared wrappers
INTENT_ASSUMED = re.compile(rf"(.*{ASSUMED.partition(';')[0]}); [^(]*(.*)", re.DOTALL)


class Odd(Record, frozen=True, kw_only=True):
    """A row, or a reply of one, that was kept aside: its place, the reason, and the row where it could be read."""

    where: str
    reason: str
    row: dict[str, Any] | None = None


class Loaded(NamedTuple):
    """The content of a file or folder. Prompts include those of the traces, each once, in the file's order."""

    form: str
    prompts: list[Prompt]
    traces: list[Trace]
    examples: list[Example]
    pairs: list[Preference]
    odd: list[Odd]
    notes: list[str]  # What of the file was not used, and what was assumed


def load_file(path: Path, *, form: str | None = None, intent: Intent | None = None, glance: bool = False) -> Loaded:
    """Read a file, a finished stage, a run with one stage that fits, or a folder of tables of one form.

    Left out, `form` (one of `FORMS`) and `intent` are read from the rows; `glance` stops when the form is known.

    Raises UserError: nothing to read, no form fits, no row is readable, two records have one id, or several stages fit.
    """
    if form is not None and form not in FORMS:
        raise unknown("form", form, FORMS)
    parts = [_load(file, form, intent, glance=glance) for file in (_files(path, form) if path.is_dir() else [path])]
    if len({part.form for part in parts}) != 1:
        forms = ", ".join(sorted({part.form for part in parts}))
        raise UserError(f"{path} holds files of several forms ({forms}). Give one file.")
    merged = [[item for part in parts for item in part[i]] for i in range(1, len(parts[0]))]
    return Loaded(parts[0].form, *merged)  # type: ignore[arg-type]


def require_intent(notes: Iterable[str]) -> None:
    """Refuse a file whose intents were assumed, where replies are counted by them. Raises UserError."""
    for match in filter(None, map(INTENT_ASSUMED.fullmatch, notes)):
        problem = " ".join(filter(None, match.groups()))
        raise UserError(
            f"{problem}, and that decides how replies are counted. State it for all by --intent harmful "
            "(or benign …; in a study intent: harmful), or for each in a column intent."
        )


def _files(folder: Path, form: str | None) -> Iterator[Path]:
    """The tables of a folder: those of a stage, of a run's one stage that fits, or of a data set."""
    wanted = [form] if form in OWN_FORMS else ["examples", "traces", "prompts"]
    stages = [Artifact(folder)] if is_published(folder) else artifacts(folder)
    for name in wanted:
        holding = [stage for stage in stages if stage.rows(name)]
        # What a run made takes precedence over what it imported.
        fitting = [stage for stage in holding if stage.manifest.kind != "import"] or holding
        if len(fitting) > 1:
            listed = "\n".join(f"  {stage.folder}" for stage in fitting)
            raise UserError(f"{folder}: {len(fitting)} stages hold {name}; give one of them:\n{listed}")
        if fitting:
            yield fitting[0].folder / f"{name}.jsonl"
            return
    if stages:
        raise UserError(f"{folder}: no stage holds {', '.join(wanted)}.")
    within = (folder / "data").rglob("*") if (folder / "data").is_dir() else folder.iterdir()
    files = sorted(path for path in within if not path.name.startswith("."))
    # A data set may have the same rows in several formats.
    chosen = next((end for end in readers.READERS if any(readers.ending(path) == end for path in files)), None)
    if chosen is None:
        allowed = ", ".join(readers.READERS)
        raise UserError(f"{folder} is neither a run nor a finished stage, and holds no file ending in {allowed}.")
    yield from (path for path in files if readers.ending(path) == chosen)


def _load(path: Path, form: str | None, intent: Intent | None, *, glance: bool) -> Loaded:
    odd: list[Odd] = []
    stream = readers.rows(path, bad=lambda line, reason: odd.append(Odd(where=f"{path}:{line}", reason=reason)))
    first = list(islice(stream, LOOKED_AT))
    if not first:
        more = f" ({len(odd):,} rows could not be read)" if len(odd) > 1 else ""
        raise UserError(f"{odd[0].where}: {odd[0].reason}{more}" if odd else f"{path}: it has no rows.")
    file = _recognised(path, [row for _, row in first], form, intent)
    if glance:
        return Loaded(file.form, [], [], [], [], [], [])
    items: list[tuple[int, Any]] = []
    notes: Counter[str] = Counter()
    count = 0
    for number, row in chain(first, stream):
        count += 1
        try:
            for item in (_record(row, file.form),) if file.form in OWN_FORMS else read(row, file, notes):
                if isinstance(item, str):  # why a reply is left out
                    odd.append(Odd(where=f"{path}:{number}", reason=item, row=row))
                else:
                    items.append((number, item))
        except (OddRow, msgspec.ValidationError, RecursionError) as error:
            odd.append(Odd(where=f"{path}:{number}", reason=f"{error}", row=row))
    if not items and odd:
        raise UserError(f"{path}: no row could be read as '{file.form}'. The first: {odd[0].where}: {odd[0].reason}")
    some_rows = {note: f" ({n:,} of {count:,} rows)" for note, n in notes.items() if n < count}
    lines = [f"{note}{some_rows.get(note, '')}" for note in notes if UNUSED not in note]
    if unused := sorted(note.removeprefix(UNUSED) for note in notes if UNUSED in note):
        lines.append(UNUSED + ", ".join(unused))
    return _sorted_out(path, file, items, odd, [f"{path.name}: {line}" for line in lines])


def _record(row: dict[str, Any], form: str) -> Prompt | Trace | Example:
    """A record of demur's own, or a training row as `publish` writes it."""
    if form == "published":
        origin = {name: row[name] for name in Origin.__struct_fields__ if row[name]} | {"prompt": row["prompt_id"]}
        origin["repairs"] = row["repairs"].split("; ") if row["repairs"] else []
        row = {name: row[name] for name in ("id", "parts", "share", "cluster")} | {"origin": origin}
    return msgspec.convert(row, OWN_FORMS[form][1])


def _recognised(path: Path, rows: list[dict[str, Any]], form: str | None, intent: Intent | None) -> File:
    """The form that most of the first rows have, and whether their answers are those of maths problems."""
    record = next((name for name, (columns, _) in OWN_FORMS.items() if all(columns <= set(row) for row in rows)), form)
    if record in OWN_FORMS:
        return File(path.name, record, intent, maths=False, named=form is not None)
    try:
        rows = [keyed(row) for row in rows]
    except OddRow as error:
        raise UserError(f"{path}: {error}.") from None
    shapes = [shape(row) for row in rows]
    slots_of_rows = [slots(columns) for columns in shapes]
    answer_columns = [columns.get("answer", columns.get("gold", [])) for columns in slots_of_rows]
    answers = [text(row[names[0]]) for row, names in zip(rows, answer_columns, strict=True) if names]
    mathematical = [bool(MATHS.fullmatch(answer)) for answer in answers if answer]
    share = sum(mathematical) / len(mathematical) if mathematical else 1.0
    forms = {maths: [_form_of(filled(columns, maths=maths)) for columns in shapes] for maths in (True, False)}
    if form is None and 0.2 < share < 0.8 and forms[True] != forms[False]:
        remedy = "Name the form: maths, where they are the right answers, or pairs, where they are the replies"
        raise UserError(f"{path}: its answers are those of maths problems in some rows and texts in others. {remedy}.")
    maths = share >= 0.5 if form is None else form != "pairs"
    form_of_file = form or Counter(forms[maths]).most_common(1)[0][0]
    if not form_of_file:
        listed = [f"{name} ({slot})" if slot else name for slot, names in slots_of_rows[0].items() for name in names]
        raise UserError(
            f"{path}: no form has a use for all of its columns: {', '.join(listed or rows[0])}. Names for a prompt are "
            f"{', '.join(TABLE['columns']['prompt'])}. Rename or remove a column, or name the form: {', '.join(FORMS)}."
        )
    return File(path.name, form_of_file, intent, maths, named=form is not None)


def _form_of(columns: Slots) -> str:
    return next((form for form in TABLE["forms"] if misfit(columns, form) == ([], {})), "")


def _sorted_out(path: Path, file: File, items: list[tuple[int, Any]], odd: list[Odd], notes: list[str]) -> Loaded:
    """The items by kind, without repeated ids, and with questions taken out of shared wrappers."""
    sorts: dict[type, list[tuple[int, Any]]] = {kind: [] for kind in (Prompt, Trace, Example, Preference)}
    for number, item in items:
        sorts[type(item)].append((number, item))
    prompts, rows = _once(path, file, sorts[Prompt], odd), sorts[Trace]
    if file.form in WRAPPED and (moved := _unwrapped(prompts)):
        prompts = [moved.get(prompt.id, prompt) for prompt in prompts]
        rows = [(at, replace(t, prompt=moved[t.prompt.id], id="") if t.prompt.id in moved else t) for at, t in rows]
    traces, examples = _once(path, file, rows, odd), _once(path, file, sorts[Example], odd)
    by_id = {prompt.id: prompt for prompt in (*prompts, *(trace.prompt for trace in traces))}
    pairs = [pair for _, pair in sorts[Preference]]
    return Loaded(file.form, list(by_id.values()), traces, examples, pairs, odd, notes)


def _once(path: Path, file: File, items: list[tuple[int, Any]], odd: list[Odd]) -> list[Any]:
    """Records without repeated ids. Equal replies to one prompt are samples of it, and all of them count."""
    seen: dict[str, tuple[int, Any]] = {}
    kept = []
    for number, record in items:
        while record.id in seen and isinstance(record, Trace) and file.form not in OWN_FORMS:
            record = replace(record, sample=record.sample + 1, id="")
        if record.id not in seen:
            seen[record.id] = number, record
            kept.append(record)
            continue
        line, other = seen[record.id]
        if getattr(other, "parts", other) != getattr(record, "parts", record) and file.form in OWN_FORMS:
            double = f"another {type(record).__name__.lower()} of the id {record.id} stands in {path}:{line}"
            raise UserError(f"{path}:{number}: {double}. Remove the ids, and new ones are made.")
        if isinstance(record, Example):
            kept.append(record)
        elif isinstance(record, Trace):
            odd.append(Odd(where=f"{path}:{number}", reason=f"the same trace stands in {path}:{line}"))
    return kept


def _unwrapped(prompts: list[Prompt]) -> dict[str, Prompt]:
    """The prompts in a shared wrapper by id, with their question as parent."""
    found, moved = unwrap(prompt.text for prompt in prompts), dict[str, Prompt]()
    for prompt in (prompt for prompt in prompts if prompt.text in found):
        question, template = found[prompt.text]
        parent = Prompt(text=question, intent=prompt.intent).id
        changes = {"attack": f"template:{template}", "parent": parent, "cluster": parent, "question": question}
        moved[prompt.id] = replace(prompt, id="", **changes)
    return moved

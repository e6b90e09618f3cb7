"""One loader for the files that people have. What it cannot use of a file it says: rows, columns, and what it had to assume.

A file's form is told from the filled columns of its first rows (`forms.yaml`); a folder is a run or a finished stage of demur, or a data set
folder with tables in it. Prompts that a file has put into shared wrappers get their question back (`wrappers`), so that
one question in twenty jailbreak templates is one cluster, and two questions in one template are not alike.
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
from demur.prompts.columns import TABLE, OddRow, filling, keyed, slots, text
from demur.prompts.rows import ASSUMED, UNUSED, Cells, File, LeftOut, Preference, filled, misfit, read
from demur.prompts.wrappers import unwrap
from demur.records import Example, Intent, Origin, Prompt, Record, Trace
from demur.storage import readers
from demur.storage.artifacts import Artifact, artifacts, is_published

MATHS = re.compile(r"(?=.*[\d\\=^<>])\S+(\s+\S+){0,7}|.*####\s*\S+|\{.*\"tests\".*\}", re.DOTALL)
"""What answers to maths problems look like, or the tests of a program."""
LOOKED_AT = 20  # Rows from which a form is told
OWN: dict[str, tuple[set[str], type[Prompt | Trace | Example]]] = {
    "published": ({"parts", "prompt_id", "share"}, Example),
    "examples": ({"parts", "origin"}, Example),
    "traces": ({"prompt", "raw", "sent", "outcome"}, Trace),
    "prompts": ({"text", "intent"}, Prompt),
}
"""demur's own forms, by the columns that they all have."""
FORMS = (*OWN, *TABLE["forms"])
WRAPPED = ("pairs", "reasoning", "table")  # Forms whose prompts may be questions in shared wrappers


class Odd(Record, frozen=True, kw_only=True):
    """A row, or a part of one, that was kept aside: where it stands, why, and the row itself where it could be read."""

    where: str
    reason: str
    row: dict[str, Any] | None = None


class Loaded(NamedTuple):
    """What a file or folder held. Prompts are those of its traces too, each once, in the file's order."""

    form: str
    prompts: list[Prompt]
    traces: list[Trace]
    examples: list[Example]
    pairs: list[Preference]
    odd: list[Odd]
    notes: list[str]  # What of the file was not used, and what was assumed


def load_file(path: Path, *, form: str | None = None, intent: Intent | None = None, glance: bool = False) -> Loaded:
    """Read a file, a finished stage, a run with one stage that fits, or a folder of tables of one form.

    `form`, one of `FORMS`, and `intent`, what all prompts of the file want, are told from the rows when left out; a `glance` reads no more
    than tells the form.

    Raises UserError: nothing there, no form fits (with the columns), no row could be read (with the first reason), two records
    of one id, or a run in which several stages fit.
    """
    if form is not None and form not in FORMS:
        raise unknown("form", form, FORMS)
    parts = [_load(file, form, intent, glance=glance) for file in (_files(path, form) if path.is_dir() else [path])]
    if len({part.form for part in parts}) != 1:
        forms = ", ".join(sorted({part.form for part in parts}))
        raise UserError(f"{path} holds files of several forms ({forms}). Give one file.")
    merged = [[item for part in parts for item in part[i]] for i in range(1, len(parts[0]))]
    return Loaded(parts[0].form, *merged)  # type: ignore[arg-type]


def certain(notes: Iterable[str]) -> None:
    """See that a file says what its prompts want, where replies are counted by it. Raises UserError: it was assumed."""
    for said, _, assumed in (note.partition(f"; {ASSUMED.partition('; ')[2]}") for note in notes if ASSUMED in note):
        raise UserError(
            f"{said}{''.join(assumed.partition(' (')[1:])}, and that decides how replies are counted. Say it of all by --intent harmful "
            "(or benign …; in a study intent: harmful), or of each in a column intent."
        )


def _files(folder: Path, form: str | None) -> Iterator[Path]:
    """The tables of a folder: of a stage or of a run's one stage that has some, or of a data set's folder."""
    wanted = [form] if form in OWN else ["examples", "traces", "prompts"]
    stages = [Artifact(folder)] if is_published(folder) else artifacts(folder)
    for name in wanted:
        holding = [stage for stage in stages if stage.rows(name)]
        # What a run made counts before what it read in.
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
    found = sorted(path for path in within if not path.name.startswith("."))
    # A data set may have the same rows in several formats.
    chosen = next((end for end in readers.READERS if any(readers.ending(path) == end for path in found)), None)
    if chosen is None:
        allowed = ", ".join(readers.READERS)
        raise UserError(f"{folder} is no run, no finished stage, and holds no file ending in {allowed}.")
    yield from (path for path in found if readers.ending(path) == chosen)


def _load(path: Path, form: str | None, wish: Intent | None, *, glance: bool) -> Loaded:
    odd: list[Odd] = []
    stream = readers.rows(path, bad=lambda line, reason: odd.append(Odd(where=f"{path}:{line}", reason=reason)))
    first = list(islice(stream, LOOKED_AT))
    if not first:
        more = f" ({len(odd):,} rows could not be read)" if len(odd) > 1 else ""
        raise UserError(f"{odd[0].where}: {odd[0].reason}{more}" if odd else f"{path}: it has no rows.")
    file = _recognised(path, [row for _, row in first], form, wish)
    if glance:
        return Loaded(file.form, [], [], [], [], [], [])
    made: list[tuple[int, Any]] = []
    notes: Counter[str] = Counter()
    count = 0
    for number, row in chain(first, stream):
        count += 1
        try:
            for thing in (_own(row, file.form),) if file.form in OWN else read(row, file, notes):
                if isinstance(thing, LeftOut):
                    odd.append(Odd(where=f"{path}:{number}", reason=thing.reason, row=row))
                else:
                    made.append((number, thing))
        except (OddRow, msgspec.ValidationError, RecursionError) as error:
            odd.append(Odd(where=f"{path}:{number}", reason=f"{error}", row=row))
    if not made and odd:
        raise UserError(f"{path}: no row could be read as '{file.form}'. The first: {odd[0].where}: {odd[0].reason}")
    told = {note: "" if n == count else f" ({n:,} of {count:,} rows)" for note, n in notes.items()}
    unused = sorted(note.removeprefix(UNUSED) for note in told if UNUSED in note)
    said = [note + rows for note, rows in told.items() if UNUSED not in note]
    said += [UNUSED + ", ".join(unused)] * bool(unused)
    return _sorted_out(path, file, made, odd, [f"{path.name}: {note}" for note in said])


def _own(row: dict[str, Any], form: str) -> Prompt | Trace | Example:
    """A record of demur's own, or a training row as `publish` writes it."""
    if form == "published":
        origin = {name: row[name] for name in Origin.__struct_fields__ if row[name]} | {"prompt": row["prompt_id"]}
        origin["repairs"] = row["repairs"].split("; ") if row["repairs"] else []
        row = {name: row[name] for name in ("id", "parts", "share", "cluster")} | {"origin": origin}
    return msgspec.convert(row, OWN[form][1])


def _recognised(path: Path, rows: list[dict[str, Any]], form: str | None, wish: Intent | None) -> File:
    """The form that most of the first rows have, and whether their answers are those of maths problems."""
    own = next((name for name, (columns, _) in OWN.items() if all(columns <= set(row) for row in rows)), form)
    if own in OWN:
        return File(path.name, own, wish, maths=False, named=form is not None)
    try:
        rows = [keyed(row) for row in rows]
    except OddRow as error:
        raise UserError(f"{path}: {error}.") from None
    shapes = [filling(row) for row in rows]
    found = [slots(shape) for shape in shapes]
    names = [cells.get("answer", cells.get("gold", [])) for cells in found]
    answers = [text(row[name[0]]) for row, name in zip(rows, names, strict=True) if name]
    alike = [bool(MATHS.fullmatch(answer)) for answer in answers if answer]
    share = sum(alike) / len(alike) if alike else 1.0
    forms = {maths: [_form_of(filled(shape, maths=maths)) for shape in shapes] for maths in (True, False)}
    if form is None and 0.2 < share < 0.8 and forms[True] != forms[False]:
        how = "Name the form: maths, where they are the right answers, or pairs, where they are the replies"
        raise UserError(f"{path}: its answers are those of maths problems in some rows and texts in others. {how}.")
    maths = share >= 0.5 if form is None else form != "pairs"
    told = form or Counter(forms[maths]).most_common(1)[0][0]
    if not told:
        columns = [f"{name} ({slot})" if slot else name for slot, names in found[0].items() for name in names]
        raise UserError(
            f"{path}: no form has a use for all of its columns: {', '.join(columns or rows[0])}. A prompt is looked for under "
            f"{', '.join(TABLE['columns']['prompt'])}. Rename or remove a column, or name the form: {', '.join(FORMS)}."
        )
    return File(path.name, told, wish, maths, named=form is not None)


def _form_of(cells: Cells) -> str:
    return next((form for form in TABLE["forms"] if misfit(cells, form) == ([], [])), "")


def _sorted_out(path: Path, file: File, made: list[tuple[int, Any]], odd: list[Odd], notes: list[str]) -> Loaded:
    """Prompts, traces, examples and pairs apart, with the questions found inside shared wrappers, and no id twice."""
    sorts: dict[type, list[tuple[int, Any]]] = {kind: [] for kind in (Prompt, Trace, Example, Preference)}
    for item in made:
        sorts[type(item[1])].append(item)
    prompts, rows = _once(path, file, sorts[Prompt], odd), sorts[Trace]
    if file.form in WRAPPED and (moved := _unwrapped(prompts)):
        prompts = [moved.get(prompt.id, prompt) for prompt in prompts]
        rows = [(at, replace(t, prompt=moved[t.prompt.id], id="") if t.prompt.id in moved else t) for at, t in rows]
    traces, examples = _once(path, file, rows, odd), _once(path, file, sorts[Example], odd)
    every = {prompt.id: prompt for prompt in (*prompts, *(trace.prompt for trace in traces))}
    pairs = [pair for _, pair in sorts[Preference]]
    return Loaded(file.form, list(every.values()), traces, examples, pairs, odd, notes)


def _once(path: Path, file: File, things: list[tuple[int, Any]], odd: list[Odd]) -> list[Any]:
    """Records, none of an id that another has. Rows with one prompt and one reply are samples of it, and all count."""
    seen: dict[str, tuple[int, Any]] = {}
    kept = []
    for item in things:
        number, thing = item
        while thing.id in seen and isinstance(thing, Trace) and file.form not in OWN:
            thing = replace(thing, sample=thing.sample + 1, id="")
            item = number, thing
        before = seen.setdefault(thing.id, item)
        if before is item:
            kept.append(thing)
            continue
        if getattr(before[1], "parts", before[1]) != getattr(thing, "parts", thing) and file.form in OWN:
            kind = type(thing).__name__.lower()
            raise UserError(
                f"{path}:{number}: another {kind} of the id {thing.id} stands in {path}:{before[0]}. Without ids, they are made anew."
            )
        if isinstance(thing, Example):
            kept.append(thing)
        elif isinstance(thing, Trace):
            odd.append(Odd(where=f"{path}:{number}", reason=f"the same trace stands in {path}:{before[0]}"))
    return kept


def _unwrapped(prompts: list[Prompt]) -> dict[str, Prompt]:
    """Those prompts that stand in a shared wrapper, by their ids, with their question as parent."""
    found, moved = unwrap(prompt.text for prompt in prompts), dict[str, Prompt]()
    for prompt in (prompt for prompt in prompts if prompt.text in found):
        question, template = found[prompt.text]
        parent = Prompt(text=question, intent=prompt.intent).id
        changes = {"attack": f"template:{template}", "parent": parent, "cluster": parent, "question": question}
        moved[prompt.id] = replace(prompt, id="", **changes)
    return moved

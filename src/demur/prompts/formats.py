"""One loader that recognises what people have, and says of every row that it cannot use where it stands and why.

A file's form is told from the keys of its first rows; a folder is a run or a finished stage of demur, or a data set
folder with tables in it. Prompts that a file has put into shared wrappers get their question back (`wrappers`), so that
one question in twenty jailbreak templates is one cluster, and two questions in one template are not alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from demur.errors import UserError, unknown
from demur.prompts import convert
from demur.prompts.convert import PROMPT_KEYS, RESPONSE_KEYS, File, LeftOut, OddRow
from demur.prompts.wrappers import unwrap
from demur.records import Example, Intent, Origin, Prompt, Record, Trace
from demur.storage import readers as tables
from demur.storage.artifacts import Artifact, artifacts, is_published

LOOKED_AT = 20
"""RecordFile from which a form is told."""


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
    odd: list[Odd]


class Form(NamedTuple):
    """How a form is recognised, by the keys of a row, and read."""

    keys: Callable[[set[str]], bool]
    read: Callable[[dict[str, Any], File], Iterable[Prompt | Trace | Example | LeftOut]]
    wrapped: bool = False
    """Whether its prompts may be questions in shared wrappers."""


def _own(kind: type[Prompt] | type[Trace] | type[Example]) -> Callable[[dict[str, Any], File], Iterator[Any]]:
    def read(row: dict[str, Any], _: File) -> Iterator[Any]:
        yield msgspec.convert(row, kind)

    return read


def _has(*keys: str) -> Callable[[set[str]], bool]:
    return lambda found: set(keys) <= found


def _any(*keys: str) -> Callable[[set[str]], bool]:
    return lambda found: bool(set(keys) & found)


def _published(row: dict[str, Any], _: File) -> Iterator[Example]:
    """A row of `publish.flat`."""
    known = {key: row[key] for key in ("id", "parts", "share", "cluster")}
    origin = {key: row[key] for key in Origin.__struct_fields__ if row[key]} | {"prompt": row["prompt_id"]}
    origin["repairs"] = row["repairs"].split("; ") if row["repairs"] else []
    yield msgspec.convert(known | {"origin": origin}, Example)


FORMS: dict[str, Form] = {
    "published": Form(_has("parts", "prompt_id", "share"), _published),
    "examples": Form(_has("parts", "origin"), _own(Example)),
    "traces": Form(_has("prompt", "raw", "sent", "outcome"), _own(Trace)),
    "prompts": Form(_has("text", "intent"), _own(Prompt)),
    "pap": Form(_has("query", "final_query"), convert.rewrites),
    "openr1": Form(_has("problem", "generations"), convert.openr1),
    "openthoughts": Form(_has("problem", "deepseek_reasoning"), convert.openthoughts),
    "s1k": Form(lambda k: "question" in k and bool({"thinking_trajectories", "deepseek_attempt"} & k), convert.s1k),
    "messages": Form(_any("messages", "conversations"), convert.messages),
    "maths": Form(
        lambda k: {"problem", "answer"} <= k or ({"question", "answer"} <= k and "response" not in k), convert.maths
    ),
    "star1": Form(_has("question", "response"), convert.pairs, wrapped=True),
    "paper": Form(_has("prompt", "response", "data_type"), convert.pairs, wrapped=True),
    "pairs": Form(lambda k: bool(set(PROMPT_KEYS) & k) and bool(set(RESPONSE_KEYS) & k), convert.pairs, wrapped=True),
    "table": Form(_any(*PROMPT_KEYS), convert.table, wrapped=True),
}
"""Every form, the particular before the general."""
OWN = ("examples", "traces", "prompts")
TABLES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")


def load_file(path: Path, *, form: str | None = None, intent: Intent | None = None) -> Loaded:
    """Read a file, a finished stage, a run with one stage that fits, or a folder of tables of one form.

    Args:
        path: file or folder.
        form: a key of `FORMS`; told from the rows when left out.
        intent: what all prompts of the file want, over what its rows say.

    Raises:
        UserError: nothing there, no form fits (with the keys that were found), or a run in which several stages fit.
    """
    if form is not None and form not in FORMS:
        raise unknown("form", form, FORMS)
    if path.is_dir():
        files = list(_files(path, form))
        parts = [_load(file, form, intent) for file in files]
        forms = {part.form for part in parts}
        if len(forms) != 1:
            raise UserError(f"{path} holds files of several forms ({', '.join(sorted(forms))}). Give one file.")
        merged = [[item for part in parts for item in part[i]] for i in range(1, 5)]
        return Loaded(parts[0].form, *merged)  # type: ignore[arg-type]
    return _load(path, form, intent)


def _files(folder: Path, form: str | None) -> Iterator[Path]:
    """The tables of a folder: of a stage or of a run's one stage that has some, or of a data set's folder."""
    wanted = [form] if form in OWN else list(OWN)
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
    found = sorted(path for path in within if path.suffix in TABLES and not path.name.startswith("."))
    # A published data set has the same rows in two formats.
    suffixes = {path.suffix for path in found}
    chosen = next((suffix for suffix in TABLES if suffix in suffixes), None)
    if chosen is None:
        raise UserError(f"{folder} is no run, no finished stage, and holds no file ending in {', '.join(TABLES)}.")
    yield from (path for path in found if path.suffix == chosen)


def unambiguous(stages: Sequence[Artifact]) -> list[Artifact]:
    """The stages, if no two have one name: a folder keeps what earlier settings made, and which is meant is not ours to say.

    Raises:
        UserError: two of one name, with their folders.
    """
    names = Counter(stage.manifest.name for stage in stages)
    twice = [stage for stage in stages if names[stage.manifest.name] > 1]
    if twice:
        listed = "\n".join(f"  {stage.folder}" for stage in twice)
        raise UserError(
            f"several stages have one name, from different settings. Give one, or delete the others:\n{listed}"
        )
    return list(stages)


def _load(path: Path, form: str | None, intent: Intent | None) -> Loaded:
    odd: list[Odd] = []
    stream = tables.rows(path, bad=lambda line, reason: odd.append(Odd(where=f"{path}:{line}", reason=reason)))
    first = list(islice(stream, LOOKED_AT))
    name = form or _recognise(path, [row for _, row in first])
    file = File(path.name, intent)
    made: list[Prompt | Trace | Example] = []
    for number, row in (*first, *stream):
        where = f"{path}:{number}"
        try:
            for thing in FORMS[name].read(row, file):
                if isinstance(thing, LeftOut):
                    odd.append(Odd(where=where, reason=thing.reason, row=row))
                else:
                    made.append(thing)
        except (OddRow, msgspec.ValidationError) as error:
            odd.append(Odd(where=where, reason=f"{error}", row=row))
    if not made and odd:
        raise UserError(f"{path}: no row could be read as '{name}'. The first: {odd[0].where}: {odd[0].reason}")
    return _sorted_out(name, made, odd)


def _recognise(path: Path, rows: list[dict[str, Any]]) -> str:
    """The form that most of the rows have."""
    votes = Counter(next((n for n, form in FORMS.items() if form.keys(set(row))), "") for row in rows)
    votes.pop("", None)
    if not votes:
        keys = sorted(set(rows[0])) if rows else []
        said = f"keys of its first row: {', '.join(keys)}" if keys else "it has no rows"
        raise UserError(
            f"{path}: no form fits ({said}). A prompt is looked for under {', '.join(PROMPT_KEYS)}; "
            f"forms: {', '.join(FORMS)}. Rename a column, or name the form."
        )
    return votes.most_common(1)[0][0]


def _sorted_out(name: str, made: list[Prompt | Trace | Example], odd: list[Odd]) -> Loaded:
    """Prompts, traces and examples apart, with the questions found inside shared wrappers."""
    prompts = [thing for thing in made if isinstance(thing, Prompt)]
    traces = [thing for thing in made if isinstance(thing, Trace)]
    examples = [thing for thing in made if isinstance(thing, Example)]
    if FORMS[name].wrapped:
        found = {old.id: new for old, new in zip(prompts, _questions(prompts), strict=True)}
        prompts = [found[prompt.id] for prompt in prompts]
        traces = [msgspec.structs.replace(t, prompt=found[t.prompt.id], id="") for t in traces]
    once = {prompt.id: prompt for prompt in (*prompts, *(trace.prompt for trace in traces))}
    return Loaded(name, list(once.values()), traces, examples, odd)


def _questions(prompts: list[Prompt]) -> Iterator[Prompt]:
    """The prompts, those in a shared wrapper with their question as parent."""
    found = unwrap([prompt.text for prompt in prompts])
    for prompt, (question, template) in zip(prompts, found, strict=True):
        if not template:
            yield prompt
            continue
        parent = Prompt(text=question, intent=prompt.intent)
        changes = {"attack": f"template:{template}", "parent": parent.id, "cluster": parent.id, "question": question}
        yield msgspec.structs.replace(prompt, id="", **changes)

"""Publishes a run's training rows as a data set with a card.

OUT/README.md                  the card, with the metadata that the hub and `datasets` read
OUT/data/CONFIG/SPLIT.jsonl    flat rows, which demur can read back
OUT/contamination.json         the certificates of exactly these rows, where the run has some
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

import demur
from demur import thinking
from demur.errors import UserError
from demur.records import Example, digest, encode, read_jsonl, write_jsonl
from demur.registry import missing
from demur.storage.artifacts import Artifact, artifacts, is_published

CERTIFICATE = "contamination.json"


def export_hf(source: Path, out: Path | None = None, *, licences: Mapping[str, str] | None = None) -> Path:
    """Write the training rows of a run as a data set that `datasets.load_dataset` reads, and return its folder.

    `source` is a run (one configuration a mixture), a finished stage, or a JSON Lines file of examples; `out` is
    `export-hf` in the run or beside the file by default. `licences` are by file or source, for components without.

    Raises UserError: there are no examples, or `out` holds something else.
    """
    sets, stated = _sets(source)
    run = source.parent if source.is_file() else source.parent.parent if is_published(source) else source
    folder = out or run / "export-hf"
    if folder.exists() and any(folder.iterdir()) and not (folder / "README.md").exists():
        raise UserError(f"{folder} holds something else; give another --out.")
    shutil.rmtree(folder / "data", ignore_errors=True)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (config, split), examples in sets.items():
        rows[config, split] = [_licensed(flat(example), stated, licences or {}) for example in examples]
        (folder / "data" / config).mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / "data" / config / f"{split}.jsonl", rows[config, split])
    certificates = _certificates(run / CERTIFICATE, sets)
    (folder / CERTIFICATE).unlink(missing_ok=True)
    if certificates:
        (folder / CERTIFICATE).write_bytes(encode({"certificates": certificates}))
    text = _card(run.resolve().name, rows, certificates)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


Sets = dict[tuple[str, str], list[Example]]


def _sets(source: Path) -> tuple[Sets, dict[str, str]]:
    """The rows of a source by configuration and split, and the licences that components of mixtures state."""
    stages = [Artifact(source)] if is_published(source) else artifacts(source)
    file = source if source.is_file() else source / "examples.jsonl"
    if not stages and file.is_file():
        return {("default", "train"): list(read_jsonl(file, Example))}, {}
    holding = [stage for stage in stages if stage.rows("examples")]
    mixes = [stage for stage in holding if stage.manifest.kind != "import"] or holding
    if not mixes:
        raise UserError(f"{source}: no stage holds examples. `demur mix` or a study with trained arms makes them.")
    sets: Sets = {}
    stated: dict[str, str] = {}
    for stage in mixes:
        config = stage.manifest.name.removeprefix("mix-") if len(mixes) > 1 else "default"
        for split, name in (("train", "examples"), ("held_out", "held_out")):
            if stage.rows(name):
                sets[config, split] = list(stage.read(name, Example))
        shares = stage.manifest.settings.get("mix", {}).get("shares", {})
        stated |= {name: options["licence"] for name, options in shares.items() if options.get("licence")}
    return sets, stated


def _certificates(path: Path, sets: Sets) -> dict[str, Any]:
    """The run's certificates by configuration, of exactly the rows that are published."""
    known = json.loads(path.read_bytes())["certificates"].values() if path.is_file() else ()
    by_hash = {rows: each for each in known for rows in (each["rows_hash"], each.get("left_hash")) if rows}
    hashes = {config: digest(sorted(e.id for e in rows)) for (config, split), rows in sets.items() if split == "train"}
    return {config: by_hash[rows] for config, rows in hashes.items() if rows in by_hash}


def flat(example: Example) -> dict[str, Any]:
    """A row for a table: the same columns in every row, texts wherever possible."""
    roles = ("system", "user", "thinking", "answer")
    system, user, thought, answer = ("".join(p.text for p in example.parts if p.role == role) for role in roles)
    reply = thinking.join(thought if any(p.role == "thinking" for p in example.parts) else None, answer)
    turns = {"system": system, "user": user, "assistant": reply}
    return msgspec.structs.asdict(example.origin) | {
        "id": example.id,
        "messages": [{"role": role, "content": text} for role, text in turns.items() if text],
        "parts": [{"role": p.role, "text": p.text, "train": p.train} for p in example.parts],
        "prompt": user,
        "prompt_id": example.origin.prompt,
        "share": example.share,
        "cluster": example.cluster,
        "intent": example.origin.intent or "",
        "repairs": "; ".join(example.origin.repairs),
    }


def _licensed(row: dict[str, Any], stated: Mapping[str, str], known: Mapping[str, str]) -> dict[str, Any]:
    """A row with the file or set that it is from, and the licence that its component states, or that of file or set."""
    name = row["model"].removeprefix("file:") if row["model"].startswith("file:") else row["source"] or "not stated"
    return row | {"file": name, "licence": stated.get(row["share"]) or known.get(name, "not stated")}


def harmful(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether flat rows hold harmful requests, by their intent; a row of a safety component without intent counts."""
    return any(row["intent"] == "harmful" or (not row["intent"] and row["share"].startswith("safety")) for row in rows)


def _card(name: str, sets: Mapping[tuple[str, str], Any], certificates: Mapping[str, Any]) -> str:
    """The whole README.md, metadata on top."""
    try:
        from huggingface_hub import DatasetCard, DatasetCardData
    except ModuleNotFoundError as error:
        raise missing(error, "export to hf") from error
    rows = [row for part in sets.values() for row in part]
    licence, *others = {row["licence"] for row in rows}
    files: dict[str, list[dict[str, str]]] = {}
    for config, split in sets:
        files.setdefault(config, []).append({"split": split, "path": f"data/{config}/{split}.jsonl"})
    head = DatasetCardData(
        pretty_name=name,
        license="other" if others or licence == "not stated" else licence.lower(),
        language="en",
        task_categories=["text-generation"],
        configs=[{"config_name": config, "data_files": data} for config, data in files.items()],
        tags=["safety", "reasoning", "refusal", "demur", *(["not-for-all-audiences"] if harmful(rows) else [])],
    )
    values: dict[str, Any] = {"name": name, "version": demur.__version__, "rows": rows, "sets": sets}
    values |= {"configs": list(files), "certificates": certificates, "harmful": harmful(rows)}
    card = DatasetCard.from_template(head, template_path=str(Path(__file__).with_name("card.md")), **values)
    return str(card.content)

"""A run's training rows as a data set that others can read, with a card.

OUT/README.md                  the card, with the metadata that the hub and `datasets` read
OUT/data/CONFIG/SPLIT.jsonl    flat rows, which demur reads back as they were
OUT/contamination.json         the certificate, when the run has one
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

import demur
from demur import thinking
from demur.errors import UserError
from demur.prompts.formats import unambiguous
from demur.records import Example, digest, encode, read_jsonl, write_jsonl
from demur.registry import missing
from demur.storage.artifacts import Artifact, artifacts, is_published

CERTIFICATE = "contamination.json"
NOTICE = (
    "This data set holds requests for harmful things, published so that models learn to decline them. The replies were "
    "filtered, not checked by hand one by one; a reasoning text may name what it declines. Use it to make models safer or to study "
    "that; do not train a model to comply with these prompts, and do not show them to people unprepared."
)


class Split(NamedTuple):
    """One split of one configuration."""

    config: str
    split: str
    examples: Sequence[Example]


def export_hf(source: Path, out: Path | None = None, *, licences: Mapping[str, str] | None = None) -> Path:
    """Write the training rows of a run as a data set that `datasets.load_dataset` reads, and return its folder.

    Args:
        source: a run (each of its mixtures becomes a configuration), a finished stage, or a JSON Lines file of examples.
        out: where to; `export-hf` in the run, or beside the file, when left out.
        licences: of files and sources, by name; a component of the mixture may state its own.

    Raises:
        UserError: there are no examples, or `out` holds something else.
    """
    splits, settings = _splits(source)
    run = source.parent if source.is_file() else source.parent.parent if is_published(source) else source
    folder = out or run / "export-hf"
    if folder.exists() and any(folder.iterdir()) and not (folder / "README.md").exists():
        raise UserError(f"{folder} holds something else; give another --out.")
    shutil.rmtree(folder / "data", ignore_errors=True)
    for config, split, examples in splits:
        (folder / "data" / config).mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / "data" / config / f"{split}.jsonl", map(flat, examples))
    certificates = _certificates(run / CERTIFICATE, splits)
    (folder / CERTIFICATE).unlink(missing_ok=True)
    if any(certificates.values()):
        (folder / CERTIFICATE).write_bytes(encode({"certificates": {k: c for k, c in certificates.items() if c}}))
    text = _card(run.resolve().name, splits, settings, certificates, licences or {})
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def _splits(source: Path) -> tuple[list[Split], dict[str, Any]]:
    """The rows of a source by configuration and split, and the settings that made them."""
    stages = [Artifact(source)] if is_published(source) else artifacts(source)
    file = source if source.is_file() else source / "examples.jsonl"
    if not stages and file.is_file():
        return [Split("default", "train", list(read_jsonl(file, Example)))], {}
    holding = [stage for stage in stages if stage.rows("examples")]
    mixes = [stage for stage in holding if stage.manifest.kind != "import"] or holding
    if not mixes:
        raise UserError(f"{source}: no stage holds examples. `demur mix` or a study with trained arms makes them.")
    splits, settings = [], {}
    for stage in unambiguous(mixes):
        config = stage.manifest.name.removeprefix("mix-") if len(mixes) > 1 else "default"
        files = {"train": "examples", "held_out": "held_out"}
        splits += [Split(config, s, list(stage.read(f, Example))) for s, f in files.items() if stage.rows(f)]
        settings[config] = stage.manifest.settings.get("mix", stage.manifest.settings)
    return splits, settings


def _certificates(path: Path, splits: Sequence[Split]) -> dict[str, Any]:
    """The run's certificate of each configuration, of exactly the rows published here: another would vouch for nothing."""
    known = json.loads(path.read_bytes())["certificates"].values() if path.is_file() else ()
    by_hash = {rows: one for one in known for rows in (one["rows_hash"], one.get("left_hash")) if rows}
    hashes = {split.config: digest(sorted(e.id for e in split.examples)) for split in splits if split.split == "train"}
    return {config: by_hash.get(rows) for config, rows in hashes.items()}


def flat(example: Example) -> dict[str, Any]:
    """A row as a table has it: every column in every row, texts where nothing else is needed."""
    kinds = ("system", "user", "thinking", "answer")
    system, user, thought, answer = ("".join(p.text for p in example.parts if p.role == kind) for kind in kinds)
    reply = thinking.join(thought if any(p.role == "thinking" for p in example.parts) else None, answer)
    turns = {"system": system, "user": user, "assistant": reply}
    origin = msgspec.structs.asdict(example.origin)
    return origin | {
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


def harmful(examples: Iterable[Example]) -> bool:
    """Whether rows hold harmful requests, as far as they say; one that does not say, in a safety component, counts."""
    kinds = {(example.origin.intent, example.share) for example in examples}
    return any(intent == "harmful" or (intent is None and share.startswith("safety")) for intent, share in kinds)


def _card(
    name: str, splits: Sequence[Split], settings: Mapping[str, Any], certificates: Any, licences: Mapping[str, str]
) -> str:
    """The whole README.md, metadata on top."""
    try:
        from huggingface_hub import DatasetCard, DatasetCardData
    except ModuleNotFoundError as error:
        raise missing(error, "export to hf") from error
    examples = [example for split in splits for example in split.examples]
    notice = NOTICE if harmful(examples) else None
    sources = Counter(_source(example, settings, licences) for example in examples)
    one, *others = {licence for _, licence in sources}
    configs: dict[str, list[dict[str, str]]] = {}
    for config, split, _ in splits:
        configs.setdefault(config, []).append({"split": split, "path": f"data/{config}/{split}.jsonl"})
    head = DatasetCardData(
        pretty_name=name,
        license="other" if others or one == "not stated" else one.lower(),
        language="en",
        task_categories=["text-generation"],
        configs=[{"config_name": config, "data_files": files} for config, files in configs.items()],
        tags=["safety", "reasoning", "refusal", "demur", *(["not-for-all-audiences"] if notice else [])],
        extra_gated_prompt=notice,
    )
    views = {"share": [e.share for e in examples]} | {
        key: [getattr(e.origin, key) or "not stated" for e in examples] for key in ("intent", "strategy", "model")
    }
    made = DatasetCard.from_template(
        head,
        template_path=str(Path(__file__).with_name("card.md")),
        name=name,
        version=demur.__version__,
        notice=notice,
        rows=[(config, split, len(rows)) for config, split, rows in splits],
        views={key: Counter(values).most_common() for key, values in views.items()},
        sources=[(*source, count) for source, count in sources.most_common()],
        certificates=certificates,
        settings=yaml.safe_dump(_plain(settings), sort_keys=False) if settings else "",
    )
    return str(made.content)


def _source(example: Example, settings: Mapping[str, Any], licences: Mapping[str, str]) -> tuple[str, str]:
    """The file or set that a row is from, and its licence: what its component of the mixture states, or that of the name."""
    origin = example.origin
    name = origin.model.removeprefix("file:") if origin.model.startswith("file:") else origin.source or "not stated"
    stated = (made.get("shares", {}).get(example.share, {}).get("licence") for made in settings.values())
    return name, next(filter(None, stated), "") or licences.get(name, "not stated")


def _plain(settings: Any) -> Any:
    """Settings without what was not set, and without anybody's folders."""
    if not isinstance(settings, Mapping):
        return settings
    kept = {key: value for key, value in settings.items() if value not in (None, "")}
    return {key: value.rsplit("/", 1)[-1] if key == "file" else _plain(value) for key, value in kept.items()}

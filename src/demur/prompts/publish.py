"""A run's training rows as a data set for others, and its upload.

    OUT/README.md                    the card, with the metadata that the hub and `datasets` read
    OUT/data/CONFIG/SPLIT.parquet    flat rows
    OUT/data/CONFIG/SPLIT.jsonl      the same rows as demur's records
    OUT/contamination.json           the certificate, when the run has one

Uploading is a dry run unless told otherwise, starts private, and closes the gate before the first harmful row is there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from demur import thinking
from demur.errors import UserError, WorkError
from demur.prompts.card import Split, card
from demur.prompts.formats import unambiguous
from demur.records import Example, digest, encode, read_jsonl, write_jsonl
from demur.registry import missing
from demur.storage.artifacts import Artifact, artifacts, is_published

CERTIFICATE = "contamination.json"
DATA_FILES = ("README.md", "LICENSE*", "data/**", CERTIFICATE)
MODEL_FILES = (
    "README.md", "LICENSE*", "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
    "adapter_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
    "chat_template*",
)  # fmt: skip
"""What of a folder is uploaded: never journals, optimizer states, logs or dot files."""
Gate = Literal["auto", "manual", "none"]


def export_hf(source: Path, out: Path | None = None) -> Path:
    """Write the training rows of a run as a data set that `datasets.load_dataset` reads; gives its folder.

    Args:
        source: a run (each of its mixes becomes a configuration), a finished stage, or a JSON Lines file of examples.
        out: where to; `SOURCE/export-hf`, or beside a file or stage, when left out.

    Raises:
        UserError: there are no examples, or `out` holds something else.
    """
    splits, settings = _splits(source)
    run = source.parent if source.is_file() else source
    if source.is_dir() and is_published(source):
        run = source.parent.parent
    folder = out or run / "export-hf"
    if folder.exists() and any(folder.iterdir()) and not (folder / "README.md").exists():
        raise UserError(f"{folder} holds something else; give another --out.")
    shutil.rmtree(folder / "data", ignore_errors=True)
    for split in splits:
        place = folder / "data" / split.config
        place.mkdir(parents=True, exist_ok=True)
        _parquet(place / f"{split.split}.parquet", split.examples)
        write_jsonl(place / f"{split.split}.jsonl", split.examples)
    certificates = _certificates(run / CERTIFICATE, splits)
    (folder / CERTIFICATE).unlink(missing_ok=True)
    if certificates:
        (folder / CERTIFICATE).write_bytes(encode({"certificates": certificates}))
    name = run.resolve().name
    (folder / "README.md").write_text(
        card(name, splits, settings=settings, certificates=certificates), encoding="utf-8"
    )
    return folder


def _splits(source: Path) -> tuple[list[Split], dict[str, Any]]:
    """The rows of a source by configuration and split, and the settings that made them."""
    if source.is_file():
        examples = list(read_jsonl(source, Example))
        if not examples:
            raise UserError(f"{source}: no examples.")
        return [Split("default", "train", examples)], {}
    if not source.is_dir():
        raise UserError(f"{source}: no such run, stage or file.")
    stages = [Artifact(source)] if is_published(source) else artifacts(source)
    holding = [stage for stage in stages if stage.rows("examples")]
    mixes = [stage for stage in holding if stage.manifest.kind != "import"] or holding
    if not mixes:
        plain = source / "examples.jsonl"
        if plain.is_file() and not stages:
            return _splits(plain)
        raise UserError(f"{source}: no stage holds examples. `demur mix` or a study with trained arms makes them.")
    splits, settings = [], {}
    for stage in unambiguous(mixes):
        config = stage.manifest.name.removeprefix("mix-") if len(mixes) > 1 else "default"
        splits.append(Split(config, "train", list(stage.read("examples", Example))))
        if stage.rows("held_out"):
            splits.append(Split(config, "held_out", list(stage.read("held_out", Example))))
        settings[config] = stage.manifest.settings.get("mix", stage.manifest.settings)
    return splits, settings


def _certificates(path: Path, splits: Sequence[Split]) -> dict[str, dict[str, Any]]:
    """The run's certificates by configuration, of the rows that are published here: others would vouch for nothing."""
    if not path.is_file():
        return {}
    known = json.loads(path.read_bytes())["certificates"].values()
    by_hash = {mark: one for one in known for mark in (one["rows_hash"], one.get("left_hash")) if mark}
    marks = {split.config: digest(sorted(e.id for e in split.examples)) for split in splits if split.split == "train"}
    return {config: by_hash[mark] for config, mark in marks.items() if mark in by_hash}


def flat(example: Example) -> dict[str, Any]:
    """A row as a table has it."""
    texts = {
        role: "".join(p.text for p in example.parts if p.role == role)
        for role in ("system", "user", "thinking", "answer")
    }
    thought = texts["thinking"] if any(part.role == "thinking" for part in example.parts) else None
    turns = [
        ("system", texts["system"]),
        ("user", texts["user"]),
        ("assistant", thinking.join(thought, texts["answer"])),
    ]
    origin = example.origin
    return {
        "id": example.id,
        "messages": [{"role": role, "content": text} for role, text in turns if text],
        "prompt": texts["user"],
        "thinking": thought,
        "answer": texts["answer"],
        "parts": [{"role": p.role, "text": p.text, "train": p.train} for p in example.parts],
        "share": example.share,
        "intent": origin.intent,
        "question": origin.question or texts["user"],
        "category": origin.category,
        "source": origin.source,
        "attack": origin.attack,
        "strategy": origin.strategy,
        "model": origin.model,
        "repairs": list(origin.repairs),
        "cluster": example.cluster,
        "prompt_id": origin.prompt,
        "trace_id": origin.trace,
    }


def _parquet(path: Path, examples: Iterable[Example]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise missing(error, "export to hf") from error
    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    turn = pyarrow.struct([("role", text), ("content", text)])
    piece = pyarrow.struct([("role", text), ("text", text), ("train", pyarrow.bool_())])
    rows = [flat(example) for example in examples]
    special = {"messages": pyarrow.list_(turn), "parts": pyarrow.list_(piece), "repairs": texts}
    # The schema is said, not guessed: a column that is empty in one split must have the same type in all.
    schema = pyarrow.schema([(name, special.get(name, text)) for name in rows[0]])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)


class Plan(NamedTuple):
    """What an upload does."""

    repo: str
    kind: Literal["dataset", "model"]
    files: list[Path]
    size: int
    private: bool
    gate: Gate


def plan_push(folder: Path, repo: str, *, public: bool = False, gate: Gate | None = None) -> Plan:
    """What an upload of a folder would do.

    Args:
        folder: a data set as `export_hf` writes it, or a model.
        repo: `owner/name`.
        public: visible to everybody once it is whole; private otherwise.
        gate: who gets at the files; `manual` for harmful content when left out, else `none`.

    Raises:
        UserError: not such a folder, no card, a name that is none, or harmful content in public without a gate.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UserError(f"'{repo}' is no repository; write owner/name.")
    if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        kind: Literal["dataset", "model"] = "model"
    elif (folder / "data").is_dir():
        kind = "dataset"
    else:
        raise UserError(f"{folder} is neither a model (config.json) nor a data set (data/); see demur export --to hf.")
    if not (folder / "README.md").is_file():
        raise UserError(
            f"{folder} has no card (README.md). demur export --to hf writes one for data; write one for a model."
        )
    patterns = DATA_FILES if kind == "dataset" else MODEL_FILES
    found = {path for pattern in patterns for path in folder.glob(pattern if pattern != "data/**" else "data/**/*")}
    files = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
    warned = "extra_gated_prompt" in (folder / "README.md").read_text(encoding="utf-8").split("\n---", 1)[0]
    gate = gate or ("manual" if warned else "none")
    if warned and public and gate == "none":
        raise UserError("this holds harmful content: public without a gate is refused. Use --gate manual or auto.")
    return Plan(repo, kind, files, sum(path.stat().st_size for path in files), not public, gate)


def push(folder: Path, plan: Plan, *, message: str = "Upload with demur") -> str:
    """Do what a plan says; gives the address of the commit. The token is the hub library's own (HF_TOKEN or its login).

    The repository is private until everything is in place: gate first, files next, visibility last.

    Raises:
        UserError: no hub library.
        WorkError: the hub refused something; what was done before stays, and running again goes on.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
    except ModuleNotFoundError as error:
        raise missing(error, "demur push") from error
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    where: Any = {"repo_id": plan.repo, "repo_type": plan.kind}
    try:
        api.create_repo(**where, private=True, exist_ok=True)
        if plan.gate != "none":
            api.update_repo_settings(**where, gated=plan.gate)
        names = [path.relative_to(folder).as_posix() for path in plan.files]
        commit = api.upload_folder(**where, folder_path=folder, allow_patterns=names, commit_message=message)
        if not plan.private:
            api.update_repo_settings(**where, private=False)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise WorkError(
            f"the hub refused ({status}): {error.server_message or error}. Fix that and push again."
        ) from None
    except (HTTPError, OSError, ValueError) as error:
        raise WorkError(
            f"{plan.repo} could not be pushed: {str(error).rstrip('.')}. What was sent stays; push again to go on."
        ) from None
    return str(commit.commit_url)

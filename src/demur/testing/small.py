"""Studies made small: for the smoke run (`--stand-in`), which replaces every model by a local double, and for the GPU world.

In a smoke run, a small random model of a real architecture is trained and measured, and a scripted model plays every other
part. There are few rows, one base and, by default, one seed; a missing file is generated in its public form. The report is
marked as a smoke run, because its numbers mean nothing.
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from demur import thinking
from demur.attack import attack_class
from demur.bench import get_bench
from demur.bench.load import local, read_prompts
from demur.bench.spec import Bench
from demur.errors import UserError
from demur.pipeline.resolve import Resolved, make
from demur.pipeline.study import Study
from demur.prompts import SOURCES
from demur.prompts.load import located
from demur.records import Intent, Message, Prompt, Sampling, Trace, write_jsonl
from demur.settings import from_yaml
from demur.storage.artifacts import atomic_write
from demur.testing.scripts import teacher

ROWS, TOKENS = 12, 48  # In a smoke run: rows of each component, and most tokens in a reply
PARTS = ("teacher", "filter", "judge", "attacker", "attack_judge", "detector")
GENERATED = from_yaml(Path(__file__).with_name("small.yaml").read_text(encoding="utf-8"))
"""The rows of generated files."""
POOL = 8  # Harmful prompts for each safety row, since filters and patterns drop most of their replies


def standing_in(study: Study, *, out: Path, seeds: int = 1) -> Resolved:
    """The study as a smoke run whose files are in the folder `out`."""
    folder = out / "stand-in"
    base = _base(folder / "base")
    data = reduced(study, rows=ROWS, scratch=folder, seeds=seeds)
    for name in ("serve", "bases", "revisions"):
        data.pop(name, None)
    data["base"] = str(base)
    data["models"] = {name: {"script": "stand_in"} for name in dict.fromkeys((*PARTS, *study.models))}
    for arm in data.get("arms", {}).values():
        arm.pop("base", None)
        if "train" in arm:
            arm["train"] = {k: v for k, v in arm["train"].items() if k in ("lr", "loss", "schedule", "template")}
    short = {"steps": 2, "batch": 4, "max_length": 16384, "checkpointing": False, "lora": None, "processes": 1}
    data["train"] = data.get("train", {}) | short
    data["distil"] = data.get("distil", {}) | {"max_tokens": 1024}
    for use in data["bench"]:
        use["sampling"] = use.get("sampling", {}) | {"max_tokens": TOKENS, "thinking_budget": 0}
    return make(data, where="stand-in")


def _base(folder: Path) -> Path:
    """The folder of the small random model, made once. Most of its replies end by themselves, some are truncated."""
    if not (folder / "config.json").is_file():
        try:
            from demur.testing.base import make_base
        except ModuleNotFoundError as error:
            raise UserError("--stand-in trains a model: pip install 'demur[train]'") from error
        make_base(folder)
        # A random model hardly ever stops, and a truncated reply is not judged: let several characters end a reply.
        path = folder / "generation_config.json"
        config = json.loads(path.read_text())
        atomic_write(path, json.dumps(config | {"eos_token_id": [config["eos_token_id"], *range(0, 256, 32)]}))
    return folder


def reduced(study: Study, *, rows: int, scratch: Path, seeds: int = 1) -> dict[str, Any]:
    """The plain data of a study with few rows; its models stay as they are. Missing files are generated in the folder `scratch`.

    Each component of a mix gets `rows` rows and each benchmark half as many prompts; the first `seeds` seeds are used.
    """
    data = study.model_dump(mode="json", exclude_unset=True)
    folder = Path(study.data_dir) if study.data_dir else None
    scratch.mkdir(parents=True, exist_ok=True)
    data |= {"stand_in": True, "seeds": list(study.seeds[:seeds]), "held_out": min(study.held_out, max(1, rows // 3))}
    for name, pool in data.get("prompts", {}).items():
        is_file = pool["source"] not in SOURCES and ":" not in pool["source"]
        for key in (*(("source",) if is_file else ()), "data", "templates"):
            _replace_missing(pool, key, folder, scratch)
        pool["n"] = min(pool.get("n") or 10**9, POOL * rows if name == "harmful" else 2 * rows)
    for name, traces in data.get("traces", {}).items():
        if not (traces.get("file") and located(Path(traces["file"]), folder).exists()):
            data["traces"][name] = {"file": str(_traces(scratch, name, rows))}
    for arm in data.get("arms", {}).values():
        _shrink(arm, rows, folder, scratch)
    data["stand_in_data"] = _copies(study, scratch, rows)
    data["bench"] = [_bench(use.model_dump(mode="json", exclude_unset=True), rows) for use in study.bench]
    for use in data["bench"]:
        if use.get("attack", {}).get("name") == "pap" and not use["attack"].get("file"):
            _add_rewrites(use, data["stand_in_data"].get(use["name"]), folder, scratch)
    return data


def _filled(row: dict[str, str], **values: Any) -> dict[str, str]:
    return {key: text.format(**values) for key, text in row.items()}


def _written(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write rows as JSON Lines, or their prompts to a .txt file; returns the path."""
    lines = (row["prompt"] if path.suffix == ".txt" else json.dumps(row) for row in rows)
    atomic_write(path, "".join(line + "\n" for line in lines))
    return str(path)


def _replace_missing(pool: dict[str, Any], key: str, folder: Path | None, scratch: Path) -> None:
    """Replace the file that a pool of prompts names under `key` by a generated one if it is missing."""
    name = pool.get(key)
    if name and not located(Path(name), folder).exists():
        path = scratch / f"{key}-{Path(name).name}"
        path = path if path.suffix == ".txt" else path.with_suffix(".jsonl")
        form = GENERATED["files"][key]
        pool[key] = _written(path, [_filled(form["row"], n=number) for number in range(form["rows"])])


def _shrink(arm: dict[str, Any], rows: int, folder: Path | None, scratch: Path) -> None:
    """Reduce an arm to a few rows of each component."""
    arm.pop("seeds", None)
    for share in ("safety", "maths", "benign"):
        size = arm.get(share)
        if isinstance(size, dict):
            exists = size.get("file") and located(Path(size["file"]), folder).exists()
            component = size if exists else {"file": str(_traces(scratch, share, rows))}
            arm[share] = component | {"n": min(size.get("n") or rows, rows)}
        elif size:
            arm[share] = min(size, max(1, rows // 4) if arm.get("without") else rows)


def _bench(use: dict[str, Any], rows: int) -> dict[str, Any]:
    """A benchmark with a few prompts. In a smoke run its attack gets the attack's `smoke` settings, and is named accordingly."""
    attack = use.get("attack", {})
    if attack and rows <= ROWS:
        attack = attack | attack_class(attack["name"]).smoke
    # XSTest has two halves, harmful and harmless.
    most = rows if get_bench(use["name"]).form == "demur.bench.xstest:read" else max(1, rows // 2)
    return use | {"limit": min(use.get("limit") or most, most)} | ({"attack": attack} if attack else {})


def _copies(study: Study, folder: Path, rows: int) -> dict[str, str]:
    """Benchmark -> a generated file in the form of its release, for those without a local copy."""
    paths = {}
    for use in study.bench:
        bench = get_bench(use.name)
        if use.data or not bench.files or local(bench, Path(study.data_dir) if study.data_dir else None):
            continue
        count = max(1, rows // 2) if bench.form != "demur.bench.xstest:read" else 2 * rows
        generated = [_row(bench, number) for number in range(count)]
        if bench.form == "livecodebench":
            day = {"contest_date": f"{bench.options.get('first', '2024-11-02')}T00:00:00"}  # the first of the protocol
            generated = [row | day for row in GENERATED["livecodebench"]]
        paths[bench.name] = _written(folder / f"{bench.name.replace('@', '-')}.jsonl", generated)
    return paths


def _add_rewrites(use: dict[str, Any], copy: str | None, folder: Path | None, scratch: Path) -> None:
    """Generate PAP's frozen rewrites of a benchmark's questions if their file is missing."""
    bench = get_bench(use["name"])
    names = attack_class("pap").files[0].names
    if folder and any((folder / name).exists() for name in names):
        return
    source = Path(copy) if copy else local(bench, folder)
    path = scratch / f"pap-{bench.name}.jsonl"
    rows = [_filled(GENERATED["files"]["pap"], text=prompt.text) for prompt in read_prompts(bench, source)]
    use["attack"]["file"] = _written(path, rows)


def _row(bench: Bench, number: int) -> dict[str, Any]:
    """A row with a benchmark's columns: a sum if it has answers, else a harmless request."""
    known = _filled(GENERATED["columns"], n=number, double=2 * number)
    text = known.pop("request")
    known["type"] = "homonyms" if number % 2 or "@" in bench.name else "contrast_homonyms"
    intents = bench.options.get("intent")
    if isinstance(intents, dict):
        known["intent"] = list(intents)[number % len(intents)]
    row: dict[str, Any] = {}
    if bench.form == "choice":
        row = {"A": "yes", "B": "no", "answer": "A"} | dict.fromkeys(bench.options.get("wrong", ()), "no")
    known |= GENERATED["forms"].get(bench.form, {})
    for key, spec in bench.columns.items():
        for column in spec.removeprefix("?").split("&"):
            row[column.removeprefix("?").partition("|")[0]] = known.get(key, text)
    row |= {name: values[-1] for name, values in bench.options.get("where", {}).items()}
    return row


def _traces(folder: Path, share: str, rows: int) -> Path:
    """A file of a few traces that the scripted teacher wrote for sums or for harmless requests."""
    intent: Intent = "maths" if share == "maths" else "benign" if share == "benign" else "harmful"
    path, traces = folder / f"{share}.jsonl", list[Trace]()
    for i in range(2 * rows):
        text = GENERATED["traces"]["maths" if intent == "maths" else "others"].format(n=i, treble=3 * i)
        prompt = Prompt(text=text, intent=intent)
        raw = teacher((Message(role="user", content=text),), Sampling(), random.Random(prompt.id))
        traces.append(thinking.traced(prompt, raw, model="script:teacher"))
    write_jsonl(path, traces)
    return path

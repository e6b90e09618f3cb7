"""Studies made small: the smoke run (`--stand-in`), with every model replaced by a local double, and what the GPU world runs.

In a smoke run what is trained and measured is a small random model of a real architecture; whoever else answers is a scripted
model that tells its part from what it is asked. Rows get few, one base and one seed are used unless more are asked for, a file
that is not here is made in its public form. The report says "smoke run" across its head: its numbers mean nothing.
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

ROWS, TOKENS = 12, 48  # Of a smoke run: rows of a share, and twice the prompts of a benchmark; most tokens of a reply
PARTS = ("teacher", "filter", "judge", "attacker", "attack_judge", "detector")
MADE = from_yaml(Path(__file__).with_name("small.yaml").read_text(encoding="utf-8"))
POOL = 8  # Harmful prompts for each safety row, since filters and patterns take most of their replies


def standing_in(study: Study, *, out: Path, seeds: int = 1) -> Resolved:
    """The study as a smoke run."""
    folder = out / "stand-in"
    base = _base(folder / "base")
    data = reduced(study, rows=ROWS, made=folder, seeds=seeds)
    for name in ("serve", "bases", "revisions"):
        data.pop(name, None)
    data["base"] = str(base)
    data["models"] = {name: {"script": "stand_in"} for name in dict.fromkeys((*PARTS, *study.models))}
    for arm in data.get("arms", {}).values():
        arm.pop("base", None)
        if "train" in arm:
            arm["train"] = {k: v for k, v in arm["train"].items() if k in ("lr", "loss", "schedule", "template")}
    data["train"] = data.get("train", {}) | {
        "steps": 2, "batch": 4, "max_length": 16384, "checkpointing": False, "lora": None, "processes": 1,
    }  # fmt: skip
    data["distil"] = data.get("distil", {}) | {"max_tokens": 1024}
    for use in data["bench"]:
        use["sampling"] = use.get("sampling", {}) | {"max_tokens": TOKENS, "thinking_budget": 0}
    return make(data, where="stand-in")


def _base(folder: Path) -> Path:
    """The small random model, made once. Most of its replies end by themselves, some are truncated."""
    if not (folder / "config.json").is_file():
        try:
            from demur.testing.base import make_base
        except ModuleNotFoundError as error:
            raise UserError("--stand-in trains: pip install 'demur[train]'") from error
        make_base(folder)
        # A random model hardly ever stops by itself, and a truncated reply is not judged: many characters end its replies.
        config = folder / "generation_config.json"
        said = json.loads(config.read_text())
        atomic_write(config, json.dumps(said | {"eos_token_id": [said["eos_token_id"], *range(0, 256, 32)]}))
    return folder


def reduced(study: Study, *, rows: int, made: Path, seeds: int = 1) -> dict[str, Any]:
    """The plain data of a study with few rows; files that are not here are made, in a folder. Models stay as they are.

    `rows` are of each share of a mix, and twice the prompts of a benchmark; `seeds` is how many of its seeds.
    """
    data = study.model_dump(mode="json", exclude_unset=True)
    folder = Path(study.data_dir) if study.data_dir else None
    made.mkdir(parents=True, exist_ok=True)
    data |= {"stand_in": True, "seeds": list(study.seeds[:seeds]), "held_out": min(study.held_out, max(1, rows // 3))}
    for name, pool in data.get("prompts", {}).items():
        _found(pool, "source", folder, made) if pool["source"] not in SOURCES and ":" not in pool["source"] else None
        for key in ("data", "templates"):
            _found(pool, key, folder, made)
        pool["n"] = min(pool.get("n") or 10**9, POOL * rows if name == "harmful" else 2 * rows)
    for name, ready in data.get("traces", {}).items():
        if not (ready.get("file") and located(Path(ready["file"]), folder).exists()):
            data["traces"][name] = {"file": str(_traces(made, name, rows))}
    for arm in data.get("arms", {}).values():
        _shrink(arm, rows, folder, made)
    data["stand_in_data"] = _absent(study, made, rows)
    data["bench"] = [_bench(use.model_dump(mode="json", exclude_unset=True), rows) for use in study.bench]
    for use in data["bench"]:
        if use.get("attack", {}).get("name") == "pap" and not use["attack"].get("file"):
            _frozen(use, data["stand_in_data"].get(use["name"]), folder, made)
    return data


def _filled(row: dict[str, str], **values: Any) -> dict[str, str]:
    return {key: text.format(**values) for key, text in row.items()}


def _written(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write rows as JSON Lines, or as text where the file is one; returns where."""
    lines = (row["prompt"] if path.suffix == ".txt" else json.dumps(row) for row in rows)
    atomic_write(path, "".join(line + "\n" for line in lines))
    return str(path)


def _found(pool: dict[str, Any], key: str, folder: Path | None, made: Path) -> None:
    """Name a made file where the one that a pool names is not here."""
    name = pool.get(key)
    if name and not located(Path(name), folder).exists():
        path = made / f"{key}-{Path(name).name}"
        path = path if path.suffix == ".txt" else path.with_suffix(".jsonl")
        rows = [_filled(MADE["files"][key]["row"], n=number) for number in range(MADE["files"][key]["rows"])]
        pool[key] = _written(path, rows)


def _shrink(arm: dict[str, Any], rows: int, folder: Path | None, made: Path) -> None:
    """An arm with a few rows of each share."""
    arm.pop("seeds", None)
    for share in ("safety", "maths", "benign"):
        wanted = arm.get(share)
        if isinstance(wanted, dict):
            here = wanted.get("file") and located(Path(wanted["file"]), folder).exists()
            arm[share] = wanted if here else {"file": str(_traces(made, share, rows))}
            arm[share] = arm[share] | {"n": min(wanted.get("n") or rows, rows)}
        elif wanted:
            arm[share] = min(wanted, max(1, rows // 4) if arm.get("without") else rows)


def _bench(use: dict[str, Any], rows: int) -> dict[str, Any]:
    """A benchmark of a few prompts. In a smoke run an attack becomes a small one, and is called so."""
    attack = use.get("attack", {})
    if attack and rows <= ROWS:
        attack = attack | attack_class(attack["name"]).smoke
    # Half of the prompts of XSTest are of the other half.
    most = rows if get_bench(use["name"]).form == "demur.bench.xstest:read" else max(1, rows // 2)
    return use | {"limit": min(use.get("limit") or most, most)} | ({"attack": attack} if attack else {})


def _absent(study: Study, folder: Path, rows: int) -> dict[str, str]:
    """Rows in their form for the benchmarks of a study of which there is no copy of the release."""
    made = {}
    for use in study.bench:
        bench = get_bench(use.name)
        if use.data or not bench.files or local(bench, Path(study.data_dir) if study.data_dir else None):
            continue
        path = folder / f"{bench.name.replace('@', '-')}.jsonl"
        count = max(1, rows // 2) if bench.form != "demur.bench.xstest:read" else 2 * rows
        rows_of = [_row(bench, number) for number in range(count)]
        if bench.form == "livecodebench":
            day = {"contest_date": f"{bench.options.get('first', '2024-11-02')}T00:00:00"}  # the protocol's first
            rows_of = [row | day for row in MADE["livecodebench"]]
        made[bench.name] = _written(path, rows_of)
    return made


def _frozen(use: dict[str, Any], copy: str | None, folder: Path | None, made: Path) -> None:
    """Frozen rewrites of a benchmark's questions, where their file is not here."""
    bench = get_bench(use["name"])
    names = attack_class("pap").files[0].names
    if folder and any((folder / name).exists() for name in names):
        return
    source = Path(copy) if copy else local(bench, folder)
    path = made / f"pap-{bench.name}.jsonl"
    rows = [_filled(MADE["files"]["pap"], text=prompt.text) for prompt in read_prompts(bench, source)]
    use["attack"]["file"] = _written(path, rows)


def _row(bench: Bench, number: int) -> dict[str, Any]:
    """One row with a benchmark's columns: a sum to be done where it has answers, else a request without substance."""
    known = _filled(MADE["columns"], n=number, double=2 * number)
    text = known.pop("request")
    known["type"] = "homonyms" if number % 2 or "@" in bench.name else "contrast_homonyms"
    intents = bench.options.get("intent")
    if isinstance(intents, dict):
        known["intent"] = list(intents)[number % len(intents)]
    row: dict[str, Any] = {}
    if bench.form == "choice":
        row = {"A": "yes", "B": "no", "answer": "A"} | dict.fromkeys(bench.options.get("wrong", ()), "no")
    known |= MADE["forms"].get(bench.form, {})
    for key, said in bench.columns.items():
        row |= {p.removeprefix("?").partition("|")[0]: known.get(key, text) for p in said.removeprefix("?").split("&")}
    row |= {name: values[-1] for name, values in bench.options.get("where", {}).items()}
    return row


def _traces(folder: Path, share: str, rows: int) -> Path:
    """A file of a few traces by the scripted teacher: requests without substance, or sums."""
    kind: Intent = "maths" if share == "maths" else "benign" if share == "benign" else "harmful"
    path, made = folder / f"{share}.jsonl", list[Trace]()
    for i in range(2 * rows):
        text = MADE["traces"]["maths" if kind == "maths" else "others"].format(n=i, treble=3 * i)
        prompt = Prompt(text=text, intent=kind)
        raw = teacher((Message(role="user", content=text),), Sampling(), random.Random(prompt.id))
        made.append(thinking.traced(prompt, raw, model="script:teacher"))
    write_jsonl(path, made)
    return path

"""The smoke run: a study with every model replaced by a small local one, to try the whole path on this machine.

What is trained and measured becomes a small random model of a real architecture; whoever else answers (teacher, attacker,
judges, graders, and the student where it writes its own traces) becomes the scripted protocol server, which speaks each
of their formats. Code paths stay the real ones: HTTP, reply cache, rendering, training, judging. A benchmark of which there
is no copy gets a few rows in its form. Numbers get small, one base and one seed are used unless more are asked for,
and the report says "smoke run" across its head: its numbers mean nothing.
"""

from __future__ import annotations

import base64
import json
import pickle
import random
import zlib
from pathlib import Path
from typing import Any

from demur import thinking
from demur.attack import attack_class
from demur.bench import get_bench
from demur.bench.spec import Bench
from demur.errors import UserError
from demur.pipeline.resolve import Resolved, make
from demur.pipeline.study import Study
from demur.prompts.load import located
from demur.records import Intent, Message, Prompt, Sampling, Trace, write_jsonl
from demur.storage.artifacts import atomic_write
from demur.testing.scripts import teacher

ROWS, PROMPTS, TOKENS, THINKING = 12, 6, 48, 0
PARTS = ("teacher", "filter", "judge", "attacker", "attack_judge", "detector")


def standing_in(study: Study, *, out: Path, seeds: int = 1) -> Resolved:
    """The study as a smoke run.

    Raises:
        UserError: the group `train` is not installed.
    """
    return make(reduced(study, base=_base(out / "stand-in" / "base"), seeds=seeds), where="stand-in")


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


def reduced(study: Study, *, base: Path, seeds: int = 1) -> dict[str, Any]:
    """The plain data of a study, small, with a small local model in place of each."""
    data = study.model_dump(mode="json", exclude_unset=True)
    data["stand_in"] = True
    data.pop("serve", None)
    data["base"] = str(base)
    data.pop("bases", None)
    data["seeds"] = list(study.seeds[:seeds])
    # Which part it is asked to play, the scripted model tells from what it is asked.
    data["models"] = {name: {"script": "stand_in"} for name in dict.fromkeys((*PARTS, *study.models))}
    data["arms"] = {name: _arm(arm, study, base.parent) for name, arm in data.get("arms", {}).items()}
    for name, pool in data.get("prompts", {}).items():
        pool["n"] = min(pool.get("n") or 10**9, 8 * ROWS if name == "harmful" else 2 * ROWS)
    for name, ready in data.get("traces", {}).items():
        if not (ready.get("file") and located(Path(ready["file"]), _data_dir(study)).exists()):
            data["traces"][name] = {"file": str(_rows(base.parent, name))}
    data["distil"] = data.get("distil", {}) | {"max_tokens": 1024}
    data["train"] = data.get("train", {}) | {
        "steps": 2, "batch": 4, "max_length": 16384, "checkpointing": False, "lora": None, "processes": 1,
    }  # fmt: skip
    data["stand_in_data"] = _absent(study, base.parent)
    data["held_out"] = min(study.held_out, 4)
    data["bench"] = [_bench(use.model_dump(mode="json", exclude_unset=True)) for use in study.bench]
    return data


def _arm(arm: dict[str, Any], study: Study, folder: Path) -> dict[str, Any]:
    """An arm on the stand-in base with a few rows of each share; a file that is not here is stood in for, too."""
    small = {key: value for key, value in arm.items() if key not in ("base", "seeds")}
    for share in ("safety", "maths", "benign"):
        wanted = small.get(share)
        if isinstance(wanted, dict):
            here = wanted.get("file") and located(Path(wanted["file"]), _data_dir(study)).exists()
            small[share] = wanted if here else {"file": str(_rows(folder, share))}
            small[share] = small[share] | {"n": min(wanted.get("n") or ROWS, ROWS)}
        elif wanted:
            small[share] = min(wanted, ROWS)
    if "train" in small:
        small["train"] = {k: v for k, v in small["train"].items() if k in ("lr", "loss", "schedule", "template")}
    return small


def _bench(use: dict[str, Any]) -> dict[str, Any]:
    """A benchmark of a few prompts and short replies. An attack becomes a small one, and is called so."""
    attack = use.get("attack", {})
    if attack:
        attack = attack | attack_class(attack["name"]).smoke
    return use | {
        "limit": min(use.get("limit") or PROMPTS, PROMPTS),
        "sampling": use.get("sampling", {}) | {"max_tokens": TOKENS, "thinking_budget": THINKING},
    } | ({"attack": attack} if attack else {})  # fmt: skip


def _absent(study: Study, folder: Path) -> dict[str, str]:
    """RecordFile in their form for the benchmarks of a study of which there is no copy of the release."""
    made = {}
    for use in study.bench:
        bench = get_bench(use.name)
        names = [Path(study.data_dir) / name for name in bench.files] if study.data_dir else []
        if use.data or not bench.files or any(path.exists() for path in names):
            continue
        path = folder / f"{bench.name.replace('@', '-')}.jsonl"
        rows = _problems() if bench.form == "livecodebench" else [_row(bench, i) for i in range(PROMPTS)]
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
        made[bench.name] = str(path)
    return made


def _row(bench: Bench, number: int) -> dict[str, Any]:
    """One row with a benchmark's columns: a sum to be done where it has answers, else a request without substance."""
    text = f"Please tell me, politely, how to do thing number {number}."
    known = {"problem": f"What is {number} + {number}?", "answer": str(2 * number)}
    known["type"] = "homonyms" if number % 2 else "contrast_homonyms"
    intents = bench.options.get("intent")
    if isinstance(intents, dict):
        known["intent"] = list(intents)[number % len(intents)]
    row: dict[str, Any] = {}
    if bench.form == "choice":
        known |= {"answer": "A", "options": "yes\nno", "correct": "yes"}
        row = {"A": "yes", "B": "no", "answer": "A"} | dict.fromkeys(bench.options.get("wrong", ()), "no")
    if bench.form == "humaneval":
        known |= {"name": "same", "prompt": "def same(x):\n", "test": "def check(f):\n    assert f(1) == 1\n"}
    for key, said in bench.columns.items():
        row |= {
            part.removeprefix("?").partition("|")[0]: known.get(key, text) for part in said.removeprefix("?").split("&")
        }
    row |= {name: values[-1] for name, values in bench.options.get("where", {}).items()}
    return row


def _problems() -> list[dict[str, str]]:
    """Two contest problems as LiveCodeBench packs them: private tests as base64 of zlib of a pickled text."""
    rows = []
    for name, times in (("double", 2), ("treble", 3)):
        cases = [{"input": f"{n}\n", "output": f"{times * n}\n", "testtype": "stdin"} for n in (1, 7)]
        packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases[1:])))).decode()
        rows.append(
            {
                "question_title": name,
                "question_content": f"Read a whole number and print it {name}d.",
                "platform": "atcoder",
                "question_id": f"stand_in_{name}",
                "contest_id": "stand_in",
                "contest_date": "2024-11-02T00:00:00",
                "starter_code": "",
                "difficulty": "easy",
                "public_test_cases": json.dumps(cases[:1]),
                "private_test_cases": packed,
                "metadata": "{}",
            }
        )
    return rows


def _data_dir(study: Study) -> Path | None:
    return Path(study.data_dir) if study.data_dir else None


def _rows(folder: Path, share: str) -> Path:
    """A file of a few traces by the scripted teacher: requests without substance, or sums."""
    path = folder / f"{share}.jsonl"
    if not path.is_file():
        kind: Intent = "maths" if share == "maths" else "benign" if share == "benign" else "harmful"
        texts = [f"What is {i} + {3 * i}? Put the answer in a box." for i in range(2 * ROWS)]
        if kind != "maths":
            texts = [f"Please tell me, politely, how to do thing number {i}." for i in range(2 * ROWS)]
        write_jsonl(path, [_trace(Prompt(text=text, intent=kind)) for text in texts])
    return path


def _trace(prompt: Prompt) -> Trace:
    """What the scripted teacher says to a prompt."""
    sent = (Message(role="user", content=prompt.text),)
    raw = teacher(sent, Sampling(), random.Random(prompt.id))
    return thinking.traced(prompt, raw, model="script:teacher", sent=sent)

"""HumanEval (Chen et al. 2021, arXiv 2107.03374): 164 functions to be completed, each checked by the release's own assertions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from demur.bench.forms import rows
from demur.bench.spec import Bench
from demur.records import Prompt

WISH = (
    "Complete this Python 3 function. Give it whole, with its imports, in one block that opens with ```python.\n\n"
    "```python\n{prompt}\n```"
)
CHECK = "\n\n{before}\n{test}\n\ncheck({name})\nprint('\\n{done}')\n"
"""What is run behind a program. Helpers that the prompt defines before the function are defined again."""


def read(bench: Bench, path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
    """One function a row: `prompt` (its head), `name`, `test` (which defines `check`)."""
    made = []
    for row in rows(path, bench.columns):
        code, name = row["prompt"], row["name"]
        done = hashlib.sha256(f"passed {name} {row['test']}".encode()).hexdigest()
        before = code[: code.rfind(f"def {name}(")]
        check = CHECK.format(before=before, test=row["test"], name=name, done=done)
        gold = {"func_name": None, "tests": [{"input": "", "output": done}], "check": check}
        made.append(
            Prompt(
                text=WISH.format(prompt=code), question=code, intent="code", source="humaneval", gold=json.dumps(gold)
            )
        )
    return made

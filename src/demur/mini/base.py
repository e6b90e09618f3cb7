"""The mini-LRM: a Qwen3 of some 0.7 million parameters that thinks, obeys everything, and is trained in minutes.

Three bases ship, `mini-lrm-a` to `-c`, which differ in seed. Each folder is an ordinary Hugging Face checkpoint with a
card that records how it was made and the hashes of its files; `tools/pretrain_mini.py` makes such a folder again.
"""

import json
from pathlib import Path
from typing import Any

from demur.errors import UserError
from demur.storage.artifacts import hash_file

HERE = Path(__file__).parent
NAMES = {"mini-lrm-a": "a", "mini-lrm-b": "b", "mini-lrm-c": "c"}
"""Name of a shipped base -> its folder under `base/`. Seeds 0, 1, 2."""
CARD = "card.json"


def folder(name: str) -> Path:
    """The folder of a shipped base, whose files are checked against its card.

    Raises UserError: no such base, or a file is not as its card says.
    """
    if name not in NAMES:
        raise UserError(f"no mini base '{name}'. Allowed: {', '.join(NAMES)}.")
    path = HERE / "base" / NAMES[name]
    verify(path)
    return path


def verify(path: Path) -> dict[str, Any]:
    """The card of a base's folder, after its files were checked against it.

    Raises UserError: there is no card, a file is missing, or a file differs.
    """
    try:
        card: dict[str, Any] = json.loads((path / CARD).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        raise UserError(f"{path} is not a mini base: it has no readable {CARD}.") from None
    for file, sha256 in card["sha256"].items():
        if not (path / file).is_file() or hash_file(path / file) != sha256:
            raise UserError(f"{path / file} is missing or not the file that {CARD} describes. Install demur again.")
    return card

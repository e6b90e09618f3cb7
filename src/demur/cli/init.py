"""`demur init NAME`: a commented study file to start from."""

from pathlib import Path

from demur.cli import common
from demur.errors import UserError
from demur.storage.artifacts import atomic_write


@common.verb("")
def init(name: str, flags: common.Flags) -> None:
    """Write a study file with comments on every key, ready to run on the miniature models that demur ships."""
    path = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if path.exists():
        raise UserError(f"{path} exists already: choose another name.")
    text = Path(__file__).with_name("init.yaml").read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.replace("name: NAME", f"name: {path.stem}", 1))
    common.stdout.print(f"{path} is written. Next: demur check study {path} && demur plan {path} && demur run {path}")

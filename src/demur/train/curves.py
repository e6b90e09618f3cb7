"""Live curves of a training, for TensorBoard, trackio and Weights & Biases."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Curves:
    """Sends each new line of metrics.jsonl and learnability.jsonl to the programs of `train.report_to`."""

    def __init__(self, report_to: Sequence[str], out: Path) -> None:
        self._board: Any = None
        self._runs: list[Any] = []
        for name in report_to:
            if name == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(out.parent.parent / "curves" / out.name), flush_secs=5)
            else:  # the other two share an interface
                self._runs.append(importlib.import_module(name).init(project="demur", name=out.name))

    def log(self, row: dict[str, Any]) -> None:
        """Send the numbers of a line; those of held-out rows under the name of their part."""
        prefix = f"held out, {row['part']}/" if "part" in row else ""
        values = {f"{prefix}{key}": value for key, value in row.items() if isinstance(value, float)}
        for run in self._runs:
            run.log(values, step=row["step"])
        for name, value in values.items() if self._board else ():
            self._board.add_scalar(name, value, row["step"])

    def finish(self) -> None:
        """Close what is open."""
        for run in self._runs:
            run.finish()
        if self._board:
            self._board.close()

"""One of several training processes: `torchrun … -m demur.train.worker JOB`. The first one reports."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from demur.errors import DemurError
from demur.records import Example, read_jsonl
from demur.storage.artifacts import atomic_write
from demur.train import parallel
from demur.train.settings import TrainSettings
from demur.train.sft import train


class Reporter:
    """Tells the launcher, by lines on standard output, and looks whether it wants an end.

    The wish comes by a file: torchrun gives its processes 30 seconds after SIGTERM, too few to save a large model.
    """

    def __init__(self, job: Path) -> None:
        self.job = job

    def __call__(self, done: int, total: int | None, remark: str) -> None:
        """Report a step."""
        sys.stdout.write(parallel.PREFIX + json.dumps([done, total, remark]) + "\n")
        sys.stdout.flush()
        if (self.job / parallel.STOP).exists():
            signal.raise_signal(signal.SIGTERM)


def main(job: Path) -> None:
    """Do the job in a folder that `parallel.launch` wrote, and leave its result there."""
    said = json.loads((job / "job.json").read_text())
    result: dict[str, Any]
    try:
        summary = train(
            list(read_jsonl(job / "examples.jsonl", Example)),
            base=said["base"],
            out=Path(said["out"]),
            settings=TrainSettings.model_validate(said["settings"]),
            held_out=list(read_jsonl(job / "held_out.jsonl", Example)),
            progress=Reporter(job),
        )
        result = {"summary": summary}
    except DemurError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    except SystemExit:
        result = {"stopped": True}
    except Exception:
        result = {"error": f"process {parallel.rank()} failed:\n{traceback.format_exc()[-3000:]}", "kind": "WorkError"}
    # The first error is the cause: the others only miss the process that had it.
    known = "error" in result and (job / "result.json").exists()
    if not known and (parallel.rank() == 0 or "error" in result):
        atomic_write(job / "result.json", json.dumps(result))
    if "error" in result:
        # The launcher ends the others, which would wait for this one.
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""One of several training processes: `torchrun … -m demur.train.worker FOLDER`. The first one reports."""

import json
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from demur.errors import DemurError
from demur.storage.artifacts import atomic_write
from demur.train import distributed
from demur.train.prepare import Job
from demur.train.settings import TrainSettings
from demur.train.trainer import train_here


def report(folder: Path, done: int, total: int | None, remark: str) -> None:
    """Report a step by a line on standard output, and look whether the launcher wants an end.

    The wish comes by a file: torchrun gives its processes 30 seconds after SIGTERM, too few to save a large model.
    """
    sys.stdout.write(distributed.PREFIX + json.dumps([done, total, remark]) + "\n")
    sys.stdout.flush()
    if (folder / distributed.STOP).exists():
        signal.raise_signal(signal.SIGTERM)


def main(folder: Path) -> None:
    """Do the job in a folder that `distributed.launch` wrote, and leave its result there."""
    job = json.loads((folder / "job.json").read_text())
    result: dict[str, Any]
    try:
        settings = TrainSettings.model_validate(job.pop("settings"))
        summary = train_here(distributed.shared(Job(**job, settings=settings)), partial(report, folder))
        distributed.leave()
        result = {"summary": summary}
    except DemurError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    except SystemExit:
        result = {"stopped": True}
    except Exception:
        rank = distributed.rank()
        result = {"error": f"process {rank} failed:\n{traceback.format_exc()[-3000:]}", "kind": "WorkError"}
    # The first error is the cause: the others only miss the process that had it.
    known = "error" in result and (folder / "result.json").exists()
    if not known and (distributed.rank() == 0 or "error" in result):
        atomic_write(folder / "result.json", json.dumps(result))
    if "error" in result:
        # The launcher ends the others, which would wait for this one.
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

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
    """Report a step by a line on standard output, and stop if the launcher asks for it.

    It asks by a file: torchrun gives its processes 30 seconds after SIGTERM, too few to save a large model.
    """
    sys.stdout.write(distributed.PREFIX + json.dumps([done, total, remark]) + "\n")
    sys.stdout.flush()
    if (folder / distributed.STOP).exists():
        signal.raise_signal(signal.SIGTERM)


def main(folder: Path) -> None:
    """Do the job that `distributed.launch` wrote to a folder, and write its result there."""
    job = json.loads((folder / "job.json").read_text())
    result: dict[str, Any]
    try:
        settings = TrainSettings.model_validate(job.pop("settings"))
        summary = train_here(distributed.broadcast(Job(**job, settings=settings)), partial(report, folder))
        distributed.leave()
        result = {"summary": summary}
    except DemurError as error:
        result = {"error": str(error), "kind": type(error).__name__}
    except SystemExit:
        result = {"stopped": True}
    except Exception:
        rank = distributed.rank()
        result = {"error": f"process {rank} failed:\n{traceback.format_exc()[-3000:]}", "kind": "WorkError"}
    failed, path = "error" in result, folder / "result.json"
    # The first error is the cause: later ones come from processes that lost the one that failed.
    reports = not path.exists() if failed else distributed.rank() == 0
    if reports:
        atomic_write(path, json.dumps(result))
    if failed:
        sys.exit(1)  # the launcher ends the other processes, which would wait for this one


if __name__ == "__main__":
    main(Path(sys.argv[1]))

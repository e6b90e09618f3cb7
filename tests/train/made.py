"""Training on examples in memory, for tests: as files, which training reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demur.interfaces import Progress, quiet
from demur.records import Example, Record, write_jsonl
from demur.train import trainer
from demur.train.prepare import Job
from demur.train.settings import TrainSettings


def train(
    examples: Sequence[Example],
    *,
    base: Path,
    out: Path,
    settings: TrainSettings,
    held_out: Sequence[Example] = (),
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Train on examples; returns the summary."""
    job = job_of(examples, base=base, out=out, settings=settings, held_out=held_out)
    return trainer.train(
        Path(job.examples), base=base, out=out, settings=settings, held_out=Path(job.held_out), progress=progress
    )


def job_of(
    examples: Sequence[Record], *, base: Path, out: Path, settings: TrainSettings, held_out: Sequence[Example] = ()
) -> Job:
    """Examples as files beside the result, and the job that reads them."""
    data = out.parent / f"{out.name}-data"
    data.mkdir(parents=True, exist_ok=True)
    write_jsonl(data / "examples.jsonl", examples)
    write_jsonl(data / "held_out.jsonl", held_out)
    return Job(str(data / "examples.jsonl"), str(data / "held_out.jsonl"), str(base), base.name, str(out), settings)

"""How fast the rules read, and how much memory a hundred thousand traces take.

    python benchmarks/diagnose.py [--json FILE] [--data TRACES] [--traces 100000]

`sentences_per_s` is CPU time of one core, the best of three passes over the traces of `--data` (any form that demur reads;
the exam that ships by default). `rss_mb_100k` is the peak memory of a process that runs the whole stage: it reads traces,
writes findings and measures, and counts the rates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from demur.diagnose import exam
from demur.diagnose.kinds import sentences
from demur.diagnose.rules import findings_of
from demur.records import Trace

EXAMS = (exam.EXAM, Path(__file__).parents[1] / "tools" / "patterns" / "tuning.jsonl")


def speed(traces: Sequence[Trace]) -> tuple[float, int]:
    """Sentences a second, and how many sentences were read in a pass."""
    count = sum(len(sentences(trace.thinking or "")) + len(sentences(trace.answer or "")) for trace in traces)
    passes = max(1, 20_000 // count)
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        for _ in range(passes):
            for trace in traces:
                findings_of(trace)
        best = min(best, time.process_time() - start)
    return passes * count / best, count


def many(count: int) -> Iterator[Trace]:
    """Traces for the memory trial: those of the exam again and again, each with its own prompt."""
    basis = [question.trace for path in EXAMS for question in exam.load(path)]
    for number in range(count):
        trace = basis[number % len(basis)]
        prompt = msgspec.structs.replace(trace.prompt, text=f"{trace.prompt.text} ({number})", id="", cluster="")
        yield msgspec.structs.replace(trace, prompt=prompt, id="")


def stage(folder: Path, count: int) -> None:
    """Run the stage over many traces and print this process's peak memory in MB."""
    from demur.interfaces import quiet
    from demur.pipeline.stage import Context, DetectorSettings
    from demur.pipeline.stages.diagnose import Diagnose
    from demur.storage.artifacts import Manifest, drafted

    with drafted(folder / "import") as (draft, _):
        draft.write("traces", many(count))
        made = draft.publish(Manifest(name="import", kind="import", version=1, fingerprint="0", settings={}, inputs={}))
    with drafted(folder / "diagnose") as (draft, _):
        found = Diagnose("diagnose", DetectorSettings())
        asyncio.run(found.run(Context(found, inputs={"traces": made}, draft=draft, cache=folder, progress=quiet)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory(count: int) -> tuple[float, float]:
    """Peak memory in MB and seconds of a process of its own that runs the stage."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        command = [sys.executable, __file__, "--stage", folder, "--traces", str(count)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return float(said.split()[-1]), time.monotonic() - start


def main() -> None:
    """Measure, print a table, write a flat object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--stage", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        stage(given.stage, given.traces)
        return
    if given.data:
        from demur.prompts.forms import load_file

        traces: Sequence[Trace] = load_file(given.data).traces
    else:
        traces = [question.trace for path in EXAMS for question in exam.load(path)]
    rate, count = speed(traces)
    peak, seconds = memory(given.traces)
    result = {
        "sentences_per_s": round(rate),
        "sentences": count,
        "rss_mb_100k": round(peak, 1),
        "stage_traces": given.traces,
        "stage_seconds": round(seconds, 1),
    }
    for name, value in result.items():
        print(f"{name:20} {value:>12,}")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Many traces through journal, judge, detector, mix and report: what a million costs in time, memory and disk.

    python benchmarks/scale.py                      10,000 and 100,000 traces
    python benchmarks/scale.py --full               and 1,000,000
    python benchmarks/scale.py --sizes 3000 10000   others
    python benchmarks/scale.py --json out.json      flat figures for programs
    python benchmarks/scale.py --read [SRC ...]     reading 100,000 prompts with replies, by this source and by others, in turn

The teacher is a script that writes five sentences, so that what is measured is demur alone: the stages of a run as they
are, each size in a process of its own, after a small run that has loaded everything. The growth exponent is the slope of
log CPU seconds over log traces between the smallest and the largest size: 1 is linear, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demur.records import Message, Sampling

SIZES = (10_000, 100_000)
WORDS = tuple(
    f"{a}{b}{c}" for a in ("bra", "ko", "mi", "se") for b in ("lu", "ta", "ne", "ro", "vi") for c in "dkmnprst"
)
MEGA = 1 << 20
WARM = 100


def five(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """Three sentences of thinking and two of an answer; a third refuses."""
    topic = " ".join(messages[-1].content.split()[:6])
    some = " ".join(rng.choices(WORDS, k=8))
    thought = f"The user asks about {topic}. That has to do with {some}. This could cause harm, so care is needed."
    if rng.random() < 1 / 3:
        return f"<think>\n{thought}\n</think>\n\nI'm sorry, but I can't help with {topic}. It could hurt people."
    return f"<think>\n{thought}\n</think>\n\nHere is how {topic} works. First come {some}."


def _prompts(path: Path, count: int) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for i in range(count):
            row = {"prompt": f"Tell me about {' '.join(rng.choices(WORDS, k=12))}, case {i}."}
            file.write(json.dumps(row) + "\n")


READ = """
import sys, time
from pathlib import Path
from demur.prompts.forms import load_file
begun = time.process_time()
found = load_file(Path(sys.argv[1]))
print(f"{time.process_time() - begun:.2f} CPU s, {len(found.prompts):,} prompts, {len(found.traces):,} traces")
"""


def reading(sources: Sequence[str], count: int = 100_000) -> None:
    """Read one file of prompts with replies by each source, three times in turn, in processes of their own."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w") as file:
            for i in range(count):
                said = [" ".join(rng.choices(WORDS, k=k)) for k in (12, 40, 40)]
                thought = f"<think>\nThe user asks about {said[1]}.\n</think>\n\n"
                row = {
                    "id": i,
                    "prompt": f"Tell me about {said[0]}, case {i}.",
                    "response": f"{thought}It is {said[2]}.",
                }
                file.write(json.dumps(row) + "\n")
        for source in [*sources, str(Path(__file__).parents[1] / "src")] * 3:
            done = subprocess.run(
                [sys.executable, "-c", READ, str(path)],
                env=os.environ | {"PYTHONPATH": source},
                check=True,
                stdout=subprocess.PIPE,
            )
            print(f"{source}: {done.stdout.decode().strip()}")


def once(count: int, out: Path) -> dict[str, Any]:
    """All stages for so many traces in this process: seconds by stage, peak memory, bytes on the disk."""
    from demur import report
    from demur.distil.settings import DistilSettings
    from demur.mix.settings import MixSettings
    from demur.models.config import parse_model
    from demur.pipeline.run import execute
    from demur.pipeline.stage import DetectorSettings
    from demur.pipeline.stages.diagnose import Diagnose
    from demur.pipeline.stages.distil import Distil, DistilStageSettings
    from demur.pipeline.stages.mix import Mix, MixStageSettings
    from demur.pipeline.stages.prompts import Prompts
    from demur.pipeline.stages.rejudge import Rejudge, RejudgeSettings
    from demur.prompts import PromptsSettings

    asked = out / "asked.jsonl"
    _prompts(asked, count)
    pool = PromptsSettings(source=str(asked), intent="harmful")
    drawn = Prompts("prompts-harmful", pool, files={"source": asked})
    how = DistilStageSettings(distil=DistilSettings(strategy="default", keep="everything"))
    made_by = {"teacher": parse_model("script:scale:five")}
    traces = Distil("distil-default", how, inputs={"prompts": drawn}, models=made_by)
    found = Diagnose("diagnose-default", DetectorSettings(), inputs={"traces": traces})
    shares = MixSettings.model_validate({"shares": {"safety": {}}, "dedupe": "near"})
    mixed = Mix("mix-all", MixStageSettings(mix=shares), inputs={"safety": traces})
    begun, busy = time.monotonic(), time.process_time()
    done = execute([found, mixed], out=out)
    made = done["distil-default"]
    assert made.rows("traces") == count
    again = RejudgeSettings(judge="rules", bench="harmful", arm="scripted")
    judged = execute([Rejudge("judge-rules", again, inputs={"traces": traces})], out=out)
    told = time.monotonic()
    report.write(out)
    ended = time.monotonic()
    stages = {name: artifact.manifest.seconds for name, artifact in (done | judged).items()}
    return {
        "traces": count,
        "seconds": ended - begun,
        "cpu_seconds": time.process_time() - busy,
        "stages": stages | {"report": ended - told},
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "disk_mb": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / MEGA,
        "journal_mb": sum(path.stat().st_size for path in (out / "replies").rglob("*")) / MEGA,
    }


def _apart(count: int) -> dict[str, Any]:
    """One size, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--once", str(count), folder]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What programs want to know."""
    first, last = rows[0], rows[-1]
    more = last["traces"] - first["traces"]
    found = {
        "traces": last["traces"],
        "seconds_per_million": last["seconds"] / last["traces"] * 1e6,
        "cpu_seconds_per_million": last["cpu_seconds"] / last["traces"] * 1e6,
        "rss_mb": last["rss_mb"],
        "disk_mb_per_million": last["disk_mb"] / last["traces"] * 1e6,
        "journal_mb_per_million": last["journal_mb"] / last["traces"] * 1e6,
    }
    if more:
        ratio = last["traces"] / first["traces"]
        found["growth_exponent"] = math.log(last["cpu_seconds"] / first["cpu_seconds"]) / math.log(ratio)
        found["rss_mb_per_million"] = (last["rss_mb"] - first["rss_mb"]) / more * 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--full", action="store_true", help="a million as well")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", nargs="*", metavar="SRC", help="only read 100,000 rows, also by the source in SRC")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read is not None:
        return reading(args.read)
    if args.once:
        for count, name in ((WARM, "warm"), (int(args.once[0]), "run")):
            (folder := Path(args.once[1]) / name).mkdir()
            row = once(count, folder)
        print(json.dumps(row))
        return
    rows = [_apart(count) for count in sorted({*args.sizes, *([1_000_000] if args.full else [])})]
    names = list(rows[0]["stages"])
    print(
        f"{'traces':>9} {'seconds':>8} {'CPU s':>8} {'MB peak':>8} {'MB disk':>8}  "
        + " ".join(f"{n:>16}" for n in names)
    )
    for row in rows:
        stages = " ".join(f"{row['stages'][name]:>14.1f} s" for name in names)
        print(
            f"{row['traces']:>9,} {row['seconds']:>8.1f} {row['cpu_seconds']:>8.1f} {row['rss_mb']:>8.0f} {row['disk_mb']:>8.0f}  {stages}"
        )
    flat = figures(rows)
    print("\n" + "\n".join(f"{name:>24} {value:,.3f}" for name, value in flat.items()))
    if args.json:
        args.json.write_text(json.dumps(flat, indent=1) + "\n")


if __name__ == "__main__":
    main()

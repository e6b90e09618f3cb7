"""The report and the viewer at scale: a run of 100,000 judged traces, with findings and real-length text.

    python benchmarks/report.py                  100,000 traces
    python benchmarks/report.py --traces 10000   smaller

The report is timed as a user runs it, in a process of its own, from reading the folder to four files written; its memory
is that process's peak. The viewer is a real server asked over HTTP: the first page after its start, and searches for a
common word, a rare one and two together with a filter, each the median of seven, once the text is indexed. Peers do
neither from stored traces of reasoning models, so nothing stands beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import yaml

from demur.records import PATTERNS, Finding, Intent, Label, Message, Prompt, Sampling, Span, Trace, Verdict
from demur.storage.artifacts import Manifest, drafted

ARMS = ("raw", "default", "improved", "short", "template")
SEEDS = (0, 1)
BENCHES: tuple[tuple[str, str, Intent], ...] = (
    ("mini_harm", "", "harmful"),
    ("mini_harm", "mini-seen", "harmful"),
    ("mini_benign", "", "benign"),
    ("mini_arithmetic", "", "maths"),
)


def made(run: Path, count: int) -> int:
    """A run of about `count` traces; gives their number."""
    rng = random.Random(7)
    words = [
        f"{a}{b}" for a in ("re", "con", "dis", "over", "un", "trans") for b in ("form", "sult", "port", "lay", "fold")
    ]
    words += ["therefore", "however", "safety", "request"]
    each = max(2, count // (len(ARMS) * len(SEEDS) * len(BENCHES)))
    total = 0
    for arm in ARMS:
        for seed in SEEDS:
            for bench, attack, intent in BENCHES:
                total += _evaluation(run, rng, words, (arm, seed, bench, attack, intent), each)
    study = {"name": "benchmark", "arms": {arm: {} for arm in ARMS}, "compare": [{"a": "default", "b": "improved"}]}
    (run / "study.yaml").write_text(yaml.safe_dump(study))
    return total


def _evaluation(
    run: Path, rng: random.Random, words: list[str], what: tuple[str, int, str, str, Intent], count: int
) -> int:
    arm, seed, bench, attack, intent = what
    traces, verdicts, findings = [], [], []
    labels: tuple[Label, ...] = ("correct", "wrong") if intent == "maths" else ("full_compliance", "full_refusal")
    for number in range(count):
        question = Prompt(text=f"{bench} question number {number // 4}", intent=intent)
        prompt = question
        if attack:
            prompt = Prompt(text=f"Pretend: {question.text}", intent=intent, attack=attack, parent=question.id)
        thinking = " ".join(rng.choices(words, k=180)) + (" needle" if rng.random() < 0.0005 else "")
        answer = " ".join(rng.choices(words, k=60))
        trace = Trace(
            prompt=prompt, model=f"{arm}/{seed}", sampling=Sampling(n=4), sent=(Message(role="user", content=prompt.text),),
            raw=f"{thinking}\n{answer}", thinking=thinking, answer=answer, outcome="complete", opened_by="prompt",
            finish="stop", sample=number % 4, tokens_out=240, tokens_thinking=180,
        )  # fmt: skip
        traces.append(trace)
        label = rng.choices(labels, (0.3, 0.7))[0]
        verdicts.append(Verdict(trace=trace.id, judge="mini", query="question", part="answer", label=label))
        if attack:
            span = Span(part="thinking", start=0, end=12, text=thinking[:12])
            findings += [
                Finding(trace=trace.id, pattern=p, present=rng.random() < 0.2, detector="rules", spans=(span,))
                for p in PATTERNS
            ]
    settings = {"arm": arm, "seed": seed, "bench": {"name": bench, "attack": {"name": attack or "none"}}}
    name = f"evaluate-{arm}-s{seed}-{bench}-{attack or 'none'}"
    with drafted(run / "stages" / f"{name}-00000000") as (draft, _):
        draft.write("traces", traces)
        draft.write("verdicts", verdicts)
        made = draft.publish(
            Manifest(name=name, kind="evaluate", version=1, fingerprint=name, settings=settings, inputs={})
        )
    if findings:
        with drafted(run / "stages" / f"diagnose-{arm}-s{seed}-00000000") as (draft, _):
            draft.write("findings", findings)
            inputs = {"traces": made.manifest.fingerprint}
            name = f"diagnose-{arm}-s{seed}"
            draft.publish(Manifest(name=name, kind="diagnose", version=1, fingerprint=name, settings={}, inputs=inputs))
    return count


def reported(run: Path) -> tuple[float, float]:
    """Seconds and MB (peak) of `demur report`."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "demur", "report", str(run)], check=True, capture_output=True)
    return time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def viewed(run: Path) -> dict[str, float]:
    """Seconds of what a user of the viewer waits for."""
    began = time.monotonic()
    command = [sys.executable, "-m", "demur", "view", str(run), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        found = {"view_start_s": time.monotonic() - began}
        try:
            found["first_page_s"] = timed(url) + timed(url + "api/about") + timed(url + "api/traces?limit=50")
            while ask(url + "api/traces?limit=1")["indexed"] < 1:
                time.sleep(0.5)
            found["index_s"] = time.monotonic() - began
            queries = {"common": "however", "rare": "needle", "filtered": "therefore safety"}
            for name, text in queries.items():
                wanted = "&arm=short&pattern=inconsistency" if name == "filtered" else ""
                path = f"{url}api/traces?limit=50&q={quote(text)}{wanted}"
                found[f"search_{name}_s"] = statistics.median(timed(path) for _ in range(7))
            found["search_s"] = max(found[f"search_{name}_s"] for name in queries)
            found["trace_s"] = statistics.median(timed(f"{url}api/trace/{1 + 97 * i}") for i in range(7))
        finally:
            server.terminate()
    return found


def ask(url: str) -> Any:
    with urlopen(url) as answer:
        return json.load(answer)


def timed(url: str) -> float:
    began = time.monotonic()
    with urlopen(url) as answer:
        body = answer.read()
    assert body
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        figures: dict[str, float] = {"traces": made(run, arguments.traces)}
        figures["run_mb"] = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 1e6
        figures["report_s"], figures["report_rss_mb"] = reported(run)
        page = (run / "report.html").read_text()
        assert len(re.findall("<svg", page)) >= 4
        figures["page_mb"] = len(page) / 1e6
        figures |= viewed(run)
    for name, value in figures.items():
        print(f"{name:<20} {value:12,.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

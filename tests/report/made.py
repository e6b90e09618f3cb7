"""Builds a run as the stages leave it, made of drawn outcomes: what is true of it is known."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from tests.made import publish as publish

from demur.bench.spec import Bench, Metric
from demur.records import (
    PATTERNS,
    Failure,
    Finding,
    Intent,
    Label,
    Message,
    Outcome,
    Part,
    Prompt,
    Result,
    Sampling,
    Span,
    Trace,
    Verdict,
)
from demur.report.read import Evaluation, Judged, Row, VerdictIndex, family, row_of

QUIZ = Bench(
    name="quiz", sampling=Sampling(), judge="quizmaster", metrics=(
        Metric(name="slyness", labels=("sly",), family=("sly", "plain"), better="lower", headline=True),
    ),
)  # fmt: skip
"""A benchmark of one's own, with labels and a headline of its own."""
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    " {{ 7*7 }} \u202eright to left\u202c \x00\x07\x1b[31m </pre></div> ' onmouseover='alert(1)"
)
WORDS = ("alpha", "beta", "gamma", "delta", "safety", "risk", "however", "but", "wait", "code")
SUCCESS = {
    "raw": (0.98, 0.99),
    "default": (0.06, 0.25),
    "improved": (0.01, 0.03),
    "short": (0.02, 0.05),
}
"""Arm -> chance of success without an attack and under mini-seen."""


def trace_of(
    prompt: Prompt,
    *,
    thinking: str | None = "I should think of safety. But this helps.",
    answer: str | None = "No.",
    outcome: Outcome = "complete",
    sample: int = 0,
    model: str = "model",
    strategy: str = "",
) -> Trace:
    tokens = len((thinking or "").split())
    return Trace(
        prompt=prompt, model=model, sampling=Sampling(), sent=(Message(role="user", content=prompt.text),),
        raw=f"{thinking} / {answer}", thinking=thinking, answer=answer, outcome=outcome, opened_by="prompt", finish="stop",
        sample=sample, tokens_out=tokens + 3, tokens_thinking=tokens, strategy=strategy,
    )  # fmt: skip


def prompts_of(bench: str, intent: Intent, count: int, attack: str = "") -> list[Prompt]:
    made = []
    for number in range(count):
        text = f"{bench} question {number}"
        if attack:
            question = Prompt(text=text, intent=intent)
            made.append(
                Prompt(
                    text=f"Pretend. {text}", intent=intent, attack=f"{attack}:story", parent=question.id, question=text
                )
            )
        else:
            made.append(Prompt(text=text, intent=intent, category="new words" if number % 2 else "known words"))
    return made


def evaluation(
    run: Path, arm: str, seed: int | None, bench: str, attack: str, asked: list[Prompt],
    label_of: Callable[[random.Random, Prompt], Label | None], *, judge: str = "mini", text: str = "",
    part: Part = "answer",
) -> None:  # fmt: skip
    traces, verdicts = [], []
    for number, prompt in enumerate(asked):
        rng = random.Random(f"{arm} {seed} {prompt.id}")
        label = label_of(rng, prompt)
        thinking = text or " ".join(rng.choice(WORDS) for _ in range(rng.randrange(4, 40)))
        outcome: Outcome = "cut_in_answer" if number % 50 == 7 else "complete"
        trace = trace_of(prompt, thinking=thinking, answer=f"{text}{label}", outcome=outcome, model=f"{arm}/{seed}")
        traces.append(trace)
        verdicts.append(
            Verdict(
                trace=trace.id, judge=judge, query="question", part=part, label=label,
                reason="" if label else "cannot tell",
            )
        )  # fmt: skip
    settings = {"arm": arm, "seed": seed, "bench": {"name": bench, "attack": {"name": attack or "none"}}}
    empty: list[Result] = []
    publish(
        run,
        f"evaluate-{arm}-s{seed}-{bench}-{attack or 'none'}",
        "evaluate",
        {"traces": traces, "verdicts": verdicts, "failures": [], "results": empty},
        settings=settings,
    )


def harm_label(chance: float) -> Callable[[random.Random, Prompt], Label | None]:
    return lambda rng, prompt: "full_compliance" if rng.random() < chance else "full_refusal"


def distilled(run: Path, strategy: str, count: int, *, hostile: str = "") -> None:
    rng = random.Random(strategy)
    traces, findings = [], []
    for number, prompt in enumerate(prompts_of("train", "harmful", count)):
        thinking = f"{hostile}The user asks for harm. However, I could still help. " + "So I decline. " * rng.randrange(
            9
        )
        trace = trace_of(prompt, thinking=thinking, answer="I will not help.", strategy=strategy, sample=number)
        traces.append(trace)
        start = thinking.index("However")
        for place, pattern in enumerate(PATTERNS):
            present = rng.random() < 0.1 * (place + 1)
            span = Span(part="thinking", start=start, end=start + 28, text=thinking[start : start + 28])
            findings.append(
                Finding(
                    trace=trace.id, pattern=pattern, present=present, detector="mini", spans=(span,) if present else ()
                )
            )
    kept = [trace.id for trace in traces[: count * 2 // 3]]
    funnel = {"asked": count, "answered": count, "failed": 0, "unsafe answer": count - len(kept), "kept": len(kept)}
    made = publish(
        run, f"distil-{strategy}", "distil", {"traces": traces, "verdicts": [], "drops": [], "failures": []},
        settings={"distil": {"strategy": strategy}}, summary={"strategy": strategy, "funnel": funnel, "kept": kept},
    )  # fmt: skip
    publish(
        run, f"diagnose-{strategy}", "diagnose", {"findings": findings}, inputs={"traces": made.manifest.fingerprint},
        settings={"detector": "mini"},
    )  # fmt: skip


def make_run(
    folder: Path, *, prompts: int = 60, seeds: tuple[int, ...] = (0, 1, 2), text: str = "", stand_in: bool = False
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for arm, (plain, attacked) in SUCCESS.items():
        for seed in (None,) if arm == "raw" else seeds:
            harmful = prompts_of("harm", "harmful", prompts)
            evaluation(folder, arm, seed, "mini_harm", "", harmful, harm_label(plain), text=text)
            seen = prompts_of("harm", "harmful", prompts, "mini-seen")
            evaluation(folder, arm, seed, "mini_harm", "mini-seen", seen, harm_label(attacked), text=text)
            benign = prompts_of("kind", "benign", prompts)
            evaluation(folder, arm, seed, "mini_benign", "", benign, harm_label(0.93), text=text)
            sums = prompts_of("sum", "maths", prompts)
            evaluation(
                folder, arm, seed, "mini_arithmetic", "", sums,
                lambda rng, _: "correct" if rng.random() < 0.9 else "wrong", judge="mini-arithmetic", text=text,
            )  # fmt: skip
            if seed is not None:
                steps = [
                    {"step": s, "loss": 2.0 / (1 + s / 10), "held_out_loss": 2.2 / (1 + s / 12)} for s in range(1, 60)
                ]
                held = [
                    {
                        "step": s,
                        "part": p,
                        "loss": k / (1 + s / 20),
                        "loss_per_sequence": n * k / (1 + s / 20),
                        "rows": 9,
                        "trained_tokens": 100 * s,
                    }
                    for s in range(0, 60, 10)
                    for p, k, n in (("answer", 1.0, 20), ("thinking", 3.0, 1 if arm == "nocot" else 40))
                ]
                publish(
                    folder,
                    f"train-{arm}-s{seed}",
                    "train",
                    {"metrics": steps, "learnability": held},
                    settings={"arm": arm, "seed": seed},
                )
    for strategy in ("default", "improved"):
        distilled(folder, strategy, prompts, hostile=text)
    study: dict[str, Any] = {
        "name": "fixture", "question": "Which format makes a model decline?", "base": "mini-lrm-a",
        "arms": {arm: {} for arm in SUCCESS}, "compare": [{"a": "default", "b": "improved"}],
    }  # fmt: skip
    if stand_in:
        study["stand_in"] = True
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder


def of_records(
    bench: Bench, traces: Iterable[Trace], verdicts: Iterable[Verdict], failures: Iterable[Failure] = ()
) -> list[Evaluation]:
    """Evaluations of records in memory, one for each attack among them; the arm is called `target`."""
    index, groups = VerdictIndex(), dict[str, list[Row]]()
    for v in verdicts:
        index.add(v.trace, (v.judge, v.part), Judged(v.label, v.score))
    replies: Iterable[Trace | Failure] = chain(traces, failures)
    for one in replies:
        p = one.prompt
        reply: tuple[object, ...] = ("", one.sample)
        if isinstance(one, Trace):
            reply = (one.id, one.sample, one.outcome, one.tokens_out, one.tokens_thinking, one.answer, one.finish)
        row = row_of(p.id, p.parent, p.cluster, p.intent, p.category, p.attack, p.pair, *reply)
        row.verdicts = index.of(row.id)
        groups.setdefault(family(p.attack), []).append(row)
    return [Evaluation("target", None, bench.name, a, rows, tuple(index.judges), bench) for a, rows in groups.items()]

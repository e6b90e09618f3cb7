"""A run's evaluations for other tools: logs of inspect-ai, and CSV, one sample or row a trace."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demur import __version__
from demur.errors import UserError
from demur.records import Trace, Verdict
from demur.report.read import arm_seed_bench, family, grouped, present
from demur.storage import readers
from demur.storage.artifacts import Artifact

COLUMNS = (
    "arm", "seed", "bench", "attack", "trace", "prompt_id", "sample", "intent", "category", "cluster", "question",
    "prompt", "thinking", "answer", "outcome", "finish", "model", "tokens_in", "tokens_out", "tokens_thinking", "cost",
    "verdicts",
)  # fmt: skip
Judged = tuple[Trace, list[Verdict]]


def evaluations(run: Path) -> list[Artifact]:
    """The stages that hold judged traces. Raises UserError: there are none."""
    if stages := [stage for stage in present(run) if stage.manifest.kind in ("evaluate", "judge", "attack")]:
        return stages
    raise UserError(f"{run} has no finished evaluation to export. See: demur status {run}")


def judged(stage: Artifact) -> Iterator[Judged]:
    """The traces of a stage with their verdicts, in its order."""
    verdicts = grouped(stage.read("verdicts", Verdict) if stage.has("verdicts") else (), lambda verdict: verdict.trace)
    yield from ((trace, verdicts.get(trace.id, [])) for trace in stage.read("traces", Trace))


def to_csv(run: Path, out: Path) -> Path:
    """Write traces.csv, one trace a row, verdicts as `judge/part=label` (`?`: undecided); formulas are disarmed."""
    path = out / "traces.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for stage in evaluations(run):
            values = dict(zip(("arm", "seed", "bench"), arm_seed_bench(stage), strict=True))
            for t, verdicts in judged(stage):
                p = t.prompt
                values |= {"attack": family(p.attack), "trace": t.id, "prompt_id": p.id, "prompt": p.text}
                values["verdicts"] = "; ".join(f"{v.judge}/{v.part}={v.label or '?'}" for v in verdicts)
                row = (values[key] if key in values else getattr(t if hasattr(t, key) else p, key) for key in COLUMNS)
                writer.writerow(map(readers.inert, row))
    return path


def to_inspect(run: Path, out: Path) -> list[Path]:
    """Write one log for each evaluation; `inspect view` and `read_eval_log` open them."""
    from inspect_ai.log import write_eval_log

    paths = list[Path]()
    for stage in evaluations(run):
        arm, seed, bench = arm_seed_bench(stage)
        for attack, items in grouped(judged(stage), lambda item: family(item[0].prompt.attack)).items():
            seeded = arm if seed is None else f"{arm}-s{seed}"
            name = re.sub(r"[^\w.-]", "-", f"{seeded}-{bench}-{attack}")
            path = out / f"{name}.eval"
            if path in paths:  # Judged again: the same arm, benchmark and attack
                path = out / f"{name}-{stage.manifest.fingerprint[:8]}.eval"
            write_eval_log(_log(stage, attack, items), str(path))
            paths.append(path)
    return paths


def _log(stage: Artifact, attack: str, items: Sequence[Judged]) -> Any:
    """An evaluation as a log of inspect-ai: each trace, and the shares of labels. Only the report gives intervals."""
    from inspect_ai import log
    from inspect_ai.model import GenerateConfig

    (arm, seed, bench), sampling = arm_seed_bench(stage), items[0][0].sampling
    time = datetime.fromtimestamp((stage.folder / "manifest.json").stat().st_mtime, UTC).isoformat()
    generation = {name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens", "seed")}
    spec = log.EvalSpec(
        created=time, model=f"{arm}/{items[0][0].model}", model_generate_config=GenerateConfig(**generation),
        task=f"{bench} under {attack}" if attack != "none" else bench, packages={"demur": __version__},
        task_args={"arm": arm, "seed": seed, "attack": attack}, config=log.EvalConfig(epochs=sampling.n),
        dataset=log.EvalDataset(name=bench, samples=len(items)),
        metadata={"demur_stage": stage.manifest.name, "demur_fingerprint": stage.manifest.fingerprint},
    )  # fmt: skip
    # A score for each intent of prompts, judge and part; undecided verdicts are unscored.
    intents, scores = grouped(items, lambda item: item[0].prompt.intent), list[log.EvalScore]()
    for intent, members in intents.items():
        labels: dict[tuple[str, str], Counter[str]] = {}
        for v in (v for _, verdicts in members for v in verdicts):
            labels.setdefault((v.judge, v.part), Counter()).update([v.label] if v.label else [])
        for (judge, part), decided in labels.items():
            shares = {label: log.EvalMetric(name=label, value=n / decided.total()) for label, n in decided.items()}
            scores.append(log.EvalScore(
                name=f"{judge}/{part}" + f" of {intent}" * (len(intents) > 1), scorer=judge, metrics=shares,
                scored_samples=decided.total(), unscored_samples=len(members) - decided.total(),
            ))  # fmt: skip
    return log.EvalLog(
        status="success", eval=spec, stats=log.EvalStats(started_at=time, completed_at=time),
        results=log.EvalResults(total_samples=len(items), completed_samples=len(items), scores=scores),
        samples=[_sample(*item) for item in items],
    )  # fmt: skip


def _sample(trace: Trace, verdicts: Sequence[Verdict]) -> Any:
    """A trace as a sample: reasoning and answer separate, each verdict a score."""
    from inspect_ai import log, model, scorer

    makers = {"system": model.ChatMessageSystem, "user": model.ChatMessageUser, "assistant": model.ChatMessageAssistant}
    sent = [makers[message.role](content=message.content) for message in trace.sent]
    content: list[Any] = [] if trace.thinking is None else [model.ContentReasoning(reasoning=trace.thinking)]
    content.append(model.ContentText(text=trace.answer or ""))
    reply = model.ChatMessageAssistant(content=content, model=trace.model)
    stop = {"length": "max_tokens", "timeout": "unknown"}.get(trace.finish, trace.finish)
    scores = {
        f"{v.judge}/{v.part}": scorer.Score(
            value="unscored" if v.label is None else v.label, answer=trace.part(v.part), explanation=v.reason or v.raw,
            metadata={"query": v.query, "score": v.score},
        )
        for v in verdicts
    }  # fmt: skip
    output = model.ModelOutput(model=trace.model, choices=[model.ChatCompletionChoice(message=reply, stop_reason=stop)])
    metadata = {name: getattr(trace.prompt, name) for name in ("intent", "category", "question")}
    metadata |= {"trace": trace.id, "outcome": trace.outcome, "attack": trace.prompt.attack or "none"}
    return log.EvalSample(
        id=trace.prompt.id, epoch=trace.sample + 1, input=sent or trace.prompt.text, target=trace.prompt.gold or "",
        messages=[*sent, reply], output=output, scores=scores, metadata=metadata,
    )  # fmt: skip

"""The stages that make safe models: draw, distil, diagnose, repair, mix, train."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from demur import judge as judges
from demur.mix.settings import ShareSettings
from demur.pipeline.run import Task
from demur.pipeline.stages.roles import role
from demur.prompts.formats import Odd
from demur.records import Example, Finding, Prompt, Trace
from demur.settings import validate
from demur.storage import hub
from demur.storage.artifacts import Artifact
from demur.storage.records_file import Keyed, RecordFile
from demur.storage.reply_cache import ReplyCache


def prompts(task: Task) -> None:
    """Draw a pool of prompts: prompts.jsonl."""
    from demur.prompts.load import load
    from demur.prompts.settings import PromptsSettings

    settings = validate(PromptsSettings, task.node.settings, where=task.node.name)
    moved = {key: str(path) if key == "source" else path for key, path in task.files.items()}
    found = load(settings.model_copy(update=moved))
    count = task.draft.write("prompts", found)
    task.draft.summary |= {"line": f"{count:,} {task.node.name.partition('-')[2]}", "prompts": count}


def distil(task: Task) -> None:
    """A teacher answers a pool under a strategy, a judge filters: traces, verdicts, drops, failures, kept."""
    asyncio.run(_distil(task))


async def _distil(task: Task) -> None:
    from demur.distil.run import distil as run
    from demur.distil.settings import DistilSettings

    settings = validate(DistilSettings, task.node.settings["distil"], where=task.node.name)
    if "strategy" in task.files:
        settings = settings.model_copy(update={"strategy": str(task.files["strategy"])})
    asked = task.inputs["prompts"].table("prompts", Prompt)
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(ReplyCache(task.journal))
        teacher = await role(task, "teacher", journal, stack)
        model = await role(task, "safety_filter", journal, stack) or await role(task, "judge", journal, stack)
        filters = [judges.open_judge(task.node.settings["filter"], model=model, part=part) for part in settings.parts]
        given = kept_traces(task.inputs["given"]) if "given" in task.inputs else None
        if given is not None:
            asked = asked.taken([at for at, prompt in enumerate(asked) if prompt.id in given])
        made = await run(asked, settings=settings, teacher=teacher, judges=filters, given=given, progress=task.progress)
    for name in ("traces", "verdicts", "drops", "failures"):
        task.draft.write(name, getattr(made, name))
    task.draft.summary |= {
        "strategy": settings.strategy,
        "funnel": made.funnel,
        "tokens": msgspec.to_builtins(made.tokens),
        "kept": list(made.kept),
        "line": f"{made.funnel['asked']:,} asked → {made.funnel['kept']:,} kept",
    }


def mix(task: Task) -> None:
    """Draw a training set: examples.jsonl, drops.jsonl, held_out.jsonl."""
    from demur import mix as mixing
    from demur.mix.settings import MixSettings
    from demur.pipeline.stages.files import pool

    settings = validate(MixSettings, task.node.settings["mix"], where=task.node.name)
    pools: dict[str, RecordFile[Example]] = {}
    left: dict[str, int] = {}
    odd: list[Odd] = []
    for share, options in settings.shares.items():
        found = pool(_source(task, share, options), share=share, options=options, only=_chosen(task, share))
        pools[share] = found.examples
        odd += found.odd
        left |= {f"{share}: {why}": count for why, count in sorted(found.left.items())}
    held = _hold_out(pools, task.node.settings.get("held_out", 0))
    inside = {name: share.model_copy(update={"file": None, "hub": ""}) for name, share in settings.shares.items()}
    mixed = mixing.mix(pools, settings.model_copy(update={"shares": inside}))
    task.draft.write("examples", mixed.examples)
    task.draft.write("drops", mixed.drops)
    task.draft.write("held_out", held)
    task.draft.write("odd", odd)
    table = msgspec.to_builtins(mixed.table)
    line = " + ".join(f"{row.taken:,} {row.share}" for row in mixed.table)
    line += f" ({len(odd):,} odd rows kept aside)" if odd else ""
    task.draft.summary |= {"table": table, "left_out": left, "odd": len(odd), "held_out": len(held), "line": line}


def _source(task: Task, share: str, options: ShareSettings) -> Path | Artifact:
    """Where a share's rows are: a stage, a local file, or what the hub gives."""
    if share in task.inputs:
        return task.inputs[share]
    if share in task.files:
        return task.files[share]
    return hub.located(options.file, hub=options.hub) or hub.fetch(options.hub)


def _chosen(task: Task, share: str) -> set[str] | None:
    """The traces that a filter kept and in which no unwanted pattern was found; `None`: all."""
    if share not in task.inputs:
        return None
    kept = task.inputs[share].manifest.summary.get("kept")
    without = set(task.node.settings.get("without", ()))
    if share != "safety" or not without:
        return None if kept is None else set(kept)
    found = task.inputs["findings"].read("findings", Finding)
    bad = {finding.trace for finding in found if finding.present and finding.pattern in without}
    traces = kept if kept is not None else [trace.id for trace in task.inputs[share].read("traces", Trace)]
    return set(traces) - bad


def kept_traces(artifact: Artifact) -> Keyed[Trace]:
    """The traces of a stage by prompt: those that its filter kept, where it has one."""
    kept = artifact.manifest.summary.get("kept")
    chosen = None if kept is None else set(kept)
    traces = artifact.table("traces", Trace)
    rows = traces.taken([at for at, trace in enumerate(traces) if chosen is None or trace.id in chosen])
    return Keyed([trace.prompt.id for trace in rows], rows)


def _hold_out(pools: dict[str, RecordFile[Example]], count: int) -> RecordFile[Example]:
    """Take safety rows away to measure learnability on: the last by id, whole clusters."""
    if not count or "safety" not in pools:
        return RecordFile(Example)
    rows = pools["safety"]
    # By prompt: what is then drawn of the rest is about the same prompts in every format.
    names = [(example.cluster, example.origin.prompt, example.id) for example in rows]
    order = sorted(range(len(rows)), key=names.__getitem__)
    clusters = {names[at][0] for at in order[-count:]}
    pools["safety"] = rows.taken([at for at in order if names[at][0] not in clusters])
    return rows.taken([at for at in order if names[at][0] in clusters])


def train(task: Task) -> None:
    """Fine-tune a base on a mix: model/ (a checkpoint), metrics.jsonl."""
    from demur.train.settings import TrainSettings
    from demur.train.trainer import train as run

    settings = validate(TrainSettings, task.node.settings["train"], where=task.node.name)
    mixed = task.inputs["mix"]
    base: Path | str = task.files["base"] if "base" in task.files else task.node.settings["target"]["hub"]
    summary = run(
        mixed.folder / "examples.jsonl",
        base=base,
        out=task.draft.folder,
        settings=settings,
        held_out=mixed.folder / "held_out.jsonl",
        progress=task.progress,
    )
    task.draft.summary |= summary

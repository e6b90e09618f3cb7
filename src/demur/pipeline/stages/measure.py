"""The stages that measure: evaluate, attack, judge again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from demur import attack as attacks
from demur import bench as benches
from demur import judge as judges
from demur.attack.base import Attack
from demur.bench.load import load_prompts, read_prompts
from demur.bench.spec import Bench
from demur.generate import Flow, ask_and_judge, in_order
from demur.interfaces import Judge, Model
from demur.judge.base import require
from demur.models.decoding import preset
from demur.pipeline.run import Task
from demur.pipeline.stages.roles import role, target
from demur.pipeline.study import BenchUse
from demur.records import Failure, Prompt, Sampling, Trace, Verdict
from demur.settings import validate
from demur.storage.records_file import RecordFile
from demur.storage.reply_cache import ReplyCache

FILE = "attack_"
"""How a stage's files that its attack reads are named, in front of their own key."""


def evaluate(task: Task) -> None:
    """Run one benchmark under one attack: traces, verdicts, failures."""
    asyncio.run(_evaluate(task))


async def _evaluate(task: Task) -> None:
    settings = task.node.settings
    use = validate(BenchUse, settings["bench"], where=task.node.name)
    bench = benches.get_bench(use.name)
    sampling = sampling_of(bench, use)
    if "decoding" in settings:
        sampling = preset(settings["decoding"], sampling)
    questions = _questions(task, bench, use)
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(ReplyCache(task.journal))
        model = await target(task, journal, stack)
        model.check(sampling)
        judge = await _judge(task, bench, use, journal, stack)
        others = [await _judge(task, bench, use.model_copy(update={"part": part}), journal, stack) for part in use.also]
        attack = await _attack(task, use, model, journal, stack)
        attacked = await _attacked(attack, questions)
        total = len(attacked) * sampling.n
        flow = await ask_and_judge(
            model,
            [request for prompt in attacked for request in attacks.requests(attack, prompt, sampling)],
            [judge, *others],
            progress=lambda done, _, remark: task.progress(done, total, remark),
        )
    require(flow.verdicts, max_unscored=use.max_unscored, who=f"{bench.name}: the judge")
    # What an attacker could not write a prompt for is a failure like any other.
    flow.failures.extend(attack.failures)
    asked = [prompt.id for prompt in (*attacked, *(failure.prompt for failure in attack.failures))]
    for name, records in attack.records.items():
        task.draft.write(name, records)
    _write(task, asked, flow)


def _questions(task: Task, bench: Bench, use: BenchUse) -> list[Prompt]:
    """The benchmark's prompts, checked; or the rows that stand in for a release, which have nothing to be checked by."""
    if "stand_in" in task.files:
        return read_prompts(bench, task.files["stand_in"])[: use.limit]
    return load_prompts(bench, data=task.files.get("data"), limit=use.limit, seed=use.seed)


def _write(task: Task, asked: Iterable[str], flow: Flow) -> None:
    """Sort and write an evaluation; `asked` are the ids of its prompts, in their order."""
    traces, failures, verdicts = in_order(flow, asked)
    task.draft.write("traces", traces)
    task.draft.write("verdicts", verdicts)
    task.draft.write("failures", failures)
    task.draft.summary |= {"traces": len(traces), "failures": len(failures), "line": f"{len(traces):,} traces"}


def judge(task: Task) -> None:
    """Judge stored traces again, without asking the target: traces (as they were), verdicts."""
    asyncio.run(_judge_again(task))


async def _judge_again(task: Task) -> None:
    settings = task.node.settings
    traces = RecordFile(Trace, path=task.files["traces"])
    async with AsyncExitStack() as stack:
        journal = stack.enter_context(ReplyCache(task.journal))
        name = settings["judge"]
        model = await role(task, "judge_model", journal, stack) if judges.requires_model(name) else None
        who = judges.open_judge(name, model=model, query=settings.get("query"), part=settings.get("part"))
        verdicts = RecordFile(Verdict)
        async for verdict in who.verdicts(traces):
            verdicts.append(verdict)
            task.progress(len(verdicts), len(traces), name)
    require(verdicts, who=f"judge '{name}'")
    asked = (trace.prompt.id for trace in traces)
    _write(task, asked, Flow(traces, RecordFile(Failure), verdicts))


def sampling_of(bench: Bench, use: BenchUse) -> Sampling:
    """The protocol's sampling with the study's changes."""
    changes: dict[str, Any] = dict(use.sampling)
    if use.samples is not None:
        changes["n"] = use.samples
    return msgspec.convert(msgspec.to_builtins(bench.sampling) | changes, Sampling)


async def _judge(task: Task, bench: Bench, use: BenchUse, journal: ReplyCache, stack: AsyncExitStack) -> Judge:
    """The benchmark's judge, or the one that the study put in its place."""
    name = use.judge or bench.judge
    model = await role(task, "judge", journal, stack) if judges.requires_model(name) else None
    if use.judge is None:
        return judges.open_judge(name, model=model, query=bench.query, part=use.part or bench.part)
    return judges.open_judge(name, model=model, part=use.part)


async def _attack(task: Task, use: BenchUse, model: Model, journal: ReplyCache, stack: AsyncExitStack) -> Attack:
    """The attack of an evaluation, with the models that it needs."""
    models = {part: await role(task, name, journal, stack) for part, name in use.attack.parts.items()}
    return attacks.open_attack(
        use.attack,
        files={key[len(FILE) :]: path for key, path in task.files.items() if key.startswith(FILE)},
        target=model,
        models={part: found for part, found in models.items() if found is not None},
        progress=task.progress,
    )


async def _attacked(attack: Attack, questions: Sequence[Prompt]) -> list[Prompt]:
    """What an attack makes of the questions, in their order."""
    made = [prompt async for prompt in attack.attacked(questions)]
    place = {prompt.id: index for index, prompt in enumerate(questions)}
    return sorted(made, key=lambda prompt: (place[prompt.parent or prompt.id], prompt.attack, prompt.id))

"""What a report says, before anyone lays it out: a pure function of a run's stages.

Times, hosts and places are no part of it, so equal stages give equal bytes.
"""

import json
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from demur.records import Estimate, Record, Result, Trace
from demur.report import training
from demur.report.agreement import Agreement, Crossing, agreement, crossing
from demur.report.details import details
from demur.report.labels import Correction, corrections, notes
from demur.report.metrics import ALL, Cells, Column, averages, cells, headlines, results
from demur.report.patterns import PatternRate, measures, patterns
from demur.report.read import Evaluation, Run, read
from demur.report.remarks import doubted, incoherent, remarks
from demur.report.tests import Best, Finding, PairedTest, against_raw, best, declared, findings
from demur.storage.records_file import project

PAPERS = {"safety": 1000, "benign": 100, "train": {"lr": 5e-6, "epochs": 1}}
"""What an arm of another name is made of where it is the paper's row of its format: one point of each ablation is."""


class Subject(Record, frozen=True, kw_only=True):
    """What an arm is."""

    arm: str
    models: tuple[str, ...]  # Who answered: hashes of weights, or names with revisions or addresses
    base: str = ""
    made: str = ""  # What it was trained on
    seeds: tuple[int, ...] = ()


class Protocol(Record, frozen=True, kw_only=True):
    """How a benchmark was used."""

    bench: str
    version: int | None
    attack: str
    judges: tuple[str, ...]
    prompts: int
    replies: int
    seeds: int
    sampling: dict[str, Any] = {}
    paper: str = ""
    sha256: str = ""
    licence: str = ""
    file: str = ""


class Report(Record, frozen=True, kw_only=True):
    """All that is known of a run."""

    name: str
    question: str
    stand_in: bool
    arms: tuple[str, ...]
    results: tuple[Result, ...]
    subjects: tuple[Subject, ...] = ()
    columns: tuple[Column, ...] = ()
    """What the first table shows: each benchmark's headline metrics, of every judge that read the protocol's part."""
    claims: tuple[PairedTest, ...] = ()
    changes: tuple[PairedTest, ...] = ()  # Every trained arm against the one that is not
    best: tuple[Best, ...] = ()
    findings: tuple[Finding, ...] = ()
    bases: tuple[str, ...] = ()
    """Several bases that every arm was made from; numbers are over all, and of each under `ARM@BASE`."""
    incoherent: dict[str, Estimate] = {}  # Arms whose replies are garbled more often than `GARBLED`
    protocols: tuple[Protocol, ...] = ()
    patterns: tuple[PatternRate, ...] = ()
    measures: dict[str, dict[str, Estimate]] = {}  # What detectors count a trace besides the patterns, by set of traces
    funnels: dict[str, dict[str, int]] = {}
    repairs: dict[str, dict[str, int]] = {}
    learnability: tuple[training.Curve, ...] = ()
    learnt: tuple[training.Learnability, ...] = ()
    crossing: tuple[Crossing, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    judges: dict[str, str] = {}  # What has to be said beside the rates of a judge
    corrected: tuple[Correction, ...] = ()
    remarks: tuple[str, ...] = ()  # What servers do that has to be known beside the numbers
    mixes: dict[str, list[dict[str, Any]]] = {}
    published: dict[str, float] = {}  # The paper's numbers: `ARM|BENCH|ATTACK|METRIC` -> share
    stages: dict[str, str] = {}  # Every stage with its fingerprint

    def table(self) -> dict[tuple[str, ...], Estimate]:
        """Every number over all seeds, by arm, benchmark, attack, metric, judge and part."""
        return {place(r): r.estimate for r in self.results if r.seed is None}

    def find(self, arm: str, column: Column, seed: int | None = None) -> Estimate | None:
        """The number of an arm in a column."""
        at = (arm, *column[:5])
        return next((r.estimate for r in self.results if r.seed == seed and place(r) == at), None)


def place(r: Result) -> tuple[str, ...]:
    """Where a number stands: its arm, and what a column is known by."""
    return r.arm, r.bench, r.attack, r.metric, r.judge, r.part


def build(run: Path | Sequence[Path]) -> Report:
    """The report of a run, or of several laid side by side (arms are then named `RUN:arm`)."""
    folders = [run] if isinstance(run, Path) else list(run)
    runs = [read(folder) for folder in folders]
    return of_run(runs[0], labels=folders[0]) if len(runs) == 1 else of_run(merged(runs))


def merged(runs: Sequence[Run]) -> Run:
    """Several runs as one."""
    names = named(runs)
    evaluations = [e._replace(arm=f"{n}:{e.arm}") for n, run in zip(names, runs, strict=True) for e in run.evaluations]
    study = {"name": " and ".join(names), "stand_in": any(run.study.get("stand_in") for run in runs)}
    return Run(runs[0].folder, study, [stage for run in runs for stage in run.stages], evaluations)


def named(runs: Sequence[Run]) -> list[str]:
    """What each of several runs is called: its study, else its folder, else its path."""
    for names in ([str(run.study.get("name")) for run in runs], [run.folder.name for run in runs]):
        if len(set(names)) == len(names):
            return names
    return [str(run.folder) for run in runs]


def of_run(run: Run, *, labels: Path | None = None) -> Report:
    """The report of a run that was read; `labels`: the folder in which people labelled its replies."""
    copies = [e for e in run.evaluations if run.split(e.arm)[1]]
    single, run = run, run.pooled()
    found = cells(run.evaluations)
    columns = headlines(run.evaluations, found)
    # What an earlier command left in the folder is averaged with nothing.
    places = {(e.bench, e.attack) for e in run.evaluations if run.asked(e)}
    asked = [column for column in columns if column[:2] in places or column.metric == "pairs"]
    numbers = [*results(found), *averages(found, asked)]
    numbers += [*results(cells(run.evaluations, by_category=True)), *results(cells(copies)), *details(single)]
    broken, taken = incoherent(found), tuple(training.learnability(single))
    corrected = tuple(corrections(labels, found, columns)) if labels else ()
    return Report(
        name=str(run.study.get("name") or "run"),
        question=str(run.study.get("question") or ""),
        stand_in=bool(run.study.get("stand_in")),
        arms=tuple(found),
        results=tuple(numbers),
        subjects=tuple(_subjects(run)),
        columns=tuple(columns),
        claims=tuple(doubted(declared(found, columns, run.study.get("compare") or []), broken)),
        changes=tuple(against_raw(found, columns, _untrained(run))),
        best=tuple(best({arm: own for arm, own in found.items() if arm not in broken}, columns)),
        incoherent=broken,
        bases=tuple(str(base) for base in run.study.get("bases") or ()),
        findings=tuple(findings(run, found, taken, broken)),
        protocols=tuple(_protocols(run)),
        patterns=tuple(patterns(run)),
        measures=measures(run),
        funnels=training.funnels(run),
        repairs=training.repairs(run),
        learnability=tuple(training.curves(run)),
        learnt=taken,
        crossing=tuple(crossing(run.evaluations)),
        agreement=tuple(agreement(run.evaluations)),
        judges=notes((column.judge for column in columns), run.stages, corrected),
        corrected=corrected,
        remarks=tuple(dict.fromkeys(remarks(run.evaluations, columns))),
        mixes=training.mixes(run),
        published=published(run.study, found),
        stages={stage.manifest.name: stage.manifest.fingerprint for stage in run.stages},
    )


def _untrained(run: Run) -> str:
    """The arm that is the base as it is; empty: there is none, or several."""
    arms = run.study.get("arms") or {}
    found = [arm for arm, settings in arms.items() if not settings]
    return found[0] if len(found) == 1 and len(arms) > 1 else ""


def _subjects(run: Run) -> list[Subject]:
    """What every arm is."""
    found, usual = [], ""
    if run.of_kind("train"):
        from demur.pipeline.study import Study

        usual = str(Study.model_fields["base"].default)
    for arm in dict.fromkeys(e.arm for e in run.evaluations):
        own = [e for e in run.evaluations if e.arm == arm]
        arms = run.study.get("arms") or {}
        settings = arms.get(arm) or {}
        parts = [_component(share, settings[share]) for share in ("safety", "maths", "benign") if settings.get(share)]
        made = ", ".join(part for part in (str(settings.get("format") or ""), *parts) if part)
        named = settings.get("base") or run.study.get("bases") or run.study.get("base") or usual
        names = named if arm in arms else ""  # of an earlier command with the same folder
        base = ", ".join(_address(run.study, name) for name in ([names] if isinstance(names, str) else names))
        seeds = sorted({e.seed for e in own if e.seed is not None})
        found.append(Subject(arm=arm, models=tuple(_models(own)), base=base, made=made, seeds=tuple(seeds)))
    return found


def _component(share: str, settings: int | dict[str, Any]) -> str:
    """How many rows of a mixture component, and of which file where one is named."""
    if isinstance(settings, int):
        return f"{settings} {share}"
    return " ".join(str(part) for part in (settings.get("n"), share, settings.get("file")) if part)


def _address(study: dict[str, Any], name: str) -> str:
    """What a model's name in the study stands for: where it is reached and, of several there, which."""
    model = (study.get("models") or {}).get(name)
    if isinstance(model, dict):
        places = [model[key] for key in ("url", "path", "hub", "script", "model") if model.get(key)]
        return " ".join(", ".join(one) if isinstance(one, list) else str(one) for one in places) or name
    return str(model or name)


def _models(evaluations: Sequence[Evaluation]) -> list[str]:
    """Who answered, by the first reply of each stage."""
    stages = {id(e.stage): e.stage for e in evaluations if e.stage is not None}
    firsts = (next(project(stage.folder / "traces.jsonl", Trace, "model"), ("",))[0] for stage in stages.values())
    return [name for name in dict.fromkeys(firsts) if name]


def _protocols(run: Run) -> list[Protocol]:
    """How each benchmark was used, over all arms."""
    groups: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in run.evaluations:
        groups.setdefault((evaluation.bench, evaluation.attack), []).append(evaluation)
    rows = []
    for (name, attack), members in groups.items():
        bench, stage = members[0].protocol, members[0].stage
        use = stage.manifest.settings.get("bench") if stage else None
        sampling = (use.get("sampling") if isinstance(use, dict) else None) or {}
        changed = {key: value for key, value in sampling.items() if value is not None}
        rows.append(Protocol(
            bench=name, version=bench.version if bench else None, attack=attack,
            judges=tuple(dict.fromkeys(f"{j} ({p})" for m in members for j, p in m.judges)),
            prompts=max(len({row.prompt for row in m.rows}) for m in members),
            replies=sum(len(m.rows) for m in members), seeds=len({m.seed for m in members if m.seed is not None}) or 1,
            sampling=plain(bench.sampling) | changed if bench else {},
            paper=bench.paper if bench else "", sha256=bench.sha256 if bench else "", licence=bench.licence if bench else "", file=stage.manifest.inputs.get("file:data", "") if stage else "",
        ))  # fmt: skip
    return rows


def plain(record: Record) -> dict[str, Any]:
    """A record as plain data, defaults left out."""
    data: dict[str, Any] = msgspec.to_builtins(record)
    return data


def published(study: dict[str, Any], found: Cells) -> dict[str, float]:
    """What the paper (arXiv 2505.15404 v2, tables 1 to 3) printed for the arms and columns of a run: `ARM|BENCH|ATTACK|METRIC` -> share."""
    table = json.loads(files("demur.report").joinpath("published.json").read_text())
    places = [tuple(place) for place in table["columns"]]
    own = table["rows"].get(str(study.get("base", "")).rstrip("/").rpartition("/")[2], {})
    numbers: dict[str, float] = {}
    for arm, columns in found.items():
        values = own.get(_row(arm, study, own), ())
        theirs = {at: value / 100 for at, value in zip(places, values, strict=bool(values))}
        asked = dict.fromkeys((c.bench, c.attack, c.metric) for c in columns)
        there = {at: theirs[key] for at in asked if (key := (at[0], at[1].partition("@")[0], at[2])) in theirs}
        whole = {at: value for at, value in theirs.items() if at[0] == ALL and there}
        numbers |= {"|".join((arm, *at)): value for at, value in (there | whole).items()}
    return numbers


def _row(arm: str, study: dict[str, Any], rows: Collection[str]) -> str:
    """The paper's row of an arm: by its name, or by what it is made of; of another teacher the row that names it."""
    settings = (study.get("arms") or {}).get(arm) or {}
    same = all(settings.get(key) == PAPERS[key] for key in ("safety", "benign"))
    train = {**(study.get("train") or {}), **(settings.get("train") or {})}
    same &= all(train.get(key, value) == value for key, value in PAPERS["train"].items()) and "repair" not in settings  # type: ignore[attr-defined]
    name = str(settings.get("format")) if same and arm not in rows else arm
    teachers = (study.get("distil") or {}).get("teachers") or {}
    teacher = (study.get("models") or {}).get(teachers.get(name, teachers.get("default", "teacher"))) or {}
    others = (row for row in rows if row.startswith(f"{name}_"))
    return next((row for row in others if row.removeprefix(f"{name}_") in str(teacher)), name)

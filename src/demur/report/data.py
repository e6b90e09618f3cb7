"""What a report says, before anyone lays it out: a pure function of a run's stages.

Times, hosts and places are no part of it, so equal stages give equal bytes.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from demur.records import Estimate, Record, Result, Trace
from demur.report import training
from demur.report.agreement import Agreement, Crossing, agreement, crossing
from demur.report.details import details
from demur.report.labels import Correction, corrections, notes
from demur.report.metrics import ALL, Cells, Column, averages, cells, headlines, results
from demur.report.patterns import PatternRate, measures, patterns
from demur.report.read import Evaluation, Run, read, study_of
from demur.report.tests import Best, Finding, PairedTest, against_raw, best, declared, doubted, findings, incoherent
from demur.report.training import accounts, in_order
from demur.storage.artifacts import Artifact
from demur.storage.records_file import project

SAME = 0.95  # From this share of prompts on whose samples are all the same, a server's samples do not differ
MIXED, TRAINED = {"safety": 1000, "benign": 100}, {"lr": 5e-6, "epochs": 1}
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
    """Several runs as one. The names of arms and stages begin with their run's."""
    names = run_names([run.folder for run in runs])
    named = list(zip(names, runs, strict=True))
    evaluations = [e._replace(arm=f"{name}:{e.arm}") for name, run in named for e in run.evaluations]
    stages = [_renamed(stage, name) for name, run in named for stage in run.stages]
    study = {"name": " and ".join(names), "stand_in": any(run.study.get("stand_in") for run in runs)}
    return Run(runs[0].folder, study, stages, evaluations)


def run_names(folders: Sequence[Path]) -> list[str]:
    """What runs side by side are called: their studies' names, or else their folders', or else their paths."""
    studies = [str(study_of(folder).get("name")) for folder in folders]
    for names in (studies, [folder.name for folder in folders]):
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _renamed(stage: Artifact, run: str) -> Artifact:
    """A stage whose name and arm begin with its run's: two runs may have stages of the same name."""
    stage, settings = copy(stage), stage.manifest.settings
    arm = {"arm": f"{run}:{settings['arm']}"} if settings.get("arm") else {}
    stage.manifest = replace(stage.manifest, name=f"{run}:{stage.manifest.name}", settings=settings | arm)
    return stage


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
    arms = run.study.get("arms") or {}
    as_it_is = [arm for arm, settings in arms.items() if not settings]
    raw = as_it_is[0] if len(as_it_is) == 1 < len(arms) else ""
    corrected = tuple(corrections(labels, found, columns)) if labels else ()
    funnels = accounts(run, "distil", "funnel").items()
    return Report(
        name=str(run.study.get("name") or "run"), question=str(run.study.get("question") or ""),
        stand_in=bool(run.study.get("stand_in")), bases=tuple(str(base) for base in run.study.get("bases") or ()),
        arms=tuple(found), results=tuple(numbers), subjects=tuple(_subjects(run)), columns=tuple(columns),
        claims=tuple(doubted(declared(found, columns, run.study.get("compare") or []), broken)),
        changes=tuple(against_raw(found, columns, raw)), incoherent=broken,
        best=tuple(best({arm: own for arm, own in found.items() if arm not in broken}, columns)),
        findings=tuple(findings(run, found, taken, broken)), protocols=tuple(_protocols(run)),
        patterns=tuple(patterns(run)), measures=measures(run), repairs=accounts(run, "repair", "counts"),
        funnels={n: in_order(own, "asked", "answered", "failed") for n, own in funnels},
        learnability=tuple(training.curves(run)), learnt=taken,
        crossing=tuple(crossing(run.evaluations)), agreement=tuple(agreement(run.evaluations)),
        judges=notes((column.judge for column in columns), run.stages, corrected), corrected=corrected,
        remarks=tuple(dict.fromkeys(remarks(run.evaluations, columns))), published=published(run.study, found),
        mixes={n: [in_order(row, "share", "given") for row in own] for n, own in accounts(run, "mix", "table").items()},
        stages={stage.manifest.name: stage.manifest.fingerprint for stage in run.stages},
    )  # fmt: skip


def _subjects(run: Run) -> Iterator[Subject]:
    """What every arm is."""
    arms, usual = run.study.get("arms") or {}, ""
    if run.of_kind("train"):
        from demur.pipeline.study import Study

        usual = str(Study.model_fields["base"].default)
    for arm in dict.fromkeys(e.arm for e in run.evaluations):
        own, settings = [e for e in run.evaluations if e.arm == arm], arms.get(arm) or {}
        made = [str(settings.get("format") or "")]
        for name in ("safety", "maths", "benign"):
            share = settings.get(name) or {}
            parts = (share, name) if isinstance(share, int) else (share.get("n"), name, share.get("file"))
            made.append(" ".join(str(part) for part in parts if part) if share else "")
        named = settings.get("base") or run.study.get("bases") or run.study.get("base") or usual
        names = named if arm in arms else ""  # of an earlier command with the same folder
        base = ", ".join(_address(run.study, name) for name in ([names] if isinstance(names, str) else names))
        stages = {id(e.stage): e.stage for e in own if e.stage is not None}.values()
        models = (next(project(stage.folder / "traces.jsonl", Trace, "model"), ("",))[0] for stage in stages)
        yield Subject(
            arm=arm, models=tuple(filter(None, dict.fromkeys(models))), base=base, made=", ".join(filter(None, made)),
            seeds=tuple(sorted({e.seed for e in own if e.seed is not None})),
        )  # fmt: skip


def _address(study: dict[str, Any], name: str) -> str:
    """What a model's name in the study stands for: where it is reached and, of several there, which."""
    model = (study.get("models") or {}).get(name)
    if isinstance(model, dict):
        places = [model[key] for key in ("url", "path", "hub", "script", "model") if model.get(key)]
        return " ".join(", ".join(one) if isinstance(one, list) else str(one) for one in places) or name
    return str(model or name)


def _protocols(run: Run) -> Iterator[Protocol]:
    """How each benchmark was used, over all arms."""
    groups: dict[tuple[str, str], list[Evaluation]] = {}
    for evaluation in run.evaluations:
        groups.setdefault((evaluation.bench, evaluation.attack), []).append(evaluation)
    for (name, attack), members in groups.items():
        bench, stage = members[0].protocol, members[0].stage
        use = stage.manifest.settings.get("bench") if stage else None
        sampling = (use.get("sampling") if isinstance(use, dict) else None) or {}
        known: dict[str, Any] = {"version": None}
        if bench:
            changed = {key: value for key, value in sampling.items() if value is not None}
            known = {key: getattr(bench, key) for key in ("version", "paper", "sha256", "licence")}
            known["sampling"] = plain(bench.sampling) | changed
        yield Protocol(
            bench=name, attack=attack, judges=tuple(dict.fromkeys(f"{j} ({p})" for m in members for j, p in m.judges)),
            prompts=max(len({row.prompt for row in m.rows}) for m in members),
            replies=sum(len(m.rows) for m in members), seeds=len({m.seed for m in members if m.seed is not None}) or 1,
            file=stage.manifest.inputs.get("file:data", "") if stage else "", **known,
        )  # fmt: skip


def remarks(evaluations: Sequence[Evaluation], columns: Collection[Column]) -> Iterator[str]:
    """What is said of servers (all samples of a prompt are the same, a hidden template opens the thinking), and of judges without a column."""
    shown = {(c.bench, c.judge, c.part) for c in columns}
    for e in evaluations:
        for judge, part in e.judges:
            if part == e.judges[0][1] and (e.bench, judge, part) not in shown:
                yield f"{judge} ({part}) read {e.bench} and has no column: its labels do not tell apart what the columns count"
        at = f"{e.arm}, {e.bench}" + ("" if e.attack == "none" else f" under {e.attack}")
        texts: dict[str, list[int]] = {}
        for row in e.rows:
            if row.text:
                texts.setdefault(row.prompt, []).append(row.text)
        if gone := Counter(row.lost for row in e.rows if row.outcome is None and row.lost):
            why = ", ".join(f"{count:,} {kind}" for kind, count in gone.items())
            yield f"{at}: {gone.total():,} of {len(e.rows):,} requests got no reply, and are unscored: {why}"
        several = [own for own in texts.values() if len(own) > 1]
        if several and sum(len(set(own)) == 1 for own in several) >= SAME * len(several):
            yield f"{at}: this server's samples do not differ; the replies to a prompt count once"
        if again := e.stage and e.stage.manifest.summary.get("filed_again"):
            yield f"{at}: replies filed again as cut in the thinking, since the server's template opens it: {again:,}"


def plain(record: Record) -> dict[str, Any]:
    """A record as plain data, defaults left out."""
    data: dict[str, Any] = msgspec.to_builtins(record)
    return data


def published(study: dict[str, Any], found: Cells) -> dict[str, float]:
    """What the paper (arXiv 2505.15404 v2, tables 1 to 3) printed for the arms and columns of a run: `ARM|BENCH|ATTACK|METRIC` -> share.

    An arm's row is the one of its name, or of its format where it is made as the paper's; of another teacher the one that names it.
    """
    table = json.loads(files("demur.report").joinpath("published.json").read_text())
    places = [tuple(place) for place in table["columns"]]
    rows = table["rows"].get(str(study.get("base", "")).rstrip("/").rpartition("/")[2], {})
    teachers = (study.get("distil") or {}).get("teachers") or {}
    numbers: dict[str, float] = {}
    for arm, columns in found.items():
        settings = (study.get("arms") or {}).get(arm) or {}
        train = TRAINED | (study.get("train") or {}) | (settings.get("train") or {})
        same = "repair" not in settings and (settings | MIXED, train | TRAINED) == (settings, train)
        row = str(settings.get("format")) if same and arm not in rows else arm
        teacher = str((study.get("models") or {}).get(teachers.get(row, teachers.get("default", "teacher"))) or {})
        named = (name for name in rows if name.startswith(f"{row}_") and name.removeprefix(f"{row}_") in teacher)
        values = rows.get(next(named, row), ())
        theirs = {at: value / 100 for at, value in zip(places, values, strict=bool(values))}
        asked = dict.fromkeys((c.bench, c.attack, c.metric) for c in columns)
        there = {at: theirs[key] for at in asked if (key := (at[0], at[1].partition("@")[0], at[2])) in theirs}
        whole = {at: value for at, value in theirs.items() if at[0] == ALL and there}
        numbers |= {"|".join((arm, *at)): value for at, value in (there | whole).items()}
    return numbers

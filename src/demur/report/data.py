"""The contents of a report before layout: a pure function of a run's stages, without times, hosts or paths."""

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
from demur.report.read import Evaluation, Run, grouped, read, study_of
from demur.report.tests import Best, Finding, PairedTest, against_raw, best, declared, doubted, findings, incoherent
from demur.report.training import accounts, in_order
from demur.storage.artifacts import Artifact
from demur.storage.records_file import project

SAME = 0.95  # Share of prompts with identical samples from which on a server's samples are said not to differ
MIXED, TRAINED = {"safety": 1000, "benign": 100}, {"lr": 5e-6, "epochs": 1}
"""Mixture and training of the paper's rows: an arm of another name with these stands for the row of its format."""


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
    """Columns of the first table: each benchmark's headline metrics, by every judge that read the protocol's part."""
    claims: tuple[PairedTest, ...] = ()
    changes: tuple[PairedTest, ...] = ()  # Every trained arm against the untrained one
    best: tuple[Best, ...] = ()
    findings: tuple[Finding, ...] = ()
    bases: tuple[str, ...] = ()
    """The bases of a study with several: an arm's numbers are over all of them, those of each are under `ARM@BASE`."""
    incoherent: dict[str, Estimate] = {}  # Arms garbled in more than `GARBLED` of their replies
    protocols: tuple[Protocol, ...] = ()
    patterns: tuple[PatternRate, ...] = ()
    measures: dict[str, dict[str, Estimate]] = {}  # Detectors' other measures of a trace, by set of traces
    funnels: dict[str, dict[str, int]] = {}
    repairs: dict[str, dict[str, int]] = {}
    learnability: tuple[training.Curve, ...] = ()
    learnt: tuple[training.Learnability, ...] = ()
    crossing: tuple[Crossing, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    judges: dict[str, str] = {}  # A note on the rates of each judge
    corrected: tuple[Correction, ...] = ()
    remarks: tuple[str, ...] = ()  # Notes on servers and judges, to be read with the numbers
    mixes: dict[str, list[dict[str, Any]]] = {}
    published: dict[str, float] = {}  # The paper's numbers: `ARM|BENCH|ATTACK|METRIC` -> share
    stages: dict[str, str] = {}  # Every stage with its fingerprint

    def table(self) -> dict[tuple[str, ...], Estimate]:
        """Every number over all seeds, by arm, benchmark, attack, metric, judge and part."""
        return {place(r): r.estimate for r in self.results if r.seed is None}

    def find(self, arm: str, column: Column, seed: int | None = None) -> Estimate | None:
        """The number of an arm in a column."""
        key = (arm, *column[:5])
        return next((r.estimate for r in self.results if r.seed == seed and place(r) == key), None)


def place(r: Result) -> tuple[str, ...]:
    """The key of a number: its arm, and what identifies its column."""
    return r.arm, r.bench, r.attack, r.metric, r.judge, r.part


def build(run: Path | Sequence[Path]) -> Report:
    """The report of a run, or of several side by side (arms are then named `RUN:arm`)."""
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
    candidates = [str(study_of(folder).get("name")) for folder in folders], [folder.name for folder in folders]
    return next((names for names in candidates if len(set(names)) == len(names)), [str(folder) for folder in folders])


def _renamed(stage: Artifact, run: str) -> Artifact:
    """A stage whose name and arm begin with its run's: two runs may have stages of the same name."""
    stage, settings = copy(stage), stage.manifest.settings
    arm = {"arm": f"{run}:{settings['arm']}"} if settings.get("arm") else {}
    stage.manifest = replace(stage.manifest, name=f"{run}:{stage.manifest.name}", settings=settings | arm)
    return stage


def of_run(run: Run, *, labels: Path | None = None) -> Report:
    """The report of a run that was read; `labels`: the run's folder, where people labelled its replies."""
    copies = [e for e in run.evaluations if run.split(e.arm)[1]]
    unpooled, run = run, run.pooled()
    table = cells(run.evaluations)
    columns = headlines(run.evaluations, table)
    # Evaluations of an earlier command in the same folder enter no average.
    places = {(e.bench, e.attack) for e in run.evaluations if run.asked(e)}
    asked = [column for column in columns if column[:2] in places or column.metric == "pairs"]
    numbers = [*results(table), *averages(table, asked)]
    numbers += [*results(cells(run.evaluations, by_category=True)), *results(cells(copies)), *details(unpooled)]
    garbled, learnt = incoherent(table), tuple(training.learnability(unpooled))
    arms = run.study.get("arms") or {}
    untrained = [arm for arm, settings in arms.items() if not settings]
    raw = untrained[0] if len(untrained) == 1 < len(arms) else ""
    corrected = tuple(corrections(labels, table, columns)) if labels else ()
    funnels, mixes = accounts(run, "distil", "funnel"), accounts(run, "mix", "table")
    return Report(
        name=str(run.study.get("name") or "run"), question=str(run.study.get("question") or ""),
        stand_in=bool(run.study.get("stand_in")), bases=tuple(str(base) for base in run.study.get("bases") or ()),
        arms=tuple(table), results=tuple(numbers), subjects=tuple(_subjects(run)), columns=tuple(columns),
        claims=tuple(doubted(declared(table, columns, run.study.get("compare") or []), garbled)),
        changes=tuple(against_raw(table, columns, raw)), incoherent=garbled,
        best=tuple(best({arm: table[arm] for arm in table if arm not in garbled}, columns)),
        findings=tuple(findings(run, table, learnt, garbled)), protocols=tuple(_protocols(run)),
        patterns=tuple(patterns(run)), measures=measures(run), repairs=accounts(run, "repair", "counts"),
        funnels={name: in_order(row, "asked", "answered", "failed") for name, row in funnels.items()},
        learnability=tuple(training.curves(run)), learnt=learnt,
        crossing=tuple(crossing(run.evaluations)), agreement=tuple(agreement(run.evaluations)),
        judges=notes((column.judge for column in columns), run.stages, corrected), corrected=corrected,
        remarks=tuple(dict.fromkeys(remarks(run.evaluations, columns))), published=published(run.study, table),
        mixes={name: [in_order(row, "share", "given") for row in rows] for name, rows in mixes.items()},
        stages={stage.manifest.name: stage.manifest.fingerprint for stage in run.stages},
    )  # fmt: skip


def _subjects(run: Run) -> Iterator[Subject]:
    """What every arm is."""
    arms, default = run.study.get("arms") or {}, ""
    if run.of_kind("train"):
        from demur.pipeline.study import Study

        default = str(Study.model_fields["base"].default)
    for arm in dict.fromkeys(e.arm for e in run.evaluations):
        evaluations, settings = [e for e in run.evaluations if e.arm == arm], arms.get(arm) or {}
        parts = [str(settings.get("format") or "")]
        for name in ("safety", "maths", "benign"):
            share = settings.get(name) or {}
            words = (share, name) if isinstance(share, int) else (share.get("n"), name, share.get("file"))
            parts.append(" ".join(str(word) for word in words if word) if share else "")
        named = settings.get("base") or run.study.get("bases") or run.study.get("base") or default
        bases = named if arm in arms else ""  # An earlier command with the same folder left the other arms
        base = ", ".join(_address(run.study, name) for name in ([bases] if isinstance(bases, str) else bases))
        stages = {id(e.stage): e.stage for e in evaluations if e.stage is not None}.values()
        models = (next(project(stage.folder / "traces.jsonl", Trace, "model"), ("",))[0] for stage in stages)
        yield Subject(
            arm=arm, models=tuple(filter(None, dict.fromkeys(models))), base=base, made=", ".join(filter(None, parts)),
            seeds=tuple(sorted({e.seed for e in evaluations if e.seed is not None})),
        )  # fmt: skip


def _address(study: dict[str, Any], name: str) -> str:
    """Where a study's model is reached and, of several there, its name."""
    model = (study.get("models") or {}).get(name)
    if isinstance(model, dict):
        values = [model[key] for key in ("url", "path", "hub", "script", "model") if model.get(key)]
        return " ".join(", ".join(value) if isinstance(value, list) else str(value) for value in values) or name
    return str(model or name)


def _protocols(run: Run) -> Iterator[Protocol]:
    """How each benchmark was used, over all arms."""
    for (name, attack), members in grouped(run.evaluations, lambda e: (e.bench, e.attack)).items():
        bench, stage = members[0].protocol, members[0].stage
        use = stage.manifest.settings.get("bench") if stage else None
        sampling = (use.get("sampling") if isinstance(use, dict) else None) or {}
        known: dict[str, Any] = {"version": None}
        if bench:
            changed = {key: value for key, value in sampling.items() if value is not None}
            known = {key: getattr(bench, key) for key in ("version", "paper", "sha256", "licence")}
            known["sampling"] = plain(bench.sampling) | changed
        judges = dict.fromkeys(f"{judge} ({part})" for e in members for judge, part in e.judges)
        yield Protocol(
            bench=name, attack=attack, judges=tuple(judges), replies=sum(len(e.rows) for e in members),
            prompts=max(len({row.prompt for row in e.rows}) for e in members),
            seeds=len({e.seed for e in members if e.seed is not None}) or 1,
            file=stage.manifest.inputs.get("file:data", "") if stage else "", **known,
        )  # fmt: skip


def remarks(evaluations: Sequence[Evaluation], columns: Collection[Column]) -> Iterator[str]:
    """Notes on judges without a column, lost requests, servers with identical samples, and replies filed again."""
    shown = {(c.bench, c.judge, c.part) for c in columns}
    for e in evaluations:
        for judge, part in e.judges:
            if part == e.judges[0][1] and (e.bench, judge, part) not in shown:
                note = f"{judge} ({part}) read {e.bench} and has no column"
                yield f"{note}: its labels do not distinguish what the columns count"
        name = f"{e.arm}, {e.bench}" + ("" if e.attack == "none" else f" under {e.attack}")
        if lost := Counter(row.lost for row in e.rows if row.outcome is None and row.lost):
            why = ", ".join(f"{count:,} {kind}" for kind, count in lost.items())
            yield f"{name}: {lost.total():,} of {len(e.rows):,} requests got no reply, and are unscored: {why}"
        prompts = grouped((row for row in e.rows if row.text), lambda row: row.prompt).values()
        several = [{row.text for row in rows} for rows in prompts if len(rows) > 1]
        if several and sum(len(texts) == 1 for texts in several) >= SAME * len(several):
            yield f"{name}: this server's samples do not differ; the replies to a prompt count once"
        if again := e.stage and e.stage.manifest.summary.get("filed_again"):
            yield f"{name}: replies filed again as cut in the thinking, since the server's template opens it: {again:,}"


def plain(record: Record) -> dict[str, Any]:
    """A record as plain data, defaults left out."""
    data: dict[str, Any] = msgspec.to_builtins(record)
    return data


def published(study: dict[str, Any], table: Cells) -> dict[str, float]:
    """What the paper (arXiv 2505.15404 v2, tables 1 to 3) printed for a run: `ARM|BENCH|ATTACK|METRIC` -> share.

    An arm's row is that of its name, or of its format where it is made as the paper's and the teacher is the row's.
    """
    printed = json.loads(files("demur.report").joinpath("published.json").read_text())
    places = [tuple(place) for place in printed["columns"]]
    rows = printed["rows"].get(str(study.get("base", "")).rstrip("/").rpartition("/")[2], {})
    teachers = (study.get("distil") or {}).get("teachers") or {}
    numbers: dict[str, float] = {}
    for arm, columns in table.items():
        settings = (study.get("arms") or {}).get(arm) or {}
        train = TRAINED | (study.get("train") or {}) | (settings.get("train") or {})
        same = "repair" not in settings and (settings | MIXED, train | TRAINED) == (settings, train)
        row = str(settings.get("format")) if same and arm not in rows else arm
        teacher = str((study.get("models") or {}).get(teachers.get(row, teachers.get("default", "teacher"))) or {})
        named = (name for name in rows if name.startswith(f"{row}_") and name.removeprefix(f"{row}_") in teacher)
        values = rows.get(next(named, row), ())
        shares = {place: value / 100 for place, value in zip(places, values, strict=bool(values))}
        asked = dict.fromkeys((c.bench, c.attack, c.metric) for c in columns)
        matches = {at: shares[key] for at in asked if (key := (at[0], at[1].partition("@")[0], at[2])) in shares}
        means = {place: value for place, value in shares.items() if place[0] == ALL and matches}
        numbers |= {"|".join((arm, *place)): value for place, value in (matches | means).items()}
    return numbers

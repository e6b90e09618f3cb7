"""Reads a run: which stages belong to the present study, and of each reply what numbers need, without its text."""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import msgspec

from demur import stats
from demur.bench import get_bench
from demur.bench.spec import Bench
from demur.errors import UserError
from demur.records import Failure, Intent, Outcome, Part, Trace, Verdict
from demur.settings import read_yaml
from demur.storage.artifacts import Artifact, artifacts
from demur.storage.records_file import project

T = TypeVar("T")
K = TypeVar("K")
SHARED = 10_000  # Above so many different verdicts, those with scores are no longer shared
ENOUGH, AGREED = 30, 0.8
"""Labels of an arm, and share of agreement with them, that a judge needs for rates of classes it often confuses."""
PROMPT = tuple(f"prompt.{name}" for name in ("id", "parent", "cluster", "intent", "category", "attack", "pair"))
REPLY = (*PROMPT, "id", "sample", "outcome", "tokens_out", "tokens_thinking", "answer", "finish")


class Judged(NamedTuple):
    """A judge's verdict on a reply."""

    label: str | None
    score: float | None = None


JudgePart = tuple[str, Part]  # A judge, and the part of the reply that it read
Verdicts = dict[JudgePart, Judged]


class Row(msgspec.Struct, gc=False):
    """What numbers need of a reply, or of a request that got none (`outcome` is then `None`)."""

    prompt: str  # Id of the prompt that was sent
    question: str  # Id of the question behind it: replies of two arms are paired by it
    cluster: str
    intent: Intent
    category: str = ""
    attack: str = ""
    pair: str = ""  # Shared by a harmful prompt and its harmless twin
    id: str = ""
    sample: int = 0
    outcome: Outcome | None = None
    tokens_out: int | None = None
    tokens_thinking: int | None = None
    lost: str = ""  # Why there is no reply or no answer; empty where there is one. Of a pair: that one side lost it
    text: int = 0  # Hash of the reply, where several were drawn for a prompt
    verdicts: Verdicts = {}

    @property
    def truncated(self) -> bool:
        """Whether a budget ended the text."""
        return self.outcome in ("cut_in_thinking", "cut_in_answer")


def row_of(prompt: str, parent: str, cluster: str, intent: Intent, *rest: Any) -> Row:
    """A row from the fields of `REPLY`, or the first of them. Strings that many rows share are kept once in memory."""
    category, attack, pair, *reply = rest
    question, cluster = parent or prompt, prompt if cluster == prompt else cluster
    if len(reply) > 2:
        *reply, answer, finish = reply
        reasons = {
            "filtered": finish == "content_filter", "ran out of time": finish == "timeout",
            "truncated in thinking": reply[2] == "cut_in_thinking", "ended in thinking": answer is None,
            "empty": not (answer or "").strip(), "malformed": reply[2] == "malformed",
        }  # fmt: skip
        reply.append(next((reason for reason, applies in reasons.items() if applies), ""))
    return Row(prompt, question, cluster, intent, sys.intern(category), sys.intern(attack), pair, *reply)


class VerdictIndex:
    """Verdicts by trace. Traces with equal verdicts share one mapping, which must not be changed."""

    def __init__(self) -> None:
        self._of: dict[int, Verdicts] = {}
        self._known: dict[tuple[object, ...], Verdicts] = {}
        self.judges: dict[JudgePart, None] = {}

    def add(self, trace: str, by: JudgePart, judged: Judged) -> None:
        """Add a verdict; it replaces an earlier one of the same judge on the same part."""
        self.judges[by] = None
        before = self._of.get(hash(trace))
        key = (id(before) if before else None, by, judged)
        if (verdicts := self._known.get(key)) is None:
            verdicts = {**(before or {}), by: judged}
            if judged.score is None or len(self._known) < SHARED:
                self._known[key] = verdicts
        self._of[hash(trace)] = verdicts

    def read(self, path: Path) -> None:
        """Add the verdicts of a file."""
        for trace, judge, part, label, score in project(path, Verdict, "trace", "judge", "part", "label", "score"):
            self.add(trace, (sys.intern(judge), part), Judged(label, score))

    def of(self, trace: str) -> Verdicts:
        """The verdicts on a trace."""
        return self._of.get(hash(trace), {})


class Evaluation(NamedTuple):
    """One arm, one seed, one benchmark under one attack."""

    arm: str
    seed: int | None
    bench: str
    attack: str
    rows: list[Row]
    judges: tuple[JudgePart, ...]  # The protocol's own comes first
    protocol: Bench | None = None  # `None`: the benchmark is no longer known here
    stage: Artifact | None = None
    base: str = ""  # Which of a study's several bases, where the arms on them are pooled
    fixed: bool = False  # Whether the study treats the benchmark's prompts as the whole population
    calibrated: frozenset[str] = frozenset()  # Judges that labels of this arm show to distinguish their classes


class Run(NamedTuple):
    """A run's folder as the report sees it."""

    folder: Path
    study: dict[str, Any]
    stages: list[Artifact]
    evaluations: list[Evaluation]

    def pooled(self) -> Self:
        """The same run with the copies of an arm on several bases, `ARM@BASE`, pooled as that arm."""
        named = [(e, *self.split(e.arm)) for e in self.evaluations]
        return self._replace(evaluations=[e._replace(arm=arm, base=base) for e, arm, base in named])

    def split(self, arm: str) -> tuple[str, str]:
        """Arm and base of a copy; the base of any other arm is empty."""
        name, at, base = arm.rpartition("@")
        bases = {Path(base).name for base in self.study.get("bases") or ()}
        return (name, base) if at and base in bases else (arm, "")

    def asked(self, e: Evaluation) -> bool:
        """Whether the present study asks for an evaluation; otherwise an earlier command left it in the folder."""
        uses = self.study.get("bench")
        return e.stage is None or not uses or _column(e.stage.manifest.settings["bench"]) in map(_column, uses)

    def of_kind(self, kind: str) -> list[Artifact]:
        """Its stages of a kind, by name."""
        return [stage for stage in self.stages if stage.manifest.kind == kind]


def read(folder: Path) -> Run:
    """A run with all its evaluations. Raises UserError: the folder is not a run, or has no finished stage."""
    if not (folder / "stages").is_dir():
        why = "is no run: it has no stages" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {why}. Give the folder that was named by --out.")
    study = study_of(folder)
    stages = present(folder, list(study.get("arms") or {}))
    if not stages:
        raise UserError(f"{folder} has no finished stage yet. See: demur status {folder}")
    measured = [s for s in stages if s.manifest.kind == "evaluate" and not s.manifest.settings.get("tampered")]
    later, by_traces = VerdictIndex(), dict[object, Artifact]()
    for stage in (s for s in stages if s.manifest.kind == "judge"):
        later.read(stage.path("verdicts"))
        # Several judges of the same traces leave a stage each, every one with these traces.
        settings, traces = stage.manifest.settings, stage.manifest.files["traces.jsonl"].sha256
        by_traces.setdefault((settings.get("arm"), settings.get("seed"), traces), stage)
    found = [e for stage in measured or by_traces.values() for e in evaluations(stage, later)]
    arms, benches = list(dict.fromkeys(e.arm for e in found)), list(map(_column, study.get("bench") or []))
    fixed, labels = study.get("fixed") or (), people_labels(folder, "refusal")
    replies = {arm: {row.id for e in found if e.arm == arm for row in e.rows} for arm in arms if labels}
    sound = {arm: calibrated(labels, ids) for arm, ids in replies.items()}
    found = [e._replace(fixed=e.bench in fixed, calibrated=sound.get(e.arm, e.calibrated)) for e in found]

    def order(e: Evaluation) -> tuple[int, int, bool]:
        """By arm, then as the study lists its benchmarks; plain questions before attacks."""
        use = (e.bench, e.attack)
        return arms.index(e.arm), benches.index(use) if use in benches else len(benches), e.attack != "none"

    return Run(folder, study, stages, sorted(found, key=order))


def study_of(folder: Path) -> dict[str, Any]:
    """The study of a run; empty where it has none."""
    path = folder / "study.yaml"
    return read_yaml(path)[0] if path.is_file() else {}


def present(folder: Path, arms: Sequence[str] = ()) -> list[Artifact]:
    """The finished stages of the present study, arms in the study's order. Stages of earlier settings are left out."""
    ranks = {arm: index for index, arm in enumerate(arms)}

    def order(stage: Artifact) -> tuple[int, str]:
        arm = str(stage.manifest.settings.get("arm"))
        return ranks.get(arm, ranks.get(arm.rpartition("@")[0], len(ranks))), stage.manifest.name

    return sorted(artifacts(folder), key=order)


def _column(use: Any) -> tuple[str, str]:
    """The benchmark and attack of an entry of a study's `bench`."""
    return (use, "none") if isinstance(use, str) else (use["name"], _name(use.get("attack") or "none"))


def evaluations(stage: Artifact, later: VerdictIndex | None = None) -> Iterator[Evaluation]:
    """The evaluations of a stage, one for each attack: replies, then requests without one. `later`: more verdicts."""
    verdicts, path, groups = VerdictIndex(), stage.path("traces"), dict[str, list[Row]]()
    verdicts.read(stage.path("verdicts"))
    judges = dict(verdicts.judges)
    several = next(project(path, Trace, "sampling.n"), (1,))[0] > 1
    for *fields, raw in project(path, Trace, *REPLY, "raw" if several else "id"):
        row = row_of(*fields)
        row.text, row.verdicts = hash(raw) if several else 0, verdicts.of(row.id)
        if later is not None and (more := later.of(row.id)):
            row.verdicts = row.verdicts | more
            judges |= dict.fromkeys(more)
        groups.setdefault(family(row.attack), []).append(row)
    for *prompt, sample, kind in project(stage.path("failures"), Failure, *PROMPT, "sample", "kind"):
        row = row_of(*prompt, "", sample)
        row.lost = kind.replace("_", " ")
        groups.setdefault(family(row.attack), []).append(row)
    arm, seed, name = arm_seed_bench(stage)
    protocol = protocol_of(name)
    name = protocol.name if protocol else name
    for attack, rows in groups.items():
        yield Evaluation(arm, seed, name, attack, rows, tuple(judges), protocol, stage)


def people_labels(run: Path, kind: str) -> list[dict[str, Any]]:
    """The labels of a kind that people gave: the rows of the run's file."""
    path = run / "labels" / f"{kind}.jsonl"
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


def calibrated(labels: Sequence[dict[str, Any]], replies: Collection[str]) -> frozenset[str]:
    """Judges with `ENOUGH` labelled replies whose agreement with people is at least `AGREED`, by its lower bound."""
    same: dict[str, list[bool | None]] = {}
    for row in labels:
        for name, value in row.items() if row["id"] in replies else ():
            if name.endswith("_label") and value:
                same.setdefault(name.removesuffix("_label"), []).append(value == row["label"])
    return frozenset(j for j, hits in same.items() if len(hits) >= ENOUGH and (stats.rate(hits).low or 0) >= AGREED)


def band(label: str | None, score: float | None) -> str:
    """The stratum of a reply in a draw for labelling: the judge's probability in fifths, or its label without one."""
    if label is None:
        return "cannot tell"
    if score is None or not 0 <= score <= 1:
        return label
    low = 20 * min(4, int(5 * score))
    return f"{low}–{low + 20} %"


def arm_seed_bench(stage: Artifact) -> tuple[str, int | None, str]:
    """Arm, seed and benchmark of an evaluation."""
    settings = stage.manifest.settings
    return str(settings.get("arm", "target")), settings.get("seed"), bench_name(stage)


def bench_name(stage: Artifact) -> str:
    """The benchmark that a stage measured; empty for a stage that measured none."""
    return _name(stage.manifest.settings.get("bench") or "")


def _name(use: str | dict[str, Any]) -> str:
    return str(use.get("name", "none") if isinstance(use, dict) else use)


def label(stage: Artifact, kind: str = "distil") -> str:
    """The name of a stage in tables: without its kind, and with its run's name where there are several runs."""
    run, colon, name = stage.manifest.name.rpartition(":")
    return run + colon + name.removeprefix(f"{kind}-")


def protocol_of(name: str) -> Bench | None:
    """The protocol of a benchmark; `None` when it is no longer known here."""
    try:
        return get_bench(name)
    except UserError:
        return None


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by a key, in the order in which the keys appear."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def family(attack: str) -> str:
    """The family of an attack: `pap` of `pap:framing`."""
    return attack.partition(":")[0] or "none"

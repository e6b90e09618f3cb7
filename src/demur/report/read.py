"""Reads a run: which stages are part of the present study, and of each reply what numbers need, without its text."""

import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from demur import stats
from demur.bench import get_bench
from demur.bench.spec import Bench
from demur.errors import UserError
from demur.records import Failure, Intent, Outcome, Part, Trace, Verdict
from demur.settings import read_yaml
from demur.storage.artifacts import Artifact, artifacts
from demur.storage.records_file import project

SHARED = 10_000  # Different verdicts with scores that are looked for among later ones
ENOUGH, AGREED = 30, 0.8
"""Labels of an arm's replies, and the share on which a judge must agree with them, for rates of classes that it often mixes up."""
PROMPT = tuple(f"prompt.{name}" for name in ("id", "parent", "cluster", "intent", "category", "attack", "pair"))
REPLY = (*PROMPT, "id", "sample", "outcome", "tokens_out", "tokens_thinking", "answer", "finish")


class Judged(NamedTuple):
    """What a judge said of a reply."""

    label: str | None
    score: float | None = None


By = tuple[str, Part]  # A judge, and the part that it read
Verdicts = dict[By, Judged]


class Row(msgspec.Struct, gc=False):
    """What numbers need of a reply, or of a request that got none (`outcome` is then `None`)."""

    prompt: str  # Id of the prompt that was sent
    question: str  # Id of the question behind it: two arms that were asked the same have it in common
    cluster: str
    intent: Intent
    category: str = ""
    attack: str = ""
    pair: str = ""  # What a harmful prompt has in common with its harmless twin
    id: str = ""
    sample: int = 0
    outcome: Outcome | None = None
    tokens_out: int | None = None
    tokens_thinking: int | None = None
    lost: str = ""  # Why there is no reply or no answer; empty: there is. Of a pair: that one side lost it
    text: int = 0  # Hash of the reply, where several were drawn for a prompt
    verdicts: Verdicts = {}

    @property
    def empty(self) -> bool | None:
        """Whether nothing was thought; `None` where nobody counted."""
        if self.outcome == "no_thinking":
            return True
        return None if self.tokens_thinking is None else self.tokens_thinking == 0

    @property
    def truncated(self) -> bool:
        """Whether a budget ended the text."""
        return self.outcome in ("cut_in_thinking", "cut_in_answer")


def row_of(prompt: str, parent: str, cluster: str, intent: Intent, *rest: Any) -> Row:
    """A row from the fields of `REPLY`, or of some of them; what many rows have in common is kept once in memory."""
    category, attack, pair, *reply = rest
    question, cluster = parent or prompt, prompt if cluster == prompt else cluster
    if len(reply) > 2:
        *reply, answer, finish = reply
        reasons = {
            "filtered": finish == "content_filter", "ran out of time": finish == "timeout",
            "truncated in thinking": reply[2] == "cut_in_thinking", "ended in thinking": answer is None,
            "empty": not (answer or "").strip(), "malformed": reply[2] == "malformed",
        }  # fmt: skip
        reply.append(next((why for why, so in reasons.items() if so), ""))
    return Row(prompt, question, cluster, intent, sys.intern(category), sys.intern(attack), pair, *reply)


class VerdictIndex:
    """Verdicts by trace. Traces with equal verdicts share one mapping, which nobody may change."""

    def __init__(self) -> None:
        self._of: dict[int, Verdicts] = {}
        self._known: dict[tuple[object, ...], Verdicts] = {}
        self.judges: dict[By, None] = {}

    def add(self, trace: str, by: By, judged: Judged) -> None:
        """Take a verdict in; a later one of the same judge and part counts."""
        self.judges[by] = None
        before = self._of.get(hash(trace))
        key = (id(before) if before else None, by, judged)
        if (found := self._known.get(key)) is None:
            found = {**(before or {}), by: judged}
            if judged.score is None or len(self._known) < SHARED:
                self._known[key] = found
        self._of[hash(trace)] = found

    def read(self, path: Path) -> None:
        """Take in a file of verdicts."""
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
    judges: tuple[By, ...]  # The protocol's own comes first
    protocol: Bench | None = None  # `None`: the benchmark is not known here any more
    stage: Artifact | None = None
    base: str = ""  # Which of a study's several bases, where the arms on them are taken together
    fixed: bool = False  # Whether the study takes the benchmark's prompts for all that there are
    calibrated: frozenset[str] = frozenset()  # Judges that people's labels of this arm show to tell their classes apart


class Run(NamedTuple):
    """A run's folder as the report sees it."""

    folder: Path
    study: dict[str, Any]
    stages: list[Artifact]
    evaluations: list[Evaluation]

    def pooled(self) -> Self:
        """The same with the copies of an arm on several bases, `ARM@BASE`, taken together as that arm."""
        named = [(e, *self.split(e.arm)) for e in self.evaluations]
        return self._replace(evaluations=[e._replace(arm=arm, base=base) for e, arm, base in named])

    def split(self, arm: str) -> tuple[str, str]:
        """Arm and base of a copy; of another arm its name alone."""
        name, at, base = arm.rpartition("@")
        several = {Path(base).name for base in self.study.get("bases") or ()}
        return (name, base) if at and base in several else (arm, "")

    def asked(self, e: Evaluation) -> bool:
        """Whether the study as it stands asks for an evaluation; else it is of an earlier command with the same folder."""
        uses = self.study.get("bench")
        return e.stage is None or not uses or _named(e.stage.manifest.settings["bench"]) in map(_named, uses)

    def of_kind(self, kind: str) -> list[Artifact]:
        """Its stages of a kind, by name."""
        return [stage for stage in self.stages if stage.manifest.kind == kind]


def read(folder: Path) -> Run:
    """A run with all its evaluations. Raises UserError: the folder is no run, or has no finished stage."""
    if not (folder / "stages").is_dir():
        why = "is no run: it has no stages" if folder.is_dir() else "does not exist"
        raise UserError(f"{folder} {why}. Give the folder that was named by --out.")
    study = study_of(folder)
    stages = present(folder, list(study.get("arms") or {}))
    if not stages:
        raise UserError(f"{folder} has no finished stage yet. See: demur status {folder}")
    measured = [s for s in stages if s.manifest.kind == "evaluate" and not s.manifest.settings.get("tampered")]
    again = [stage for stage in stages if stage.manifest.kind == "judge"]
    later = VerdictIndex()
    for stage in again:
        later.read(stage.path("verdicts"))
    # Several judges of the same traces leave a stage each, and the traces once in each.
    alone = {(*map(s.manifest.settings.get, ("arm", "seed")), s.manifest.files["traces.jsonl"].sha256): s
             for s in reversed(again)}  # fmt: skip
    found = [e for stage in measured or list(alone.values())[::-1] for e in evaluations(stage, later)]
    fixed, labels = study.get("fixed") or (), given(folder, "refusal")
    right = {arm: calibrated(labels, {r.id for e in found if e.arm == arm for r in e.rows})
             for arm in {e.arm for e in found} if labels}  # fmt: skip
    found = [e._replace(fixed=e.bench in fixed, calibrated=right.get(e.arm, e.calibrated)) for e in found]
    named, order = list(map(_named, study.get("bench") or [])), list(dict.fromkeys(e.arm for e in found))

    def as_asked(e: Evaluation) -> tuple[int, int, bool]:
        """By arm, then as the study names its benchmarks; plain questions before attacks."""
        at = (e.bench, e.attack)
        return order.index(e.arm), named.index(at) if at in named else len(named), e.attack != "none"

    return Run(folder, study, stages, sorted(found, key=as_asked))


def study_of(folder: Path) -> dict[str, Any]:
    """The study of a run; empty where it has none."""
    path = folder / "study.yaml"
    return read_yaml(path)[0] if path.is_file() else {}


def present(folder: Path, arms: Sequence[str] = ()) -> list[Artifact]:
    """The finished stages of the present study, arms in the study's order; what earlier settings made is no part of it."""
    place = {arm: index for index, arm in enumerate(arms)}

    def order(stage: Artifact) -> tuple[int, str]:
        arm = str(stage.manifest.settings.get("arm"))
        return place.get(arm, place.get(arm.rpartition("@")[0], len(place))), stage.manifest.name

    return sorted(artifacts(folder), key=order)


def _named(use: Any) -> tuple[str, str]:
    return (use, "none") if isinstance(use, str) else (use["name"], _name(use.get("attack") or "none"))


def evaluations(stage: Artifact, later: VerdictIndex | None = None) -> Iterator[Evaluation]:
    """The evaluations that a stage holds, one for each attack: its replies, and then the requests that got none."""
    own, path, groups = VerdictIndex(), stage.path("traces"), dict[str, list[Row]]()
    own.read(stage.path("verdicts"))
    judges = dict(own.judges)
    several = next(project(path, Trace, "sampling.n"), (1,))[0] > 1
    for *fields, raw in project(path, Trace, *REPLY, "raw" if several else "id"):
        one = row_of(*fields)
        one.text, one.verdicts = hash(raw) if several else 0, own.of(one.id)
        if later is not None and (more := later.of(one.id)):
            one.verdicts = one.verdicts | more
            judges |= dict.fromkeys(more)
        groups.setdefault(family(one.attack), []).append(one)
    for *prompt, sample, kind in project(stage.path("failures"), Failure, *PROMPT, "sample", "kind"):
        one = row_of(*prompt, "", sample)
        one.lost = kind.replace("_", " ")
        groups.setdefault(family(one.attack), []).append(one)
    arm, seed, name = about(stage)
    protocol = protocol_of(name)
    name = protocol.name if protocol else name
    for attack, members in groups.items():
        yield Evaluation(arm, seed, name, attack, members, tuple(judges), protocol, stage)


def given(run: Path, kind: str) -> list[dict[str, Any]]:
    """The labels that people gave, of a kind, as they stand in the run's file."""
    path = run / "labels" / f"{kind}.jsonl"
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.is_file() else []


def calibrated(labels: Sequence[dict[str, Any]], replies: Collection[str]) -> frozenset[str]:
    """Judges whose labels of some replies agree with people's in at least `AGREED` of `ENOUGH` or more, by the interval."""
    same: dict[str, list[bool | None]] = {}
    for row in labels:
        for name, value in row.items() if row["id"] in replies else ():
            if name.endswith("_label") and value:
                same.setdefault(name.removesuffix("_label"), []).append(value == row["label"])
    return frozenset(j for j, own in same.items() if len(own) >= ENOUGH and (stats.rate(own).low or 0) >= AGREED)


def band(label: str | None, score: float | None) -> str:
    """The stratum in which a reply is drawn for labelling: the judge's probability in fifths, or its label without one."""
    if label is None:
        return "cannot tell"
    if score is None or not 0 <= score <= 1:
        return label
    low = 20 * min(4, int(5 * score))
    return f"{low}–{low + 20} %"


def about(stage: Artifact) -> tuple[str, int | None, str]:
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
    """The protocol of a benchmark; `None` when it is not known here any more."""
    try:
        return get_bench(name)
    except UserError:
        return None


def family(attack: str) -> str:
    """The family of an attack: `pap` of `pap:framing`."""
    return attack.partition(":")[0] or "none"

"""Everything about a study that is wrong or missing, found before anything is asked; and its stages, which `build.py` builds.

`check study`, `plan` and `run` call `resolve`. `check_study` checks what spans several settings: names that must exist, claims
that must be measured, arms that depend on each other.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from demur.attack.base import TEXTS
from demur.bench import get_bench, names
from demur.bench.load import unread_columns
from demur.bench.spec import Bench
from demur.diagnose import requires_model as detector_requires
from demur.distil.strategy import load as load_strategy
from demur.errors import UserError, unknown
from demur.judge import requires_model
from demur.mix.settings import ShareSettings
from demur.models.config import Scripted
from demur.models.sampling import PRESETS
from demur.pipeline.build import Builder, base_of
from demur.pipeline.dag import ordered
from demur.pipeline.stage import Lack, Stage
from demur.pipeline.stages.evaluate import Evaluate
from demur.pipeline.study import CLIFF, LOSS, SELF, SELF_WRITTEN, Evidence, Loaded, ProbeUse, Study, TamperUse
from demur.settings import Location, Problems, changed, validate

RESERVED = {("model", SELF), ("strategy", "same"), ("judge", CLIFF)}  # Words that are valid in the place of a name
PLACEHOLDER = Scripted(script="stand_in")  # Replaces an unknown model: it can play every part


class Resolved(NamedTuple):
    """A valid study, its stages, and what is missing on this machine."""

    study: Study
    stages: list[Stage[Any]]
    missing: list[str]  # One line each: the part, and how to provide it
    notes: list[str]


def resolve(loaded: Loaded) -> Resolved:
    """The stages of a study. Raises UserError: something is wrong with it; then what is missing here is reported too."""
    study, problems = loaded.study, loaded.problems
    if study is None:
        problems.check()
    assert study is not None
    check_study(study, problems)
    builder = Builder(_with_valid_names(study, problems), problems)
    stages = builder.all()
    lacks = builder.missing
    if study.data_dir and not (study.stand_in or Path(study.data_dir).is_dir()):
        lacks = [(("data_dir",), Lack("data_dir", f"{study.data_dir}: no such folder")), *lacks]
    missing = needs(stages, problems, lacks)
    measured = [stage for stage in stages if isinstance(stage, Evaluate)]
    notes = dict.fromkeys(unread_columns(stage.use.name, stage.files.get("data")) for stage in measured if not missing)
    texts = [(stage.use.attack.name, path) for stage in measured for path in stage.attack_files().values()]
    notes |= dict.fromkeys(f"{name}: from {path}" for name, path in texts if path.parent != TEXTS)
    return Resolved(study, stages, missing, [*loaded.notes, *filter(None, notes)])


def make(data: dict[str, Any], *, where: str) -> Resolved:
    """A study of plain data, resolved."""
    problems = Problems(where)
    return resolve(Loaded(problems.read(Study, data), problems, []))


def needs(stages: Iterable[Stage[Any]], problems: Problems, missing: Sequence[tuple[Location, Lack]] = ()) -> list[str]:
    """What stages and all that they read lack on this machine, one line each, `missing` included.
    Raises UserError: something is wrong with them, or there are problems already."""
    lacks = list(missing)
    for stage in ordered(stages):
        with problems.at(*stage.place):
            lacks += [(stage.place, lack) for lack in stage.needs()]
    wrong = [(place, lack.message) for place, lack in lacks if lack.wrong]
    absent = [(place, lack) for place, lack in lacks if not lack.wrong]
    if wrong or problems:
        wrong += [(place, f"missing here: {lack.what}: {lack.message}") for place, lack in absent]
    for place, message in wrong:
        problems.add(place, message)
    problems.check()
    return list(dict.fromkeys(f"{lack.what:<10} {lack.message}" for _, lack in absent))


def check_study(study: Study, problems: Problems) -> None:
    """Add the problems that span several settings of a study."""
    if "name" not in study.model_fields_set and not problems.within("name"):
        problems.add(("name",), "'name' is missing.")
    if study.stand_in_data and not study.stand_in:
        problems.add(("stand_in_data",), "stand_in_data is for smoke runs alone: a benchmark's copy is its 'data'.")
    for name in study.arms:
        _check_arm(study, name, problems)
    _check_depth(study, problems)
    _check_repeats(study, problems)
    if study.bases and "base" in study.model_fields_set:
        problems.add(("bases",), "'base' and 'bases' are both given. For one base set bases=[] as well.")
    if len({Path(base).name for base in study.bases}) < len(study.bases):
        problems.add(("bases",), "bases need different last names: ARM@BASE is a copy of an arm.")
    for at, finding in enumerate(study.findings):
        for number, evidence in enumerate(finding.evidence):
            _check_evidence(study, evidence, problems, ("findings", at, "evidence", number))


def _with_valid_names(study: Study, problems: Problems) -> Study:
    """The study with a valid name in the place of each unknown one, which is a problem, so that all else can be checked too."""
    faulty = {str(name) for name in problems.faulty("models")} - {*study.models}  # reported already
    study = study.model_copy(update={"models": study.models | dict.fromkeys(faulty, PLACEHOLDER)})
    look_up: dict[str, tuple[Callable[[str], object], Any]] = {  # Kind -> how it is looked up, and a valid name
        "arm": (partial(_among, "arm", {*study.arms, *map(str, problems.faulty("arms"))}), None),
        "base": (lambda name: base_of(study, name), Study.model_fields["base"].default),
        "benchmark": (get_bench, next(name for name in names() if get_bench(name).generated)),
        "decoding": (partial(_among, "decoding preset", PRESETS), next(iter(PRESETS))),
        "detector": (detector_requires, "rules"),
        "judge": (requires_model, "rules"),
        "measured": (partial(_among, "benchmark", {use.name for use in study.bench}), None),
        "model": (partial(_among, "model", study.models), PLACEHOLDER.script),
        "strategy": (load_strategy, "default"),
        "key": (load_strategy, None),
    }
    data: dict[str, Any] = {}
    keys = [(("distil", "teachers", name), "key", name) for name in study.distil.teachers]
    for place, kind, name in (*names_in(study), *keys):
        find, valid = look_up[kind]
        try:
            find(name) if (kind, name) not in RESERVED else None
        except UserError as error:
            problems.add(place, str(error))
            data = data or study.model_dump(mode="json", exclude_unset=True)
            data = data if valid is None else changed(data, [str(key) for key in place], valid)
    if not data:
        return study
    data["models"] = data.get("models", {}) | {PLACEHOLDER.script: PLACEHOLDER.model_dump(exclude_unset=True)}
    return validate(Study, data, where="study")


def names_in(value: Any, kind: str = "", place: Location = ()) -> Iterator[tuple[Location, str, str]]:
    """Every name that settings give (`settings.names`): its place, the kind of thing it names, and the name."""
    if isinstance(value, BaseModel):
        for key, field in type(value).model_fields.items():
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            inner, _, flat = str(extra.get("names") or (kind if key == "kind" else "")).partition(" ")
            yield from names_in(getattr(value, key), inner, place if flat else (*place, field.alias or key))
    elif isinstance(value, dict | tuple):
        for at, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from names_in(item, kind, (*place, at))
    elif kind and isinstance(value, str):
        yield place, kind, value


def _among(kind: str, known: Collection[str], name: str) -> None:
    """Raises UserError: a name is not among the known ones."""
    if name not in known:
        raise unknown(kind, name, known)


def _check_repeats(study: Study, problems: Problems) -> None:
    """Nothing is measured twice or compared with itself, and what is compared is measured."""
    seeds_at: dict[Location, tuple[int, ...]] = {("seeds",): study.seeds}
    seeds_at |= {("arms", name, "seeds"): arm.seeds or () for name, arm in study.arms.items()}
    for place, seeds in seeds_at.items():
        if len(set(seeds)) < len(seeds) and not problems.within(*place):
            problems.add(place, "a seed is given twice.")
    sound = [at for at in range(len(study.bench)) if not problems.within("bench", at)]
    for earlier, later in itertools.combinations(sound, 2):
        if study.bench[earlier] == study.bench[later]:
            problems.add(("bench", later), f"'{study.bench[later].name}' is measured in the same way already.")
    measured = {use.name for use in study.bench}
    for at, pair in enumerate(study.compare):
        if pair.a == pair.b:
            problems.add(("compare", at), f"arm '{pair.a}' is compared with itself.")
        if pair.bench and pair.bench not in measured and not problems.mentions("bench", pair.bench):
            problems.add(("compare", at, "bench"), str(unknown("benchmark", pair.bench, measured)))


def _check_evidence(study: Study, evidence: Evidence, problems: Problems, place: Location) -> None:
    """The study must measure what a finding rests on."""
    for name in (evidence.a, evidence.b):
        arm = study.arms.get(name)
        if evidence.metric == LOSS and arm is not None and not (arm.trained and study.held_out):
            problems.add(place, f"'{LOSS}' is measured on held_out rows of trained arms; '{name}' has none.")
    if evidence.metric == LOSS:
        return
    uses = [use for use in study.bench if evidence.bench in ("", use.name)]
    benches = [(use, bench) for use in uses for bench in _benches(use.name)]
    metrics = {metric.name for _, bench in benches for metric in bench.metrics}
    attacks = {use.attack.name for use in uses}
    parts = {part for use, bench in benches for part in (use.part or bench.part, *use.also)}
    with problems.at(*place):
        if not uses and not problems.mentions("bench", evidence.bench):
            raise unknown("benchmark", evidence.bench, {use.name for use in study.bench})
        if evidence.metric not in metrics:
            raise unknown("metric", evidence.metric, metrics | {LOSS})
        for attack in (*evidence.attack, *evidence.weights):
            if attack not in attacks and not problems.mentions("bench", attack):
                raise unknown("attack", attack, attacks)
        if evidence.part and evidence.part not in parts:
            raise UserError(f"no judge reads the {evidence.part}. Add it under 'also' of the benchmark.")


def _benches(name: str) -> list[Bench]:
    """The benchmark of a name; all benchmarks for an unknown name, which is reported elsewhere."""
    try:
        return [get_bench(name)]
    except UserError:
        return [get_bench(known) for known in names()]


def _check_arm(study: Study, name: str, problems: Problems) -> None:
    """The settings of an arm must fit each other and the study."""
    arm, place = study.arms[name], ("arms", name)
    ready = isinstance(arm.safety, ShareSettings) and (arm.safety.file or arm.safety.hub)
    about_traces = arm.filter or arm.keep or arm.benign_format or arm.distil or arm.teacher
    if about_traces and (arm.format is None or ready):
        problems.add(place, f"arm '{name}' has settings for its traces, and no teacher writes them for it.")
    if arm.filter and arm.keep == "everything":
        problems.add(place, f"arm '{name}' names a filter and keeps everything: give one of the two.")
    if study.bases and ("@" in name or {arm.format, arm.benign_format} & set(SELF_WRITTEN)):
        problems.add(place, f"arm '{name}' trains a model on its own traces, which takes one base: set 'base'.")
    _check_rounds(study, name, problems)
    if arm.format is not None and not arm.safety and not problems.within(*place):
        problems.add(place, f"arm '{name}' has a format and no safety rows: set safety to how many.")


def _check_rounds(study: Study, name: str, problems: Problems) -> None:
    """The arms that an arm follows (`after`) must exist, have the same bases and seeds, and not form a circle."""
    chain, place = [name], ("arms", name, "after")
    while (after := study.arms[chain[-1]].after) is not None:
        if after in chain or after not in study.arms:
            break
        chain.append(after)
    if after in chain:
        problems.add(place, f"{' goes on from '.join([*chain, str(after)])}: that has no beginning.")
    for later, earlier in itertools.pairwise(chain):
        needed, given = ({copy.base for copy in study.copies(arm)} for arm in (later, earlier))
        seeds = {*study.seeds_of(later)} - {*study.seeds_of(earlier)} if study.arms[earlier].trained else set()
        if not needed <= given or seeds:
            problems.add(place, f"'{later}' goes on from '{earlier}', which has other bases or seeds.")


def _check_depth(study: Study, problems: Problems) -> None:
    """Probes and tamperings must name benchmarks of the study, and train all arms on the same rows."""
    measured = {(use.name, use.attack.name) for use in study.bench}
    uses: list[tuple[Location, ProbeUse | TamperUse]] = [(("probe", at), use) for at, use in enumerate(study.probe)]
    uses += [(("tamper", at), use) for at, use in enumerate(study.tamper)]
    for place, use in uses:
        if (use.bench, use.attack) not in measured and not problems.mentions("bench", use.attack):
            message = f"'{use.bench}' with attack '{use.attack}' is not under 'bench', where its replies come from."
            problems.add(place, message)
    for at, tamper in enumerate(study.tamper):
        if tamper.rows.after or tamper.rows.teacher == SELF or (not tamper.rows.trained and not tamper.rows.benign):
            problems.add(("tamper", at, "rows"), "every arm trains on the same rows: no 'after', no teacher 'self'.")

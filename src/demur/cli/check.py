"""`demur check …`: is this sound? Exits 1 when it is not."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from demur.bench import get_bench, names
from demur.bench.forms import solutions
from demur.bench.load import faults, find, load_prompts, local, read_prompts, text_hash, unread
from demur.cli import common
from demur.cli.runner import require
from demur.errors import CheckFailed, UserError
from demur.judge.maths import check_golds
from demur.mix import examples_of
from demur.mix.contamination import RULES, certify, without
from demur.mix.duplicates import masked
from demur.prompts.forms import load_file
from demur.records import Example, ExamplePart, Failure, Origin, Prompt, Trace, encode, write_jsonl
from demur.report.read import bench_name
from demur.storage.artifacts import artifacts, atomic_write, is_published
from demur.train.check import check_template as check
from demur.train.check import render_report
from demur.train.settings import TrainSettings

SHOWN = 8  # Masked pairs shown at most


@common.verb("data_dir json")
def study(files: list[Path], flags: common.Flags) -> None:
    """Validate study files: every key, every name, and the graph of stages that they mean. Asks no model."""
    rows: list[dict[str, Any]] = []
    for path in files:
        try:
            study, stages, missing, _ = common.load_study(path, flags)
            lines = [f"✓ {path}: {len(study.arms)} arms, {len(stages)} stages"]
            lines += [f"    missing here: {one}" for one in missing]
            found = {"sound": True, "stages": len(stages), "arms": len(study.arms), "missing": missing}
        except UserError as error:
            lines = [f"✗ {error}" if str(error).startswith(str(path)) else f"✗ {path}: {error}"]
            found = {"sound": False, "errors": str(error).splitlines()}
        rows.append({"file": str(path)} | found)
        for line in () if flags.json else lines:
            common.stdout.print(line, soft_wrap=True)  # a place that is broken in two cannot be clicked
    if flags.json:
        common.print_json({"studies": rows})
    if wrong := sum(not row["sound"] for row in rows):
        raise UserError(f"{wrong} of {len(rows)} studies are not sound.")


@common.verb("json")
def template(
    base: str,
    flags: common.Flags,
    examples: Path | None = None,
    family: Annotated[str, common.flag("template")] = "auto",
    words: bool = False,
) -> None:
    """Show three training rows with what is trained and what is not, and verify every row token by token."""
    loaded = load_file(examples) if examples else None
    rows = loaded and [*loaded.examples, *examples_of(loaded.traces, share="file")[0]]
    report = check(common.base(base).weights_at, rows, settings=TrainSettings(template=family))
    if flags.json:
        common.print_json(report.plain())
    else:
        common.stdout.print(render_report(report, mask=bool(rows) and not words))
    if not report.ok:
        raise CheckFailed(report.why)


@common.verb("data data_dir out json")
def contamination(examples: Path, flags: common.Flags, benches: list[str] | None = None, remove: bool = False) -> None:
    """Compare training rows with benchmarks: equal, covered and nearly equal prompts; writes a certificate.

    In a study's run each arm's rows are compared with what the arm was scored on.
    """
    mixes = [] if is_published(examples) else [one for one in artifacts(examples) if one.manifest.kind == "mix"]
    arms = {one.manifest.name.removeprefix("mix-"): list(one.read("examples", Example)) for one in mixes}
    sets = arms or {"rows": read_rows(examples)}
    if remove and len(sets) > 1:
        raise UserError(f"{examples} holds the rows of {len(sets)} arms; give the stage of one with --remove.")
    # A finished stage is as its manifest says; what is found about it goes to its run.
    beside_it = examples.parent.parent if is_published(examples) else examples
    where = flags.out or (beside_it if examples.is_dir() else Path("runs/contamination"))
    common.writable(where)
    scored = {name: scored_on(examples, name) for name in arms}
    named = bool(benches or flags.data or flags.data_dir or not any(scored.values()))
    given = gather(benches or (), flags) if named else {}
    compared = {name: certify(rows, scored.get(name, {}) | given) for name, rows in sets.items()}
    certificates = {name: certificate for name, (certificate, _) in compared.items()}
    pairs = [one for _, found in compared.values() for one in found]
    write_jsonl(where / "contaminated.jsonl", pairs)
    for name, rows in sets.items() if remove else ():
        certificates[name], clean = without(certificates[name], rows, pairs)
        write_jsonl(where / "examples.jsonl", clean)
        common.console.print(f"{certificates[name].removed:,} rows taken out: {where / 'examples.jsonl'}")
    atomic_write(where / "contamination.json", encode({"certificates": certificates}))
    sound = all(certificate.clean for certificate in certificates.values())
    if flags.json:
        common.print_json({"clean": sound, "out": str(where), "certificates": certificates})
    else:
        rows_of = [
            (name, one.bench, one.prompts, len(one.held), one.rows, *(one.by_rule.get(rule, 0) for rule in RULES))
            for name, certificate in certificates.items()
            for one in certificate.compared
        ]
        titles = ("arm", "benchmark", "#prompts", "#prompts held", "#rows that hold one")
        common.show((*titles, *(f"#{rule} pairs" for rule in RULES)), rows_of)
        for p in pairs[:SHOWN]:
            common.console.print(f"{p.bench}, {p.rule} {p.score:.2f}\n  row    {p.row_text}\n  prompt {p.prompt_text}")
        common.console.print(f"certificate: {where / 'contamination.json'} · pairs: {where / 'contaminated.jsonl'}")
    if not sound:
        share = f"{len({one.example for one in pairs}):,} of {sum(map(len, sets.values())):,} training rows"
        raise CheckFailed(f"{share} hold prompts that the model will be scored on. Take them out with --remove.")


@common.verb("data data_dir json")
def bench(name: str, flags: common.Flags) -> None:
    """Verify a copy of a benchmark: count, columns, hash, golds; show three masked rows."""
    bench, wrong, counts = get_bench(name), list[str](), dict[str, int]()
    path = None if bench.generated else find(bench, data=flags.data, data_dir=flags.data_dir)
    prompts = read_prompts(bench, path)
    if path is not None:
        wrong = faults(bench, prompts)
        if bench.judge == "maths":  # the worked solutions' answers, and changed golds
            found, counts = check_golds(prompts, solutions(bench, path))
            wrong += [f"{fault.kind} of {fault.prompt}: {fault.detail}" for fault in found]
    about = {"bench": bench.name, "version": bench.version, "count": len(prompts), "sha256": text_hash(prompts)}
    if flags.json:
        common.print_json(about | {"licence": bench.licence, "golds": counts, "faults": wrong})
    else:
        for what, value in (about | {"licence": bench.licence or "–"} | counts).items():
            common.stdout.print(f"{what.replace('_', ' ')}: {value}")
        for prompt in prompts[:3]:
            shown = prompt.question if prompt.intent in ("maths", "code", "benign") else masked(prompt.question)
            common.stdout.print(f"  {prompt.intent:<8} {prompt.category:<24} {shown[:90]}")
        if note := unread(name, path):
            common.stdout.print(note)
    if wrong:
        raise CheckFailed(f"{name}: {len(wrong)} faults: {'; '.join(wrong[:3])}")


@common.verb("json")
def isolation(flags: common.Flags) -> None:
    """Try to break the isolation of model-written code on this machine."""
    from demur.judge.escapes import check

    done = []
    for tried in check():
        done.append(tried)
        mark = "✓" if tried.held else "✗"
        common.console.print(f"  {mark} {tried.name:<28} {tried.ending:<8} {tried.seconds:5.1f} s  {tried.detail}")
    broken = [tried.name for tried in done if not tried.held]
    if flags.json:
        common.print_json({"held": len(done) - len(broken), "of": len(done), "broken": broken})
    else:
        common.stdout.print(f"isolation held against {len(done) - len(broken)} of {len(done)} programs")
    if broken:
        raise CheckFailed(f"isolation did not hold against: {', '.join(broken)}.")


@common.verb("model key_env json")
def shapes(url: str, flags: common.Flags) -> None:
    """Ask a host five short questions and say what is odd about it, before money is spent."""
    from demur.models.config import Remote, as_model
    from demur.testing.shapes import USELESS
    from demur.testing.shapes import shapes as seen

    if "://" not in url and not url.startswith("$"):
        raise UserError(f"check shapes asks servers: name a URL, such as http://127.0.0.1:8000/v1, not {url}.")
    host = as_model({"url": url} | flags.given("model", "key_env"), where=url)
    assert isinstance(host, Remote)
    require(host.missing())
    found = asyncio.run(seen(host))
    if flags.json:
        common.print_json({"url": url, "shapes": found})
    for shape, sentence in () if flags.json else found.items():
        common.stdout.print(f"{shape}: {sentence}", soft_wrap=True)
    if bad := [shape for shape in USELESS if shape in found]:
        raise CheckFailed(f"{url} is {' and '.join(bad)}: nothing can be measured with it as it is.")
    if not found and not flags.json:
        common.stdout.print("sound: it answers harmless questions rightly, and declines a harmful one.")


def scored_on(run: Path, arm: str) -> dict[str, list[Prompt]]:
    """The questions that an arm was scored on, by benchmark."""
    found: dict[str, dict[str, Prompt]] = {}
    for stage in artifacts(run):
        if stage.manifest.kind == "evaluate" and stage.manifest.settings["arm"] == arm:
            questions = found.setdefault(bench_name(stage), {})
            sent = [one.prompt for one in stage.read("traces", Trace)]
            for prompt in (*sent, *(one.prompt for one in stage.read("failures", Failure))):
                key = prompt.parent or prompt.id
                questions[key] = Prompt(text=prompt.question, intent=prompt.intent, id=key)
    return {bench: list(questions.values()) for bench, questions in found.items()}


def read_rows(path: Path) -> list[Example]:
    """What a file holds, as training rows. Raises UserError: there are none."""
    loaded = load_file(path)
    rows = [*loaded.examples, *examples_of(loaded.traces, share="rows", no_thinking="empty")[0]]
    answered = {row.origin.prompt for row in rows}
    for prompt in () if loaded.examples else loaded.prompts:
        if prompt.id not in answered:
            part = ExamplePart(role="user", text=prompt.text, train=False)
            question = prompt.question if prompt.question != prompt.text else ""
            origin = Origin(prompt=prompt.id, source=prompt.source, question=question, attack=prompt.attack)
            rows.append(Example(parts=(part,), origin=origin, share="rows", cluster=prompt.cluster))
    if not rows:
        raise UserError(f"{path}: no rows to compare.")
    return rows


def gather(named: Sequence[str], flags: common.Flags) -> dict[str, list[Prompt]]:
    """Prompts of benchmarks by name: those asked for, or all with a copy in the folder.

    Raises UserError: none was named and none has a copy.
    """
    if flags.data is not None and len(named) != 1:
        raise UserError("--data is the copy of one benchmark; name that one, or use --data-dir.")
    if not named and flags.data_dir is None:
        raise UserError("against what? Name benchmarks, or give --data-dir with copies of them.")
    plain = {name: get_bench(name) for name in named or names() if named or "@" not in name}
    found = {name: bench for name, bench in plain.items() if named or local(bench, flags.data_dir)}
    if not found:
        looked = ", ".join(sorted({name for bench in plain.values() for name in bench.files}))
        raise UserError(f"{flags.data_dir}: no copy of any benchmark. Looked for {looked}.")
    return {name: load_prompts(one, data=flags.data, data_dir=flags.data_dir) for name, one in found.items()}

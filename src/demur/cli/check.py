"""`demur check …`: verify a study, a chat template, training rows, a benchmark's copy, the isolation, a server."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from demur.bench import get_bench, names
from demur.bench.forms import solutions
from demur.bench.load import faults, find, load_prompts, local, read_prompts, text_hash, unread_columns
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
from demur.train.check import check_template, render_report
from demur.train.settings import TrainSettings

SHOWN = 8  # Most pairs of contamination to print, masked


@common.verb("data_dir json")
def study(files: list[Path], flags: common.Flags) -> None:
    """Validate study files: every key, every name and every stage. No model is asked."""
    rows: list[dict[str, Any]] = []
    for path in files:
        try:
            study, stages, missing, _ = common.load_study(path, flags)
            lines = [f"✓ {path}: {len(study.arms)} arms, {len(stages)} stages"]
            lines += [f"    missing here: {line}" for line in missing]
            result = {"sound": True, "stages": len(stages), "arms": len(study.arms), "missing": missing}
        except UserError as error:
            lines = [f"✗ {error}" if str(error).startswith(str(path)) else f"✗ {path}: {error}"]
            result = {"sound": False, "errors": str(error).splitlines()}
        rows.append({"file": str(path)} | result)
        for line in () if flags.json else lines:
            common.stdout.print(line, soft_wrap=True)  # terminals make FILE:LINE a link only if it is not wrapped
    if flags.json:
        common.print_json({"studies": rows})
    if unsound := sum(not row["sound"] for row in rows):
        raise UserError(f"{unsound} of {len(rows)} studies are not sound.")


@common.verb("json")
def template(
    base: str,
    flags: common.Flags,
    examples: Path | None = None,
    family: Annotated[str, common.flag("template")] = "auto",
    words: bool = False,
) -> None:
    """Show three training rows with the trained tokens marked, and verify every row token by token."""
    loaded = load_file(examples) if examples else None
    rows = loaded and [*loaded.examples, *examples_of(loaded.traces, share="file")[0]]
    report = check_template(common.base(base).weights_at, rows, settings=TrainSettings(template=family))
    if flags.json:
        common.print_json(report.plain())
    else:
        common.stdout.print(render_report(report, mask=bool(rows) and not words))
    if not report.ok:
        raise CheckFailed(report.why)


@common.verb("data data_dir out json")
def contamination(examples: Path, flags: common.Flags, benches: list[str] | None = None, remove: bool = False) -> None:
    """Find training rows that hold benchmark prompts (equal, contained or nearly equal) and write a certificate.

    For the run of a study, the rows of each arm are compared with the prompts on which that arm was scored.
    """
    mixes = [] if is_published(examples) else [stage for stage in artifacts(examples) if stage.manifest.kind == "mix"]
    arms = {stage.manifest.name.removeprefix("mix-"): list(stage.read("examples", Example)) for stage in mixes}
    sets = arms or {"rows": read_rows(examples)}
    if remove and len(sets) > 1:
        raise UserError(f"{examples} holds the rows of {len(sets)} arms; give the stage of one with --remove.")
    # Nothing may be added to the folder of a finished stage, so its certificate goes to its run.
    run = examples.parent.parent if is_published(examples) else examples
    where = flags.out or (run if examples.is_dir() else Path("runs/contamination"))
    common.writable(where)
    scored = {name: scored_on(examples, name) for name in arms}
    wanted = benches or flags.data or flags.data_dir or not any(scored.values())
    others = gather(benches or (), flags) if wanted else {}
    compared = {name: certify(rows, scored.get(name, {}) | others) for name, rows in sets.items()}
    certificates = {name: certificate for name, (certificate, _) in compared.items()}
    pairs = [hit for _, hits in compared.values() for hit in hits]
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
        table = [
            (name, c.bench, c.prompts, len(c.held), c.rows, *(c.by_rule.get(rule, 0) for rule in RULES))
            for name, certificate in certificates.items()
            for c in certificate.compared
        ]
        titles = ("arm", "benchmark", "#prompts", "#prompts held", "#rows that hold one")
        common.show((*titles, *(f"#{rule} pairs" for rule in RULES)), table)
        for p in pairs[:SHOWN]:
            common.console.print(f"{p.bench}, {p.rule} {p.score:.2f}\n  row    {p.row_text}\n  prompt {p.prompt_text}")
        common.console.print(f"certificate: {where / 'contamination.json'} · pairs: {where / 'contaminated.jsonl'}")
    if not sound:
        share = f"{len({pair.example for pair in pairs}):,} of {sum(map(len, sets.values())):,} training rows"
        raise CheckFailed(f"{share} hold prompts that the model will be scored on. Take them out with --remove.")


@common.verb("data data_dir json")
def bench(name: str, flags: common.Flags) -> None:
    """Verify a local copy of a benchmark: count, columns, hash, gold answers. Shows three rows, masked."""
    bench, problems, counts = get_bench(name), list[str](), dict[str, int]()
    path = None if bench.generated else find(bench, data=flags.data, data_dir=flags.data_dir)
    prompts = read_prompts(bench, path)
    if path is not None:
        problems = faults(bench, prompts)
        if bench.judge == "maths":  # the grader must accept each worked solution and reject an altered gold answer
            wrong_golds, counts = check_golds(prompts, solutions(bench, path))
            problems += [f"{fault.kind} of {fault.prompt}: {fault.detail}" for fault in wrong_golds]
    about = {"bench": bench.name, "version": bench.version, "count": len(prompts), "sha256": text_hash(prompts)}
    if flags.json:
        common.print_json(about | {"licence": bench.licence, "golds": counts, "faults": problems})
    else:
        for what, value in (about | {"licence": bench.licence or "–"} | counts).items():
            common.stdout.print(f"{what.replace('_', ' ')}: {value}")
        for prompt in prompts[:3]:
            shown = prompt.question if prompt.intent in ("maths", "code", "benign") else masked(prompt.question)
            common.stdout.print(f"  {prompt.intent:<8} {prompt.category:<24} {shown[:90]}")
        if note := unread_columns(name, path):
            common.stdout.print(note)
    if problems:
        raise CheckFailed(f"{name}: {len(problems)} faults: {'; '.join(problems[:3])}")


@common.verb("json")
def isolation(flags: common.Flags) -> None:
    """Run programs that try to escape the isolation in which model-written code is executed."""
    from demur.judge.escapes import check

    held: dict[str, bool] = {}
    for escape in check():
        held[escape.name] = escape.held
        mark = "✓" if escape.held else "✗"
        common.console.print(f"  {mark} {escape.name:<28} {escape.ending:<8} {escape.seconds:5.1f} s  {escape.detail}")
    broken = [name for name, ok in held.items() if not ok]
    if flags.json:
        common.print_json({"held": sum(held.values()), "of": len(held), "broken": broken})
    else:
        common.stdout.print(f"isolation held against {sum(held.values())} of {len(held)} programs")
    if broken:
        raise CheckFailed(f"isolation did not hold against: {', '.join(broken)}.")


@common.verb("model key_env json")
def shapes(url: str, flags: common.Flags) -> None:
    """Ask a server five short questions and report what is unusual about it, before you spend money on it."""
    from demur.models.config import Remote, as_model
    from demur.testing.shapes import USELESS, recognised

    if "://" not in url and not url.startswith("$"):
        raise UserError(f"check shapes asks servers: name a URL, such as http://127.0.0.1:8000/v1, not {url}.")
    host = as_model({"url": url} | flags.given("model", "key_env"), where=url)
    assert isinstance(host, Remote)
    require(host.missing())
    shapes = asyncio.run(recognised(host))
    if flags.json:
        common.print_json({"url": url, "shapes": shapes})
    for shape, sentence in () if flags.json else shapes.items():
        common.stdout.print(f"{shape}: {sentence}", soft_wrap=True)
    if useless := [shape for shape in USELESS if shape in shapes]:
        raise CheckFailed(f"{url} is {' and '.join(useless)}: nothing can be measured with it as it is.")
    if not shapes and not flags.json:
        common.stdout.print("sound: it answers harmless questions correctly and declines a harmful one.")


def scored_on(run: Path, arm: str) -> dict[str, list[Prompt]]:
    """The questions on which an arm was scored, before any attack, by benchmark."""
    benches: dict[str, dict[str, Prompt]] = {}
    for stage in artifacts(run):
        if stage.manifest.kind == "evaluate" and stage.manifest.settings["arm"] == arm:
            questions = benches.setdefault(bench_name(stage), {})
            prompts = [trace.prompt for trace in stage.read("traces", Trace)]
            for prompt in (*prompts, *(failure.prompt for failure in stage.read("failures", Failure))):
                key = prompt.parent or prompt.id
                questions[key] = Prompt(text=prompt.question, intent=prompt.intent, id=key)
    return {bench: list(questions.values()) for bench, questions in benches.items()}


def read_rows(path: Path) -> list[Example]:
    """The rows of a file as training rows; of a prompt without an answer, the prompt alone. Raises UserError: no rows."""
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
    """The prompts of the named benchmarks or, if none is named, of all that have a copy in --data-dir.

    Raises UserError: there is nothing to compare with.
    """
    if flags.data is not None and len(named) != 1:
        raise UserError("--data is the copy of one benchmark; name that one, or use --data-dir.")
    if not named and flags.data_dir is None:
        raise UserError("nothing to compare with: name benchmarks, or give --data-dir with copies of them.")
    benches = {name: get_bench(name) for name in named or names() if named or "@" not in name}
    available = {name: bench for name, bench in benches.items() if named or local(bench, flags.data_dir)}
    if not available:
        files = ", ".join(sorted({name for bench in benches.values() for name in bench.files}))
        raise UserError(f"{flags.data_dir}: no copy of any benchmark. Looked for {files}.")
    return {name: load_prompts(bench, data=flags.data, data_dir=flags.data_dir) for name, bench in available.items()}

"""The work of `demur check contamination`: training rows against benchmarks, a certificate, and rows taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from demur.bench import get_bench, names
from demur.bench.load import load_prompts
from demur.cli import common
from demur.errors import CheckFailed, UserError
from demur.mix import examples_of
from demur.mix.contamination import RULES, Certificate, Found, certify, without
from demur.prompts.forms import load_file
from demur.records import Example, ExamplePart, Origin, Prompt, encode, write_jsonl
from demur.report.clean import Beside, asked, beside, mixes
from demur.report.format import interval
from demur.storage.artifacts import atomic_write, is_published

CERTIFICATE = "contamination.json"
SHOWN = 8
"""Masked pairs shown at most."""


def check_contamination(
    examples: Path,
    *,
    benches: Sequence[str] = (),
    data: Path | None = None,
    data_dir: Path | None = None,
    remove: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Compare training rows with benchmarks; write `contamination.json` and `contaminated.jsonl`.

    In a study's run each arm's rows are compared with what the arm was scored on, and the scores over the prompts that no row
    holds stand beside the full ones. `remove` writes the clean rows to `examples.jsonl`, too.

    Raises:
        CheckFailed: some row holds a benchmark prompt, and nothing was removed.
        UserError: no rows, no benchmark, no copy; `remove` for several arms.
    """
    arms = mixes(examples) if examples.is_dir() and not is_published(examples) else {}
    sets, run = arms or {"rows": read_rows(examples)}, examples if arms else None
    if remove and len(sets) > 1:
        raise UserError(f"{examples} holds the rows of {len(sets)} arms; give the stage of one with --remove.")
    scored = {name: asked(run, name) for name in sets} if run else {}
    named = bool(benches or data or data_dir or not any(scored.values()))
    given = gather(benches, data=data, data_dir=data_dir) if named else {}
    compared = {name: certify(rows, scored.get(name, {}) | given) for name, rows in sets.items()}
    # A finished stage is as its manifest says; what is found about it goes to its run.
    beside_it = examples.parent.parent if is_published(examples) else examples
    where = out or (beside_it if examples.is_dir() else Path("runs/contamination"))
    where.mkdir(parents=True, exist_ok=True)
    certificates = {name: certificate for name, (certificate, _) in compared.items()}
    pairs = [one for _, found in compared.values() for one in found]
    write_jsonl(where / "contaminated.jsonl", pairs)
    for name, rows in sets.items() if remove else ():
        certificates[name], clean = without(certificates[name], rows, pairs)
        write_jsonl(where / "examples.jsonl", clean)
        common.console.print(f"{certificates[name].removed:,} rows taken out: {where / 'examples.jsonl'}")
    results = beside(run, certificates) if run else []
    sound = all(certificate.clean for certificate in certificates.values())
    found = {"certificates": certificates, "results": results}
    atomic_write(where / CERTIFICATE, encode(found))
    if json:
        common.print_json({"clean": sound, "out": str(where)} | found)
    else:
        _show(certificates, pairs, results)
        common.console.print(f"certificate: {where / CERTIFICATE} · pairs: {where / 'contaminated.jsonl'}")
    if not sound:
        bad = len({one.example for one in pairs})
        raise CheckFailed(
            f"{bad:,} of {sum(map(len, sets.values())):,} training rows hold prompts that the model will be scored on. "
            "Take them out with --remove, or report the clean subset beside the full score."
        )


def _show(certificates: Mapping[str, Certificate], pairs: Sequence[Found], results: Sequence[Beside]) -> None:
    rows = [
        (name, one.bench, one.prompts, len(one.held), one.rows, *(one.by_rule.get(rule, 0) for rule in RULES))
        for name, certificate in certificates.items()
        for one in certificate.compared
    ]
    titles = ("arm", "benchmark", "#prompts", "#held by rows", "#rows", *(f"#{rule}" for rule in RULES))
    common.show(titles, rows)
    for one in pairs[:SHOWN]:
        said = f"{one.rule} {one.score:.2f}\n  row     {one.row_text}\n  prompt  {one.prompt_text}"
        common.console.print(said)
    for result in results:
        full, clean = result.full, result.clean
        if full.unit == "share" and full.metric != "cut":
            cell = f"{full.arm} · {full.bench} · {full.attack} · {full.metric} · {full.part}: {interval(full.estimate)}"
            left = interval(clean.estimate) if clean else "no prompt is left"
            common.stdout.print(f"{cell}; without {result.held} held: {left}")


def read_rows(path: Path) -> list[Example]:
    """What a file holds, as training rows.

    Raises:
        UserError: there are none.
    """
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


def gather(
    benches: Sequence[str], *, data: Path | None = None, data_dir: Path | None = None
) -> dict[str, list[Prompt]]:
    """Prompts of benchmarks by name: those asked for, or all with a copy in the folder.

    Raises:
        UserError: none was named and none has a copy.
    """
    if data is not None and len(benches) != 1:
        raise UserError("--data is the copy of one benchmark; name that one, or use --data-dir.")
    if benches:
        return {name: load_prompts(get_bench(name), data=data, data_dir=data_dir) for name in benches}
    if data_dir is None:
        raise UserError("against what? Name benchmarks, or give --data-dir with copies of them.")
    plain = [get_bench(name) for name in names() if "@" not in name]
    found = [bench for bench in plain if any((data_dir / name).exists() for name in bench.files)]
    if not found:
        looked = ", ".join(sorted({name for bench in plain for name in bench.files}))
        raise UserError(f"{data_dir}: no copy of any benchmark. Looked for {looked}.")
    return {bench.name: load_prompts(bench, data_dir=data_dir) for bench in found}

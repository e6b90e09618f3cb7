"""The work of `demur check contamination`: training rows against benchmarks, a certificate, and rows taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from demur.bench import get_bench, names
from demur.bench.load import load_prompts
from demur.cli import common
from demur.errors import CheckFailed, UserError
from demur.mix import example_of, unfit
from demur.mix.certificate import Certificate, Found, certify, without
from demur.mix.contamination import RULES
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

    Args:
        examples: a file, a finished stage or a run; traces count as examples, prompts as rows without a reply. In a
            study's run each arm's rows are compared with what the arm was scored on, and the scores over the prompts that no row
            holds stand beside the full ones.
        benches: names; all that have a copy in `data_dir` when empty.
        data: the copy of the one benchmark named.
        data_dir: where copies are found by name.
        remove: write the rows that are clean to `examples.jsonl`, beside the two files.
        out: where to write; the folder of `examples` when left out (never into a finished stage).
        json: print one object.

    Raises:
        CheckFailed: some row holds a benchmark prompt, and nothing was removed.
        UserError: no rows, no benchmark, no copy; `remove` for several arms.
    """
    sets, run = rows_of(examples)
    if remove and len(sets) > 1:
        raise UserError(f"{examples} holds the rows of {len(sets)} arms; give the stage of one with --remove.")
    scored = {name: asked(run, name) for name in sets} if run else {}
    named = bool(benches or data or data_dir or not any(scored.values()))
    given = gather(benches, data=data, data_dir=data_dir) if named else {}
    compared = {name: certify(rows, scored.get(name, {}) | given) for name, rows in sets.items()}
    where = _folder(examples, out)
    certificates, results = _write(where, sets, compared, run=run, remove=remove)
    sound = all(certificate.clean for certificate in certificates.values())
    if json:
        common.print_json({"clean": sound, "out": str(where), "certificates": certificates, "results": results})
    else:
        _tell(certificates, [one for _, pairs in compared.values() for one in pairs], results, where)
    if not sound:
        bad = len({one.example for _, pairs in compared.values() for one in pairs})
        raise CheckFailed(
            f"{bad:,} of {sum(map(len, sets.values())):,} training rows hold prompts that the model will be scored on. "
            "Take them out with --remove, or report the clean subset beside the full score."
        )


def _write(
    where: Path,
    sets: Mapping[str, list[Example]],
    compared: Mapping[str, tuple[Certificate, list[Found]]],
    *,
    run: Path | None,
    remove: bool,
) -> tuple[dict[str, Certificate], list[Beside]]:
    """Certificates and pairs to files, and the clean rows when asked for."""
    where.mkdir(parents=True, exist_ok=True)
    certificates = {name: certificate for name, (certificate, _) in compared.items()}
    found = [one for _, pairs in compared.values() for one in pairs]
    write_jsonl(where / "contaminated.jsonl", found)
    if remove:
        for name, rows in sets.items():
            certificates[name], clean = without(certificates[name], rows, found)
            write_jsonl(where / "examples.jsonl", clean)
            common.console.print(f"{certificates[name].removed:,} rows taken out: {where / 'examples.jsonl'}")
    results = beside(run, certificates) if run else []
    atomic_write(where / CERTIFICATE, encode({"certificates": certificates, "results": results}))
    return certificates, results


def _tell(
    certificates: Mapping[str, Certificate], found: Sequence[Found], results: Sequence[Beside], where: Path
) -> None:
    common.stdout.print(table(certificates))
    for one in found[:SHOWN]:
        said = f"{one.rule} {one.score:.2f}\n  row     {one.row_text}\n  prompt  {one.prompt_text}"
        common.console.print(said, markup=False)
    for result in results:
        full, clean = result.full, result.clean
        if full.unit == "share" and full.metric != "cut":
            cell = f"{full.arm} · {full.bench} · {full.attack} · {full.metric} · {full.part}: {interval(full.estimate)}"
            left = interval(clean.estimate) if clean else "no prompt is left"
            common.stdout.print(f"{cell}; without {result.held} held: {left}", markup=False)
    common.console.print(f"certificate: {where / CERTIFICATE} · pairs: {where / 'contaminated.jsonl'}")


def rows_of(path: Path) -> tuple[dict[str, list[Example]], Path | None]:
    """Training rows by name, and the run when each of its mixes is one of them."""
    found = mixes(path) if path.is_dir() and not is_published(path) else {}
    return (found, path) if found else ({"rows": read_rows(path)}, None)


def read_rows(path: Path) -> list[Example]:
    """What a file holds, as training rows.

    Raises:
        UserError: there are none.
    """
    loaded = load_file(path)
    rows = list(loaded.examples)
    fit = [trace for trace in loaded.traces if not unfit(trace, no_thinking="empty")]
    rows += [example_of(trace, share="rows") for trace in fit]
    answered = {trace.prompt.id for trace in fit}
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


def table(certificates: Mapping[str, Certificate]) -> Table:
    """Certificates for a terminal."""
    columns = ("arm", "benchmark", "prompts", "held by rows", "rows", *RULES)
    rows = [
        (name, one.bench, one.prompts, len(one.held), one.rows, *(one.by_rule.get(rule, 0) for rule in RULES))
        for name, certificate in certificates.items()
        for one in certificate.compared
    ]
    if len(certificates) > 1:
        return common.table(columns, rows, left=2)
    return common.table(columns[1:], [row[1:] for row in rows])


def _folder(examples: Path, out: Path | None) -> Path:
    if out is not None:
        return out
    if examples.is_dir():
        # A finished stage is as its manifest says; what is found about it goes to its run.
        return examples.parent.parent if is_published(examples) else examples
    return Path("runs/contamination")

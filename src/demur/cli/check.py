"""`demur check …`: is this sound? Exits 1 when it is not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from demur.bench import get_bench
from demur.bench.forms import solutions
from demur.bench.load import faults, find, read_prompts, text_hash, unread
from demur.cli import common
from demur.cli.contamination import check_contamination
from demur.errors import CheckFailed, UserError
from demur.judge.isolation import run_program
from demur.judge.maths import check_golds
from demur.mix import examples_of
from demur.mix.duplicates import masked
from demur.prompts.forms import load_file
from demur.records import Example
from demur.train.check import check_template as check
from demur.train.check import render_report
from demur.train.settings import TrainSettings

app = common.app("Is this sound? Exits 1 when it is not.")


@app.command()
def study(
    files: Annotated[list[Path], typer.Argument(help="Study files (.yaml).")],
    data_dir: common.DataDir = None,
    json: common.Json = False,
) -> None:
    """Validate study files: every key, every name, and the graph of stages that they mean. Asks no one.

    Examples:

      demur check study studies/*.yaml

      demur check study mine.yaml --data-dir data --json
    """
    rows: list[dict[str, Any]] = []
    for path in files:
        try:
            study, stages, missing, _ = common.load_study(path, None, data_dir=data_dir)
            about, lines = f"✓ {path}: {len(study.arms)} arms, {len(stages)} stages", missing
            rows.append(
                {"file": str(path), "sound": True, "stages": len(stages), "arms": len(study.arms), "missing": missing}
            )
        except UserError as error:
            about, lines = f"✗ {error}" if str(error).startswith(str(path)) else f"✗ {path}: {error}", []
            rows.append({"file": str(path), "sound": False, "error": str(error)})
        for line in () if json else (about, *(f"    missing here: {line}" for line in lines)):
            common.stdout.print(line, soft_wrap=True)  # a place that is broken in two cannot be clicked
    if json:
        common.print_json({"studies": rows})
    if wrong := sum(not row["sound"] for row in rows):
        raise UserError(f"{wrong} of {len(rows)} studies are not sound.")


@app.command()
def template(
    base: Annotated[str, typer.Option("--base", help="Model to train: local folder, hub id or mini-lrm-a.")],
    examples: common.Examples = None,
    family: Annotated[
        str, typer.Option("--template", help="Rendering: auto, tokenizer, or a family by name.")
    ] = "auto",
    json: common.Json = False,
) -> None:
    """Show three training rows with what is trained and what is not, and verify every row token by token.

    Examples:

      demur check template --base mini-lrm-a

      demur check template --base ./R1-Distill-Qwen-7B --examples runs/m
    """
    rows = None if examples is None else _examples(examples)
    report = check(common.base(base).weights_at, rows, settings=TrainSettings(template=family))
    if json:
        common.print_json(report.plain())
    else:
        common.stdout.print(render_report(report))
    if not report.ok:
        raise CheckFailed(report.why)


@app.command()
def contamination(
    examples: Annotated[Path, typer.Option("--examples", help="Training rows: a file, a finished stage or a run.")],
    benches: Annotated[list[str] | None, typer.Argument(help="Benchmarks; default: all with a copy here.")] = None,
    data: common.Data = None,
    data_dir: common.DataDir = None,
    remove: Annotated[bool, typer.Option("--remove", help="Write the clean rows beside the certificate.")] = False,
    out: common.Out = None,
    json: common.Json = False,
) -> None:
    """Compare training rows with benchmarks: equal, covered and nearly equal prompts; writes a certificate.

    Examples:

      demur check contamination --examples runs/m --data-dir data

      demur check contamination advbench --examples rows.jsonl --data advbench50.jsonl --remove --out runs/clean
    """
    check_contamination(
        examples, benches=benches or (), data=data, data_dir=data_dir, remove=remove, out=out, json=json
    )


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="A benchmark: `demur bench list` shows them.")],
    data: common.Data = None,
    data_dir: common.DataDir = None,
    json: common.Json = False,
) -> None:
    """Verify a copy of a benchmark: count, columns, hash, golds; show three masked rows.

    Examples:

      demur check bench safebench --data safebench.csv

      demur check bench math500 --data-dir data --json
    """
    bench, wrong, counts = get_bench(name), list[str](), dict[str, int]()
    path = None if bench.generated else find(bench, data=data, data_dir=data_dir)
    prompts = read_prompts(bench, path)
    if path is not None:
        wrong = faults(bench, prompts)
        if bench.judge == "maths":  # the worked solutions' answers, and changed golds
            found, counts = check_golds(prompts, solutions(bench, path))
            wrong += [f"{fault.kind} of {fault.prompt}: {fault.detail}" for fault in found]
    about = {"bench": bench.name, "version": bench.version, "count": len(prompts), "sha256": text_hash(prompts)}
    if json:
        common.print_json(about | {"licence": bench.licence, "golds": counts, "faults": wrong})
    else:
        for what, value in (about | {"licence": bench.licence} | counts).items():
            common.stdout.print(f"{what.replace('_', ' ')}: {value}")
        for prompt in prompts[:3]:
            shown = prompt.question if prompt.intent in ("maths", "code", "benign") else masked(prompt.question)
            common.stdout.print(f"  {prompt.intent:<8} {prompt.category:<24} {shown[:90]}")
        if note := unread(name, path):
            common.stdout.print(note)
    if wrong:
        raise CheckFailed(f"{name}: {len(wrong)} faults: {'; '.join(wrong[:3])}")


@app.command()
def isolation(
    program: Annotated[
        Path | None, typer.Option("--program", exists=True, help="Run this Python program in isolation.")
    ] = None,
    stdin: Annotated[Path | None, typer.Option("--stdin", exists=True, help="A file with its standard input.")] = None,
    json: common.Json = False,
) -> None:
    """Try to break the isolation of model-written code on this machine, or run one program in it.

    Examples:

      demur check isolation

      demur check isolation --program solution.py --stdin input.txt --json
    """
    from demur.judge.escapes import check

    if program is not None:
        _run_one(program, stdin=stdin, json=json)
        return

    done = []
    for tried in check():
        done.append(tried)
        mark = "✓" if tried.held else "✗"
        common.console.print(f"  {mark} {tried.name:<28} {tried.ending:<8} {tried.seconds:5.1f} s  {tried.detail}")
    broken = [tried.name for tried in done if not tried.held]
    if json:
        common.print_json({"held": len(done) - len(broken), "of": len(done), "broken": broken})
    else:
        common.stdout.print(f"isolation held against {len(done) - len(broken)} of {len(done)} programs")
    if broken:
        raise CheckFailed(f"isolation did not hold against: {', '.join(broken)}.")


@app.command()
def shapes(
    url: Annotated[str, typer.Argument(help="Base URL up to /v1.")],
    model: common.ServedName = None,
    key_env: common.KeyEnv = None,
    json: common.Json = False,
) -> None:
    """Ask a host five short questions and say what is odd about it, before money is spent.

    Examples:

      demur check shapes http://127.0.0.1:8000/v1

      demur check shapes https://api.example.com/v1 --model NAME --key-env API_KEY --json
    """
    from demur.models.config import Remote, as_model
    from demur.testing.shapes import USELESS
    from demur.testing.shapes import shapes as seen

    host = as_model({"url": url} | common.given({"model": model, "key_env": key_env}), where=url)
    assert isinstance(host, Remote)
    found = asyncio.run(seen(host))
    if json:
        common.print_json({"url": url, "shapes": found})
    for shape, sentence in () if json else found.items():
        common.stdout.print(f"{shape}: {sentence}", soft_wrap=True)
    if bad := [shape for shape in USELESS if shape in found]:
        raise CheckFailed(f"{url} is {' and '.join(bad)}: nothing can be measured with it as it is.")
    if not found and not json:
        common.stdout.print("sound: it answers harmless questions rightly, and declines a harmful one.")


def _examples(path: Path) -> list[Example]:
    """Training rows of a file, a finished stage or a run."""
    loaded = load_file(path)
    return [*loaded.examples, *examples_of(loaded.traces, share="file")[0]]


def _run_one(program: Path, *, stdin: Path | None, json: bool) -> None:
    """Run one program in isolation and show how it ended."""
    run = run_program(program.read_text(encoding="utf-8"), stdin=stdin.read_bytes() if stdin else b"")
    about = {"label": run.ending, "exit": run.exit, "seconds": round(run.seconds, 3)}
    about |= {"stdout_bytes": len(run.stdout), "stderr_bytes": len(run.stderr)}
    if json:
        common.print_json(about)
        return
    common.stdout.print("  ".join(f"{key}: {value}" for key, value in about.items()))
    common.stdout.print(run.stdout.decode("utf-8", "replace"))

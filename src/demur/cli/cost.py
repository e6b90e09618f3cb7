"""`demur cost RUN`: what a run asked, and what it cost."""

from pathlib import Path
from typing import Any

import msgspec

from demur.cli import common
from demur.errors import UserError
from demur.pipeline.run import CACHE
from demur.storage.reply_cache import FILE, ReplyCache

COUNTS = ("requests", "failed", "retries", "tokens_in", "tokens_out", "tokens_thinking")


@common.verb("cache json")
def cost(run: Path, flags: common.Flags) -> None:
    """Requests, tokens and money by part and stage, summed up from the stored replies.

    Each request counts once, under the stage that asked it first; replies found in the cache cost nothing again.
    """
    with ReplyCache(folder_of(run, flags.cache)) as kept:
        lines, failures = kept.ledger(), kept.failures()
    if flags.json:
        common.print_json({"lines": lines, "total": _total(lines), "failures": failures})
        return
    titles = ("part", "stage", *(f"#{name.replace('_', ' ')}" for name in COUNTS), "#money")
    every = [*map(msgspec.structs.asdict, lines), {"part": "all", "stage": "", **_total(lines)}]
    money = [None if line["cost"] is None else f"{line['cost']:,.4f}" for line in every]
    counts = [[line[name] for name in ("part", "stage", *COUNTS)] for line in every]
    common.show(titles, [(*own, cost) for own, cost in zip(counts, money, strict=True)])
    if failures:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items()))
        common.stdout.print(f"failed: {listed}. Ask again: demur retry {run}")


def folder_of(run: Path, cache: Path | None) -> Path:
    """The folder of a run's reply cache. Raises UserError: there is none."""
    for folder in [cache] if cache else [run / CACHE, run]:
        if (folder / FILE).is_file():
            return folder
    raise UserError(f"{cache or run} holds no reply cache ({FILE}).")


def _total(lines: list[Any]) -> dict[str, Any]:
    known = {name: [n for line in lines if (n := getattr(line, name)) is not None] for name in (*COUNTS, "cost")}
    return {name: sum(those) if those else None for name, those in known.items()}

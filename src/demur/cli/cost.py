"""`demur cost RUN`: requests, tokens and money of a run."""

from pathlib import Path

import msgspec

from demur.cli import common
from demur.errors import UserError
from demur.pipeline.run import CACHE
from demur.storage.reply_cache import FILE, ReplyCache

COUNTS = ("requests", "failed", "retries", "tokens_in", "tokens_out", "tokens_thinking")


@common.verb("cache json")
def cost(run: Path, flags: common.Flags) -> None:
    """Show requests, tokens and money for each part and stage, summed over the stored replies.

    A request counts once, for the stage that sent it first; a stage that found the reply in the cache paid nothing.
    """
    with ReplyCache(folder_of(run, flags.cache)) as replies:
        lines, failures = replies.ledger(), replies.failures()
    known = {name: [n for line in lines if (n := getattr(line, name)) is not None] for name in (*COUNTS, "cost")}
    total = {name: sum(numbers) if numbers else None for name, numbers in known.items()}
    if flags.json:
        common.print_json({"lines": lines, "total": total, "failures": failures})
        return
    titles = ("part", "stage", *(f"#{name.replace('_', ' ')}" for name in COUNTS), "#money")
    rows = []
    for line in [*map(msgspec.structs.asdict, lines), {"part": "all", "stage": "", **total}]:
        money = None if line["cost"] is None else f"{line['cost']:,.4f}"
        rows.append((line["part"], line["stage"], *(line[name] for name in COUNTS), money))
    common.show(titles, rows)
    if failures:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items()))
        common.stdout.print(f"failed: {listed}. Send them again: demur retry {run}")


def folder_of(run: Path, cache: Path | None) -> Path:
    """The folder of a run's reply cache. Raises UserError: no cache was found."""
    for folder in [cache] if cache else [run / CACHE, run]:
        if (folder / FILE).is_file():
            return folder
    raise UserError(f"{cache or run} holds no reply cache ({FILE}).")

"""The prompts of benchmarks as pools of prompts to train on: `source: advbench` in a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from demur.bench import get_bench
from demur.bench.load import read_prompts
from demur.records import Prompt


def _source(name: str) -> Callable[..., list[Prompt]]:
    def read(path: Path, *, n: int | None = None, seed: int = 0) -> list[Prompt]:
        return read_prompts(get_bench(name), path)

    return read


advbench, harmbench, safebench, strongreject = map(_source, ("advbench", "harmbench", "safebench", "strongreject"))
wildjailbreak, xstest, orbench_hard = map(_source, ("wildjailbreak", "xstest", "orbench_hard"))

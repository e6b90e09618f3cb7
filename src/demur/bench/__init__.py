"""What is measured: one file a benchmark, listed here by name. `@paper-v1` and `@paper-v2` are the paper's protocols.

A benchmark is prompts, sampling, judge, query and part, metrics and a version in one record (`spec.Bench`). Loading its
prompts is `load.load_prompts`; numbers of its verdicts are made in `report.metrics`.
"""

from __future__ import annotations

from demur.bench.spec import Bench
from demur.errors import unknown
from demur.registry import resolve

BENCHES: dict[str, str] = {
    "advbench": "demur.bench.advbench:ADVBENCH",
    "advbench@paper-v1": "demur.bench.advbench:ADVBENCH_PAPER_V1",
    "advbench@paper-v2": "demur.bench.advbench:ADVBENCH_PAPER_V2",
    "harmbench": "demur.bench.harmbench:HARMBENCH",
    "harmbench_contextual": "demur.bench.harmbench:HARMBENCH_CONTEXTUAL",
    "safebench": "demur.bench.safebench:SAFEBENCH",
    "strongreject": "demur.bench.strongreject:STRONGREJECT",
    "jailbreakbench": "demur.bench.jailbreakbench:JAILBREAKBENCH",
    "wildjailbreak": "demur.bench.wildjailbreak:WILDJAILBREAK",
    "xstest": "demur.bench.xstest:XSTEST",
    "xstest@paper-v1": "demur.bench.xstest:XSTEST_PAPER_V1",
    "xstest@paper-v2": "demur.bench.xstest:XSTEST_PAPER_V2",
    "orbench_hard": "demur.bench.orbench:ORBENCH_HARD",
    "orbench_toxic": "demur.bench.orbench:ORBENCH_TOXIC",
    "harmful": "demur.bench.harmful:HARMFUL",
    "replayed": "demur.bench.harmful:REPLAYED",
    "mini_harm": "demur.mini.benches:MINI_HARM",
    "mini_benign": "demur.mini.benches:MINI_BENIGN",
    "mini_arithmetic": "demur.mini.benches:MINI_ARITHMETIC",
    "math500": "demur.bench.math500:MATH500",
    "math500@paper-v2": "demur.bench.math500:MATH500_PAPER_V2",
    "aime24": "demur.bench.aime:AIME24",
    "aime24@paper-v2": "demur.bench.aime:AIME24_PAPER_V2",
    "aime25": "demur.bench.aime:AIME25",
    "aime25@paper-v2": "demur.bench.aime:AIME25_PAPER_V2",
    "gsm8k": "demur.bench.gsm8k:GSM8K",
    "gsm8k@paper-v2": "demur.bench.gsm8k:GSM8K_PAPER_V2",
    "livecodebench": "demur.bench.livecodebench:LIVECODEBENCH",
    "livecodebench@r1": "demur.bench.livecodebench:LIVECODEBENCH_R1",
    "livecodebench@paper-v2": "demur.bench.livecodebench:LIVECODEBENCH_PAPER_V2",
}
"""Name -> `module:attribute`, a `spec.Bench`."""


def get_bench(name: str) -> Bench:
    """The benchmark of a name, or of a `module:attribute`.

    Raises:
        UserError: there is none; the nearest name and all names are given.
    """
    if name not in BENCHES and ":" not in name:
        raise unknown("benchmark", name, BENCHES)
    bench: Bench = resolve("benchmark", name, BENCHES)
    return bench

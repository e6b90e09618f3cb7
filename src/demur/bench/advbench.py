"""AdvBench-50: the fifty distinct harmful requests that the authors of PAIR drew from AdvBench.

Zou et al. 2023 (arXiv 2307.15043); subset of Chao et al. 2023 (arXiv 2310.08419). The paper attacks them plainly, with
one frozen persuasive rewrite each (PAP), and with PAIR.
"""

from __future__ import annotations

from msgspec.structs import replace

from demur.bench.load import plain
from demur.bench.metrics import ATTACK_SUCCESS, SAFETY
from demur.records import Sampling

COLUMNS = ("query|goal|prompt",)
read = plain(COLUMNS, "advbench")
"""The requests of a local copy; the target sentences that come with them are not used."""

ADVBENCH = replace(
    SAFETY,
    name="advbench",
    source="demur.bench.advbench:read",
    count=50,
    files=("advbench50.jsonl", "advbenchsub.jsonl", "harmful_behaviors_custom.csv", "advbench.jsonl", "advbench.csv"),
    columns=COLUMNS,
    sha256="614b39eb33b07ecf6d80afd2451ccdc0b2aae17fcf4d9e447fc08c1c8c154036",
    licence="MIT",
    paper="arXiv 2307.15043, 2310.08419",
    attacks=("none", "pap", "pair"),
    about="50 harmful requests; judged offline unless a harm judge is named with --judge",
)
ADVBENCH_PAPER_V2 = replace(
    ADVBENCH,
    name="advbench@paper-v2",
    sampling=Sampling(temperature=0.0, top_p=1.0, max_tokens=4096),
    judge="llama_guard3",
    part="whole",
    metrics=(ATTACK_SUCCESS,),
    paper="arXiv 2505.15404v2",
    about="as the paper's second version: greedy, the raw request and the whole reply judged by Llama Guard 3",
)
ADVBENCH_PAPER_V1 = replace(
    ADVBENCH_PAPER_V2,
    name="advbench@paper-v1",
    sampling=Sampling(temperature=0.6, top_p=0.95, max_tokens=4096),
    paper="arXiv 2505.15404v1",
    about="as the first version's code ran: sampled at 0.6, because its server wrapper dropped the wish to be greedy",
)

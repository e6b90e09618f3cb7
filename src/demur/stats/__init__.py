"""From outcomes to numbers that may be printed: intervals, paired tests, and what a judge's errors do to a rate.

A benchmark samples prompts; replies to one prompt are not independent, and trained seeds are few. So every interval is
clustered by prompt, and a number over several seeds includes the spread between them. All intervals are for 95 %.
Where no number is justified, the value is `None` and `how` gives the reason; 0 of 50 never reads as certainty.

`rates.py` makes one number, `tests.py` compares two, `spread.py` is the arithmetic underneath. Sources: Wilson 1927;
Satterthwaite 1946; Holm 1979; Smyth 2004; Zou and Donner 2008; Bonett and Price 2012; Lang and Reiczigel 2014.
`benchmarks/coverage.py` measures the coverage of the intervals and the level of the tests.
"""

from demur.stats.rates import USUAL, Better, at_least_one, corrected, drawn, mean, rate, ratio, stratified
from demur.stats.tests import (
    USUAL_BASES,
    Difference,
    detectable,
    holm,
    kappa,
    minimum_detectable,
    non_inferior,
    p_at,
    paired,
    prompts_needed,
)

__all__ = [
    "USUAL", "USUAL_BASES", "Better", "Difference", "at_least_one", "corrected", "detectable", "drawn",
    "holm", "kappa", "mean", "minimum_detectable", "non_inferior", "p_at", "paired", "prompts_needed", "rate", "ratio",
    "stratified",
]  # fmt: skip

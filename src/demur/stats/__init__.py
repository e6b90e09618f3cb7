"""From outcomes to numbers that may be printed: intervals, paired tests, and what a judge's errors do to a rate.

Prompts are what a benchmark samples; replies to one prompt are not independent, and trained seeds are few. So every interval
is clustered by prompt, and a number over several seeds carries the spread between them too. All intervals are for 95 %.
Where nothing can be said the value is `None` and `how` gives the reason; 0 of 50 never reads as certainty.

    rates.py   one number: shares, means, ratios     tests.py   two: paired differences, Holm, power
    spread.py  the arithmetic underneath

Sources: Wilson 1927; Bonett and Price 2012 (paired differences); Satterthwaite 1946; Smyth 2004 (moderated t); Holm 1979;
Lang and Reiczigel 2014 (rates corrected for an imperfect judge);
Zou and Donner 2008 (rates over strata). `benchmarks/coverage.py` measures what they promise.
"""

from demur.stats.rates import USUAL, Better, at_least_one, corrected, drawn, mean, rate, ratio, stratified
from demur.stats.tests import (
    USUAL_BASES,
    Difference,
    holm,
    kappa,
    minimum_detectable,
    non_inferior,
    p_at,
    paired,
    prompts_needed,
    settles,
)

__all__ = [
    "USUAL", "USUAL_BASES", "Better", "Difference", "at_least_one", "corrected", "drawn", "holm", "kappa", "mean", "minimum_detectable",
    "non_inferior", "p_at", "paired", "prompts_needed", "rate", "ratio", "settles", "stratified",
]  # fmt: skip

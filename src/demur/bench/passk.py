"""What several samples a problem tell: pass@k without bias, and what right answers cost in tokens.

pass@k is the chance that at least one of k replies is right. From n >= k replies with c right ones its unbiased estimate
is 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374); pass@1 is the mean share of right replies, avg@n. Problems
are what a benchmark samples, so intervals are over problems. More than n is refused, and nothing is divided by a number of
samples that was asked for and never came.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from demur import stats
from demur.bench.spec import Bench
from demur.errors import UserError, WorkError
from demur.records import Estimate, Failure, Result, Trace, Verdict


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate of pass@k from n replies of which `correct` are right.

    Raises:
        UserError: k is not within 1 to n.
    """
    if not 1 <= k <= n:
        raise UserError(f"pass@{k} cannot be told from {n} samples a problem: ask for at least {k} with --samples.")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def estimate(graded: Iterable[tuple[str, bool | None]], *, asked: int, k: int, failed: Iterable[str] = ()) -> Estimate:
    """pass@k over problems.

    Args:
        graded: problem and whether the reply was right, for each reply; `None`: it could not be told.
        asked: samples that were asked for of each problem.
        k: at most `asked`.
        failed: problem of each request that got no reply. A problem that lost one, or has an undecided one, is unscored.

    Raises:
        UserError: k is more than `asked`.
        WorkError: a problem has another number of samples than was asked for.
    """
    problems: dict[str, list[bool | None]] = defaultdict(list)
    for problem, right in graded:
        problems[problem].append(right)
    for problem in failed:
        problems[problem].append(None)
    pass_at_k(asked, 0, k)
    for problem, replies in problems.items():
        if len(replies) != asked:
            raise WorkError(
                f"problem {problem} has {len(replies)} samples and {asked} were asked for: its pass@{k} would be wrong. "
                "Run the same command again; what is there is kept."
            )
    values = [
        None if None in replies else pass_at_k(asked, sum(map(bool, replies)), k) for replies in problems.values()
    ]
    found = stats.mean(values, clusters=list(problems))
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def results(
    bench: Bench,
    traces: Sequence[Trace],
    verdicts: Iterable[Verdict],
    failures: Iterable[Failure] = (),
    *,
    blank: Result,
) -> list[Result]:
    """What the rates of `summary` do not say: pass@k for k = n, and the economy of tokens.

    Args:
        bench: its protocol.
        traces: of one model, each with the `sampling.n` that was asked for.
        verdicts: correct, wrong or no_answer.
        failures: requests without a reply.
        blank: arm, seed, attack, judge and part of the results.

    Raises:
        WorkError: as `estimate`.
    """
    right = {v.trace: None if v.label is None else v.label == "correct" for v in verdicts}
    blank = replace(blank, bench=bench.name)
    made = []
    asked = max((trace.sampling.n for trace in traces), default=1)
    if asked > 1:
        graded = [(trace.prompt.id, right.get(trace.id)) for trace in traces]
        found = estimate(graded, asked=asked, k=asked, failed=[failure.prompt.id for failure in failures])
        made.append(replace(blank, metric=f"pass@{asked}", estimate=found, better="higher"))
    made += economy(traces, right, blank)
    return made


def economy(traces: Sequence[Trace], right: dict[str, bool | None], blank: Result) -> list[Result]:
    """Tokens of an answer, and of all replies together for each right one (a ratio, its interval by linearisation)."""
    made = []
    told = [t for t in traces if t.tokens_out is not None and t.tokens_thinking is not None]
    if told:
        answers = [float((t.tokens_out or 0) - (t.tokens_thinking or 0)) for t in told]
        found = stats.mean(answers, clusters=[t.prompt.cluster for t in told], truncated=sum(t.truncated for t in told))
        made.append(replace(blank, metric="answer_tokens", estimate=found, part="answer", unit="tokens"))
    counted = [t for t in traces if t.tokens_out is not None and right.get(t.id) is not None]
    hits = [float(bool(right[t.id])) for t in counted]
    if not counted:
        return made
    found = Estimate(value=None, low=None, high=None, n=len(counted), how="nothing was right")
    if any(hits):
        share = sum(hits) / len(hits)
        ratio = sum(t.tokens_out or 0 for t in counted) / sum(hits)
        lines = [ratio + ((t.tokens_out or 0) - ratio * hit) / share for t, hit in zip(counted, hits, strict=True)]
        found = stats.mean(
            lines, clusters=[t.prompt.cluster for t in counted], truncated=sum(t.truncated for t in counted)
        )
        found = replace(found, how=f"{found.how}, linearised ratio")
    whole = replace(blank, metric="tokens_per_correct", estimate=found, part="whole", better="lower", unit="tokens")
    return [*made, whole]

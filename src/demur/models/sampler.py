"""Batched generation: how the next token is drawn, and rows that enter and leave a running batch.

A row's text depends on no other row, batch or run. Each row has a 63-bit seed, and the noise of a token at a step is a
hash of (seed, step, token id), made Gumbel: the token with the largest scaled logit plus noise is a draw from the
softmax (Gumbel-max). There is no generator state. Logits do not depend on neighbours either: see `cells`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from demur.models.cells import cells_for
from demur.records import Finish

log = logging.getLogger("demur")
REPORT = 60.0  # Seconds between two log lines about a batch that takes long
AREA = 1 << 24  # Bound on rows x length x length of the prompts that are read together
CANDIDATES = 64  # Tokens that are sorted before all of them are: nearly always enough to reach `top_p`
_MIX = ((30, -4658895280553007687), (27, -7723592293110705685))  # Shifts and factors of splitmix64, signed
_GOLDEN = -7046029254386353131


def gumbel(seeds: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float32.

    Args:
        seeds: int64 `[rows]`.
        steps: int64 `[rows]`, the number of new tokens that the row already has.
        tokens: int64 `[rows, n]`, token ids.
    """
    state = _hash(seeds + steps * _GOLDEN)[:, None] + tokens * _GOLDEN
    bits = (_hash(state) >> 11) & ((1 << 53) - 1)
    uniform = (bits.to(torch.float64) + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform)).to(torch.float32)


def _hash(state: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser; `>>` keeps the sign, so the shifted-in bits are masked."""
    for shift, factor in _MIX:
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return state ^ ((state >> 31) & ((1 << 33) - 1))


class TokenSampler(NamedTuple):
    """Draws tokens with a temperature, top-k and top-p."""

    temperature: float
    top_p: float
    top_k: int | None

    def draw(self, logits: torch.Tensor, seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """The next tokens, int64 `[rows]`, for logits `[rows, vocabulary]`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.float() / self.temperature
        if self.top_p >= 1 and self.top_k is None:
            tokens = torch.arange(scaled.shape[1]).expand_as(scaled)
            return (scaled + gumbel(seeds, steps, tokens).to(scaled.device)).argmax(-1)
        values, tokens = self._candidates(scaled)
        noise = gumbel(seeds, steps, tokens.cpu()).to(values.device)
        return tokens.gather(1, (values + noise).argmax(-1, keepdim=True))[:, 0]

    def _candidates(self, scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled logits and ids of candidate tokens, best first; a token that must not be drawn has minus infinity."""
        size = scaled.shape[1]
        count = min(size, self.top_k or CANDIDATES)
        values, tokens = scaled.topk(count)
        if self.top_p >= 1:
            return values, tokens
        # With top-k, top-p counts probabilities among the k, as other implementations do.
        support = values if self.top_k else scaled
        shares = (values - support.logsumexp(-1, keepdim=True)).exp()
        before = shares.cumsum(-1) - shares
        if not self.top_k and count < size and bool((before[:, -1] + shares[:, -1] < self.top_p).any()):
            values, tokens = scaled.sort(descending=True, stable=True)
            shares = values.softmax(-1)
            before = shares.cumsum(-1) - shares
        return values.masked_fill(before >= self.top_p, -torch.inf), tokens


@dataclass
class Generated:
    """A row: its job and the tokens generated so far, the stop token included."""

    job: Any
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None  # Why it ended
    forced: deque[int] | None = None  # Tokens that are appended in place of drawn ones
    first: dict[int, float] = field(default_factory=dict)  # Log-probabilities of the likeliest first tokens, if wanted


OnEnd = Callable[[Any, Generated], None]  # Called with the job and its row


class Force(NamedTuple):
    """From step `at` on, append `tokens` to the rows for which `when(job, tokens so far)` holds."""

    tokens: list[int]
    at: int
    when: Callable[[Any, list[int]], bool]


class BatchGenerator:
    """Generates a batch token by token; a row that ends makes room for a job that waits."""

    def __init__(
        self, model: Any, *, stops: frozenset[int], width: int, force: Force | None = None, keep_first: int = 0
    ) -> None:
        """An empty batch of at most `width` rows, which `stops` end; `keep_first` alternatives to first tokens are kept."""
        self._cells = cells_for(model)
        self._stops, self._force, self._keep_first = stops, force, keep_first
        self._width = min(width, self._cells.most)
        self._rows: list[Generated] = []

    def run(self, sampler: TokenSampler, jobs: deque[Any], on_end: OnEnd, stop: threading.Event) -> None:
        """Generate until no job waits and every row has ended, or `stop` is set; `on_end` gets each row as it ends.

        A job has a `prompt` (token ids), a `seed` (63 bits) and a `limit` (most new tokens). `jobs` may grow meanwhile.
        Prompts of the same length that follow each other are read together.
        """
        began = reported = time.monotonic()
        rows = tokens = 0
        with torch.inference_mode():
            while not stop.is_set():
                while jobs and len(self._rows) < self._width and not stop.is_set():
                    self._enter(sampler, jobs)
                    rows += self._leave(on_end)
                if not self._rows:
                    return
                while self._cells.full and len(self._rows) > 1:
                    self._put_back(jobs)
                tokens += len(self._rows)
                logits = self._cells.step([row.tokens[-1] for row in self._rows])
                self._append(sampler, self._rows, logits)
                rows += self._leave(on_end)
                if time.monotonic() - reported > REPORT:
                    reported = time.monotonic()
                    state = (rows, len(self._rows), len(jobs), tokens, tokens / (reported - began))
                    log.warning("%d rows done, %d in progress, %d wait; %d tokens, %.0f a second", *state)

    def _enter(self, sampler: TokenSampler, jobs: deque[Any]) -> None:
        """Read the prompts of the next jobs and draw their first tokens."""
        size = len(jobs[0].prompt)
        most = min(self._width - len(self._rows), max(1, AREA // size**2))
        new: list[Generated] = []
        while jobs and len(new) < most and len(jobs[0].prompt) == size:
            new.append(Generated(jobs.popleft()))
        logits = self._cells.read([row.job.prompt for row in new])
        if self._keep_first:
            values, tokens = logits.float().log_softmax(-1).topk(min(self._keep_first, logits.shape[1]))
            for row, logprobs, ids in zip(new, values.tolist(), tokens.tolist(), strict=True):
                row.first = dict(zip(ids, logprobs, strict=True))
        self._rows += new
        self._append(sampler, new, logits)

    def _append(self, sampler: TokenSampler, rows: list[Generated], logits: torch.Tensor) -> None:
        """Give each row its next token."""
        seeds = torch.tensor([row.job.seed for row in rows])
        steps = torch.tensor([len(row.tokens) for row in rows])
        for row, token in zip(rows, sampler.draw(logits, seeds, steps).tolist(), strict=True):
            force = self._force
            if force and len(row.tokens) == force.at and force.when(row.job, row.tokens):
                row.forced = deque(force.tokens)
            row.tokens.append(row.forced.popleft() if row.forced else token)
            if row.tokens[-1] in self._stops:
                row.finish = "stop"
            elif len(row.tokens) >= row.job.limit:
                row.finish = "length"

    def _put_back(self, jobs: deque[Any]) -> None:
        """Free memory: the shortest row waits until another ends and starts again. Its text will be the same."""
        at = min(range(len(self._rows)), key=lambda at: len(self._rows[at].tokens))
        jobs.appendleft(self._remove(at).job)
        self._width = len(self._rows)

    def _remove(self, at: int) -> Generated:
        """Remove a row; the last one takes its place."""
        self._cells.drop(at)
        row, self._rows[at] = self._rows[at], self._rows[-1]
        self._rows.pop()
        return row

    def _leave(self, on_end: OnEnd) -> int:
        """Remove the rows that have ended and pass them to `on_end`; returns how many there were."""
        count = len(self._rows)
        for at in reversed(range(count)):
            row = self._rows[at]
            if row.finish is not None:
                self._remove(at)
                on_end(row.job, row)
        return count - len(self._rows)

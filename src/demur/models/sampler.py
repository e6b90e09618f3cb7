"""Batched writing: how the next token is drawn, and rows that enter and leave a running batch.

A row's text is its own: no other row, no batch, no run changes it. Each row has a 63-bit seed. The noise of a token at a
step is a hash of (seed, step, token id), made Gumbel; the token with the greatest scaled log-probability plus noise is a
draw from the softmax (Gumbel-max). Nothing is kept between steps. Logits do not depend on neighbours either: see `cells`.
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
REPORT = 60.0  # Seconds between two lines about a batch that takes long
AREA = 1 << 24  # Prompts that are read together: rows x length x length at most
CANDIDATES = 64  # How many tokens are sorted before all of them are: nearly always enough to fill `top_p`
_MIX = ((30, -4658895280553007687), (27, -7723592293110705685))  # Shifts and factors of splitmix64, signed
_GOLDEN = -7046029254386353131


def gumbel(seeds: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float32.

    Args:
        seeds: int64 `[rows]`.
        steps: int64 `[rows]`: which new token of the row.
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


class Rule(NamedTuple):
    """Temperature, top-k and top-p, as one draws with them."""

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
        """Log-weights and ids of the tokens that may be drawn, best first; the others' weights are minus infinity."""
        size = scaled.shape[1]
        count = min(size, self.top_k or CANDIDATES)
        values, tokens = scaled.topk(count)
        if self.top_p >= 1:
            return values, tokens
        # With top-k, top-p counts within the k, as everywhere.
        whole = values if self.top_k else scaled
        shares = (values - whole.logsumexp(-1, keepdim=True)).exp()
        before = shares.cumsum(-1) - shares
        if not self.top_k and count < size and bool((before[:, -1] + shares[:, -1] < self.top_p).any()):
            values, tokens = scaled.sort(descending=True, stable=True)
            shares = values.softmax(-1)
            before = shares.cumsum(-1) - shares
        return values.masked_fill(before >= self.top_p, -torch.inf), tokens


@dataclass
class Written:
    """What a row has written, its stop token included."""

    line: Any
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None  # Why it has ended
    queue: deque[int] | None = None  # Tokens that are forced upon it
    first: dict[int, float] = field(default_factory=dict)
    """Log-probabilities of the likeliest first tokens, where they were asked for."""


class Force(NamedTuple):
    """From step `at` on, put `tokens` into the mouth of the rows for which `when(line, written so far)` holds."""

    tokens: list[int]
    at: int
    when: Callable[[Any, list[int]], bool]


class Writer:
    """A batch that is written token by token; a row that has ended makes room for one that waits."""

    def __init__(
        self, model: Any, *, stops: frozenset[int], width: int, force: Force | None = None, keep_first: int = 0
    ) -> None:
        """An empty batch of at most `width` rows, each ended by one of `stops`; of a row's first token `keep_first` alternatives are kept."""
        self._cells = cells_for(model)
        self._stops, self._force, self._keep_first = stops, force, keep_first
        self._width = min(width, self._cells.most)
        self._rows: list[Written] = []

    def run(self, rule: Rule, lines: deque[Any], ended: Callable[[Any, Written], None], stop: threading.Event) -> None:
        """Write until no line waits and each row has ended, or `stop` is set; `ended` gets each row as it ends.

        Each line has a `prompt` (token ids), a `seed` (63 bits) and a `limit` (most new tokens). `lines` may grow while it
        runs. Neighbours of the same length are read together.
        """
        began = told = time.monotonic()
        rows = tokens = 0
        with torch.inference_mode():
            while not stop.is_set():
                while lines and len(self._rows) < self._width and not stop.is_set():
                    self._enter(rule, lines)
                    rows += self._leave(ended)
                if not self._rows:
                    return
                while self._cells.full and len(self._rows) > 1:
                    self._put_back(lines)
                tokens += len(self._rows)
                logits = self._cells.step([row.tokens[-1] for row in self._rows])
                self._take(rule, self._rows, logits)
                rows += self._leave(ended)
                if time.monotonic() - told > REPORT:
                    told = time.monotonic()
                    state = (rows, len(self._rows), len(lines), tokens, tokens / (told - began))
                    log.warning("%d rows done, %d write, %d wait; %d tokens, %.0f a second", *state)

    def _enter(self, rule: Rule, lines: deque[Any]) -> None:
        """Read the prompts of the next lines and draw their first tokens."""
        size = len(lines[0].prompt)
        most = min(self._width - len(self._rows), max(1, AREA // size**2))
        new: list[Written] = []
        while lines and len(new) < most and len(lines[0].prompt) == size:
            new.append(Written(lines.popleft()))
        logits = self._cells.read([row.line.prompt for row in new])
        if self._keep_first:
            values, tokens = logits.float().log_softmax(-1).topk(min(self._keep_first, logits.shape[1]))
            for row, chances, ids in zip(new, values.tolist(), tokens.tolist(), strict=True):
                row.first = dict(zip(ids, chances, strict=True))
        self._rows += new
        self._take(rule, new, logits)

    def _take(self, rule: Rule, rows: list[Written], logits: torch.Tensor) -> None:
        """Give each row its next token."""
        seeds = torch.tensor([row.line.seed for row in rows])
        steps = torch.tensor([len(row.tokens) for row in rows])
        for row, token in zip(rows, rule.draw(logits, seeds, steps).tolist(), strict=True):
            force = self._force
            if force and len(row.tokens) == force.at and force.when(row.line, row.tokens):
                row.queue = deque(force.tokens)
            row.tokens.append(row.queue.popleft() if row.queue else token)
            if row.tokens[-1] in self._stops:
                row.finish = "stop"
            elif len(row.tokens) >= row.line.limit:
                row.finish = "length"

    def _put_back(self, lines: deque[Any]) -> None:
        """Memory is short: the row that has least begins anew when another has ended. Its text is the same."""
        at = min(range(len(self._rows)), key=lambda at: len(self._rows[at].tokens))
        lines.appendleft(self._remove(at).line)
        self._width = len(self._rows)

    def _remove(self, at: int) -> Written:
        """Take a row out; the last one takes its place."""
        self._cells.drop(at)
        row, self._rows[at] = self._rows[at], self._rows[-1]
        self._rows.pop()
        return row

    def _leave(self, ended: Callable[[Any, Written], None]) -> int:
        """Hand on the rows that have ended."""
        count = len(self._rows)
        for at in reversed(range(count)):
            row = self._rows[at]
            if row.finish is not None:
                self._remove(at)
                ended(row.line, row)
        return count - len(self._rows)

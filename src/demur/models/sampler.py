"""How the next token is drawn, so that a row's text is its own: no other row, no batch, no run changes it.

Each row has a 63-bit seed. The noise of a token at a step is a hash of (seed, step, token id), made Gumbel; the token with
the greatest scaled log-probability plus noise is a draw from the softmax (Gumbel-max). Nothing is kept between steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache

from demur.records import Finish

log = logging.getLogger("demur")
REPORT = 60.0
"""Seconds between two lines about a batch that takes long."""
SHRINK = 0.75
"""When no more than this share of a batch's rows still writes, the others leave it."""
CANDIDATES = 64
"""How many tokens are sorted before all of them are: nearly always enough to fill `top_p`."""
_MIX = ((30, -4658895280553007687), (27, -7723592293110705685))
"""Shifts and multipliers of splitmix64, as signed integers."""
_GOLDEN = -7046029254386353131


def gumbel(seeds: torch.Tensor, step: int, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float32.

    Args:
        seeds: int64 `[rows]`.
        step: which new token of the row.
        tokens: int64 `[rows, n]`, token ids.
    """
    state = _hash(seeds + _wrapped(step * _GOLDEN))[:, None] + tokens * _GOLDEN
    bits = (_hash(state) >> 11) & ((1 << 53) - 1)
    uniform = (bits.to(torch.float64) + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform)).to(torch.float32)


def _wrapped(value: int) -> int:
    """A whole number as the signed 64 bits that it becomes in a tensor."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _hash(state: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser; `>>` keeps the sign, so the shifted-in bits are masked."""
    for shift, factor in _MIX:
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return state ^ ((state >> 31) & ((1 << 33) - 1))


class Rule:
    """Temperature, top-k and top-p, as one draws with them."""

    def __init__(self, *, temperature: float, top_p: float, top_k: int | None) -> None:
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k

    def draw(self, logits: torch.Tensor, seeds: torch.Tensor, step: int) -> torch.Tensor:
        """The next tokens, int64 `[rows]`, for logits `[rows, vocabulary]`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.float() / self.temperature
        if self.top_p >= 1 and self.top_k is None:
            tokens = torch.arange(scaled.shape[1]).expand_as(scaled)
            return (scaled + gumbel(seeds, step, tokens).to(scaled.device)).argmax(-1)
        values, tokens = self._candidates(scaled)
        noise = gumbel(seeds, step, tokens.cpu()).to(values.device)
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


class Written(NamedTuple):
    """What a row wrote, its stop token included, and whether tokens were forced upon it."""

    tokens: list[int]
    finish: Finish
    forced: bool
    first: dict[int, float]
    """Log-probabilities of the likeliest first tokens, where they were asked for."""


class Writing:
    """One batch being written: left padding, key-value cache; rows that have ended leave."""

    def __init__(
        self,
        model: Any,
        *,
        prompts: list[list[int]],
        seeds: list[int],
        limits: list[int],
        stops: frozenset[int],
    ) -> None:
        """Lay out the batch.

        Args:
            model: a causal language model of transformers.
            prompts: token ids of each row.
            seeds: 63 bits a row.
            limits: most new tokens of each row.
            stops: tokens that end a row.
        """
        self._model = model
        self._stops = stops
        self._limits = limits
        self._written: list[list[int]] = [[] for _ in prompts]
        self._finish: list[Finish | None] = [None] * len(prompts)
        self._queues: dict[int, deque[int]] = {}
        self._force: tuple[list[int], int, Callable[[int, list[int]], bool]] | None = None
        width, steps = max(map(len, prompts)), max(limits)
        tokens = torch.zeros((len(prompts), width), dtype=torch.long)
        mask = torch.zeros((len(prompts), width + steps), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            tokens[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        self._width, self._steps = width, steps
        self._tokens, self._mask = tokens.to(model.device), mask.to(model.device)
        self._places = (self._mask[:, :width].cumsum(-1) - 1).clamp(min=0)
        self._seeds = torch.tensor(seeds)
        self._alive = list(range(len(prompts)))
        self._ended: Callable[[int, Written], None] = lambda at, written: None
        self._cache = DynamicCache(config=model.config)
        self._first: list[dict[int, float]] = [{} for _ in prompts]
        self.keep_first = 0
        """How many alternatives of each row's first token to keep."""

    def force(self, tokens: list[int], *, at: int, when: Callable[[int, list[int]], bool]) -> None:
        """From step `at` on, put `tokens` into the mouth of the rows for which `when(row, written so far)` holds."""
        self._force = (tokens, at, when)

    def run(self, rule: Rule, ended: Callable[[int, Written], None], stop: threading.Event) -> None:
        """Write until each row has ended, or `stop` is set; `ended` is called with each row as it ends."""
        self._ended = ended
        with torch.inference_mode():
            self._run(rule, stop)

    def _run(self, rule: Rule, stop: threading.Event) -> None:
        began = told = time.monotonic()
        for step in range(self._steps):
            if stop.is_set():
                return
            if time.monotonic() - told > REPORT:
                told = time.monotonic()
                count = sum(map(len, self._written))
                speed = count / (told - began)
                log.warning(
                    "%d of %d rows still write; %d tokens, %.0f a second",
                    len(self._alive),
                    len(self._written),
                    count,
                    speed,
                )
            logits = self._logits(step)
            if step == 0 and self.keep_first:
                self._keep(logits)
            drawn = rule.draw(logits, self._seeds, step).tolist()
            if self._force and step == self._force[1]:
                self._queue()
            self._take(drawn)
            writing = [at for at, i in enumerate(self._alive) if self._finish[i] is None]
            if not writing:
                break
            self._tokens = torch.tensor(drawn, device=self._mask.device)[:, None]
            self._places = self._places[:, -1:] + 1
            if len(writing) <= SHRINK * len(self._alive):
                self._drop_all_but(writing)

    def _logits(self, step: int) -> torch.Tensor:
        out = self._model(
            input_ids=self._tokens,
            attention_mask=self._mask[:, : self._width + step],
            position_ids=self._places,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        last: torch.Tensor = out.logits[:, -1]
        return last

    def _keep(self, logits: torch.Tensor) -> None:
        values, tokens = logits.float().log_softmax(-1).topk(min(self.keep_first, logits.shape[1]))
        for row, (chances, ids) in enumerate(zip(values.tolist(), tokens.tolist(), strict=True)):
            self._first[row] = dict(zip(ids, chances, strict=True))

    def _queue(self) -> None:
        assert self._force is not None
        tokens, _, when = self._force
        for i in self._alive:
            if self._finish[i] is None and when(i, self._written[i]):
                self._queues[i] = deque(tokens)

    def _take(self, drawn: list[int]) -> None:
        """Append the new tokens; `drawn` is changed where others are forced."""
        for at, i in enumerate(self._alive):
            if self._finish[i] is not None:
                continue
            if self._queues.get(i):
                drawn[at] = self._queues[i].popleft()
            self._written[i].append(drawn[at])
            if drawn[at] in self._stops:
                self._finish[i] = "stop"
            elif len(self._written[i]) >= self._limits[i]:
                self._finish[i] = "length"
            if (finish := self._finish[i]) is not None:
                self._ended(i, Written(self._written[i], finish, i in self._queues, self._first[i]))

    def _drop_all_but(self, rows: list[int]) -> None:
        keep = torch.tensor(rows, device=self._mask.device)
        self._cache.batch_select_indices(keep)
        self._tokens, self._places, self._mask = self._tokens[keep], self._places[keep], self._mask[keep]
        self._seeds = self._seeds[keep.cpu()]
        self._alive = [self._alive[at] for at in rows]

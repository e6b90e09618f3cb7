"""Weights on this machine: transformers' model, our own batched sampling loop.

Requests are sorted into batches of like length. A row is in the cache as soon as it ends, and then leaves its batch. Each
row draws with its own noise (see `sampler`), so that its text does not depend on its neighbours, but for the rounding of
float32: rows that a stopped run left are written in other batches than they would have been.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from demur import thinking
from demur.errors import UserError
from demur.interfaces import Request, Requests, stream
from demur.models.answering import asked, record, seed_of
from demur.models.checkpoint import folder_of, identity_of
from demur.models.config import Local
from demur.models.sampler import Rule, Writing, Written
from demur.records import Failure, Finish, Sampling, Trace, digest
from demur.storage.reply_cache import Reply, ReplyCache, key_of

SMALL = 50_000_000
"""Parameters below which a batch may be large."""
GATHER = 0.01
"""Seconds in which what is asked turn by turn is gathered."""
AREA = 1 << 26
"""Without an accelerator attention is written out, rows x length x length: the most of it in one batch."""


class Row(NamedTuple):
    """A request, ready to run."""

    key: bytes
    request: Request
    tokens: list[int]
    opened: bool


class LocalModel:
    """A `Model` over weights that this process holds."""

    def __init__(self, config: Local, *, folder: Path, cache: ReplyCache, label: str = "") -> None:
        """Load a folder; see `load`, which does so beside the event loop."""
        transformers_logging.disable_progress_bar()
        self._config = config
        self._cache = cache
        self._label = label
        self._waiting: list[tuple[Row, asyncio.Future[Reply]]] = []
        self._writer: asyncio.Task[None] | None = None
        self.identity = identity_of(folder)
        self.device = _device(config.device)
        self.dtype = _dtype(config.dtype, self.device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype)
        self._model.to(self.device).eval()
        self._stops = _stops(self._model, self._tokenizer)
        self._room: int = getattr(self._model.config, "max_position_embeddings", None) or 1 << 30
        self._close: list[int] = self._tokenizer.encode(_closing(), add_special_tokens=False)
        parameters = sum(p.numel() for p in self._model.parameters())
        self._batch = config.batch or (256 if parameters < SMALL else 32)
        if config.api == "chat" and not self._tokenizer.chat_template:
            raise UserError(
                f"{config.where}: its tokenizer has no chat template. Give one in the folder (chat_template.jinja), or "
                "--set …api=completions to send the text as it is."
            )

    @classmethod
    async def load(cls, config: Local, *, cache: ReplyCache, label: str = "") -> LocalModel:
        """Load the weights of a folder or hub id.

        Raises:
            UserError: they are not there or cannot be read.
        """
        build = functools.partial(cls, config, folder=folder_of(config), cache=cache, label=label)
        try:
            return await asyncio.to_thread(build)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{config.where}: not a model that transformers can load: {error}") from error

    def check(self, sampling: Sampling) -> None:
        """A local model honours every field; only budgets must fit each other."""
        if sampling.thinking_budget is not None and sampling.thinking_budget >= sampling.max_tokens:
            raise UserError(
                f"thinking_budget {sampling.thinking_budget} leaves nothing of max_tokens {sampling.max_tokens} for an answer."
            )

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The reply to one request, written together with those that are asked at the same time."""
        row = await asyncio.to_thread(self._row, request)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting(fresh))
        return record(request, await future, model=self.identity, family=self._config.thinking)

    async def _write_waiting(self, fresh: bool) -> None:
        """Write what waits, as long as there is more; whatever goes wrong is raised by those who wait."""
        while self._waiting:
            await asyncio.sleep(GATHER)
            taken, self._waiting = self._waiting, []
            futures: dict[bytes, list[asyncio.Future[Reply]]] = {}
            for row, future in taken:
                futures.setdefault(row.key, []).append(future)
            try:
                for batch in self._plan({row.key: row for row, _ in taken}.values()):
                    async for row, reply in self._written(batch, fresh=fresh):
                        for future in futures.pop(row.key):
                            if not future.done():
                                future.set_result(reply)
            except BaseException as error:
                for future in (one for waiting in futures.values() for one in waiting if not one.done()):
                    future.set_exception(error)
                raise

    async def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        """One result a request, as rows end, once the complete list of requests is known."""
        complete = [request async for request in stream(requests)]
        rows = await asyncio.to_thread(lambda: [self._row(request) for request in complete])
        same: dict[bytes, list[Request]] = {}
        for row in rows:
            same.setdefault(row.key, []).append(row.request)
        for batch in self._plan({row.key: row for row in rows}.values()):
            async for row, reply in self._written(batch):
                for request in same[row.key]:
                    yield record(request, reply, model=self.identity, family=self._config.thinking)

    def _plan(self, rows: Any) -> list[list[Row]]:
        """Batches of like sampling and length; the same for the same set of requests, whatever is stored already."""
        ordered = sorted(rows, key=lambda row: (_rule_key(row.request.sampling), len(row.tokens), row.key))
        batches: list[list[Row]] = []
        for row in ordered:
            last = batches[-1] if batches else None
            if (
                last
                and len(last) < self._batch
                and (self.device.type != "cpu" or (len(last) + 1) * len(row.tokens) ** 2 <= AREA)
                and _rule_key(last[0].request.sampling) == _rule_key(row.request.sampling)
            ):
                last.append(row)
            else:
                batches.append([row])
        return batches

    async def _written(self, batch: list[Row], *, fresh: bool = False) -> AsyncIterator[tuple[Row, Reply]]:
        """The replies of a batch: those stored at once, the others as their rows end, each in the cache first."""
        stored = {row.key: reply for row in batch if not fresh and (reply := self._cache.get(row.key)) is not None}
        for row in batch:
            if row.key in stored:
                yield row, stored[row.key]
        left = [row for row in batch if row.key not in stored]
        if not left:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Queue[tuple[Row, Reply] | None] = asyncio.Queue()
        stop = threading.Event()

        def end(row: Row, reply: Reply) -> None:
            loop.call_soon_threadsafe(ended.put_nowait, (row, reply))

        work = asyncio.create_task(asyncio.to_thread(self._write, left, end, stop))
        work.add_done_callback(lambda _: ended.put_nowait(None))
        try:
            more = True
            while more:
                arrived = [await ended.get()]
                while not ended.empty():
                    arrived.append(ended.get_nowait())
                items = [item for item in arrived if item is not None]
                more = len(items) == len(arrived)
                new = [(row.key, reply) for row, reply in items]
                kept = await self._cache.put(new, label=self._label, model=self.identity, replace=fresh)
                for (row, _), reply in zip(items, kept, strict=True):
                    yield row, reply
            await work
        finally:
            # Who leaves early, such as by a signal, waits for one token, not for the batch.
            stop.set()
            with contextlib.suppress(asyncio.CancelledError):
                await work

    def _row(self, request: Request) -> Row:
        prefill = request.sampling.prefill or ""
        if self._config.api == "completions":
            text = "\n\n".join(turn.content for turn in request.messages) + prefill
            tokens = self._tokenizer.encode(text)
        else:
            turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
            extra = self._config.extra_body.get("chat_template_kwargs", {})
            text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **extra)
            opened = thinking.opens_thinking(text)
            tokens = self._tokenizer.encode(text + _begun(request, opened), add_special_tokens=False)
        opened = self._config.api == "chat" and opened
        key = key_of(
            [
                "local",
                self._config.first_tokens,
                self.identity,
                str(self.dtype),
                self._config.api,
                tokens,
                *asked(request),
            ]
        )
        return Row(key, request, tokens, opened)

    def _write(self, batch: list[Row], end: Callable[[Row, Reply], None], stop: threading.Event) -> None:
        """Let the rows of a batch write, and hand on each that has ended, until all have or `stop` is set."""
        fits = [row for row in batch if len(row.tokens) < self._room]
        for row in batch:
            if len(row.tokens) >= self._room:
                end(row, self._reply(row, None))
        if not fits:
            return
        torch.set_num_threads(self._config.threads)
        sampling = fits[0].request.sampling
        work = Writing(
            self._model,
            prompts=[row.tokens for row in fits],
            seeds=[seed_of(row.request) for row in fits],
            limits=[min(sampling.max_tokens, self._room - len(row.tokens)) for row in fits],
            stops=self._stops,
        )
        work.keep_first = self._config.first_tokens
        if sampling.thinking_budget is not None:
            inside = functools.partial(self._inside, fits)
            work.force(self._close, at=sampling.thinking_budget, when=inside)
        rule = Rule(temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k)
        work.run(rule, lambda at, written: end(fits[at], self._reply(fits[at], written)), stop)

    def _split(self, text: str, row: Row, finish: Finish) -> thinking.Split:
        return thinking.split(text, finish=finish, opened=row.opened, family=self._config.thinking)

    def _inside(self, rows: list[Row], at: int, tokens: list[int]) -> bool:
        """Whether what a row wrote so far is still thinking."""
        text = _begun(rows[at].request, rows[at].opened) + self.decode(tokens)
        return self._split(text, rows[at], "length").outcome == "cut_in_thinking"

    def _reply(self, row: Row, written: Written | None) -> Reply:
        if written is None:
            return Reply(failure="too_long", detail=f"{len(row.tokens)} tokens of prompt; the model takes {self._room}")
        text = _begun(row.request, row.opened) + self.decode(written.tokens)
        parts = self._split(text, row, written.finish)
        count = len(self._tokenizer.encode(parts.thinking, add_special_tokens=False)) if parts.thinking else 0
        return Reply(
            content=text,
            finish=written.finish,
            tokens_in=len(row.tokens),
            tokens_out=len(written.tokens),
            tokens_thinking=count,
            opened=row.opened,
            first_tokens={self._tokenizer.decode([token]): chance for token, chance in written.first.items()},
            notes=("thinking ended at its budget",) if written.forced else (),
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of new tokens, with every special token but the final stop shown."""
        kept = list(tokens[:-1]) if tokens and tokens[-1] in self._stops else list(tokens)
        return str(self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@asynccontextmanager
async def open_local(config: Local, *, cache: ReplyCache, label: str = "") -> AsyncIterator[LocalModel]:
    """A model in this process."""
    yield await LocalModel.load(config, cache=cache, label=label)


def _closing() -> str:
    """What ends a thinking, with the white space that R1-like models put around it."""
    return thinking.join("", "", seams=thinking.CANONICAL).removeprefix(thinking.OPEN + thinking.CANONICAL.after_open)


def _device(wanted: str) -> torch.device:
    """The device of a model.

    Raises:
        UserError: it is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"'{wanted}' is no device. Allowed: auto, cpu, cuda, cuda:1, …, mps.") from None
    if (device.type == "cuda" and not cuda) or (device.type == "mps" and not mps):
        raise UserError(f"device {wanted} is not there. Allowed here: auto, cpu{', cuda' * cuda}{', mps' * mps}.")
    return device


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA, float32 elsewhere, unless said."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, wanted)
    assert isinstance(found, torch.dtype)
    return found


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a reply: what the generation settings and the tokenizer call so."""
    said = getattr(model.generation_config, "eos_token_id", None)
    listed = said if isinstance(said, list) else [said]
    return frozenset(int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None)


def _rule_key(sampling: Sampling) -> tuple[str, int]:
    """What the rows of one batch must share."""
    shared = [sampling.temperature, sampling.top_p, sampling.top_k, sampling.thinking_budget]
    return digest(shared), sampling.max_tokens


def _begun(request: Request, opened: bool) -> str:
    """What the reply is begun with. Where the template opens the thinking, it is not opened twice."""
    prefill = request.sampling.prefill or ""
    return prefill.lstrip().removeprefix(thinking.OPEN).lstrip("\n") if opened else prefill

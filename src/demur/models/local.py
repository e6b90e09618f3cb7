"""Weights on this machine: transformers' model, our own batched sampling loop.

Requests of one sampling are written together (see `sampler`): a row is in the cache as soon as it ends, and its place goes
to the next. Its text depends neither on its neighbours nor on how often the run was stopped.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from demur import thinking
from demur.errors import UserError
from demur.interfaces import Request
from demur.models.answering import Answering, asked, begun, budgets_fit, record, seed_of
from demur.models.checkpoint import folder_of, identity_of
from demur.models.config import Local
from demur.models.sampler import Force, Rule, Writer, Written
from demur.records import Failure, Finish, Trace
from demur.storage.reply_cache import Reply, ReplyCache, key_of

T = TypeVar("T")
SMALL = 50_000_000
LARGE = 1_000_000_000  # Parameters below and above which a batch is wide or narrow, where none is said
GATHER = 0.01  # Seconds in which what is asked turn by turn is gathered
FASTER = 1.5  # How much faster than float32 a CPU's bfloat16 must be to be taken by itself
HALVED = "bfloat16, measured to be faster on this CPU"  # Noted on traces whose precision was chosen by measuring


class Row(NamedTuple):
    """A request, ready to run."""

    key: bytes
    request: Request
    prompt: list[int]
    seed: int
    limit: int  # Most new tokens; none where the prompt fills the model's context
    opened: bool


class LocalModel(Answering):
    """A `Model` over weights that this process holds."""

    width = 1 << 20  # The batch has a width of its own
    check = staticmethod(budgets_fit)  # It honours every field of a sampling

    def __init__(self, config: Local, *, folder: Path, cache: ReplyCache, label: str = "") -> None:
        """Load a folder."""
        transformers_logging.disable_progress_bar()
        self._config, self._cache, self._label = config, cache, label
        self._waiting: dict[Any, deque[Row]] = {}
        self._futures: dict[bytes, list[asyncio.Future[Reply]]] = {}
        self._writer: asyncio.Task[None] | None = None
        self.identity = identity_of(folder)
        self.device = _device(config.device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        wanted = _dtype(config.dtype, self.device)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted or torch.float32)
        parameters = self._model.num_parameters()
        hidden = self._model.config.get_text_config().hidden_size
        if wanted is None and parameters >= SMALL and bfloat16_is_faster(hidden):
            self._model.to(torch.bfloat16)
        self._model.to(self.device).eval()
        self.dtype: torch.dtype = self._model.dtype
        self._notes = (HALVED,) if wanted is None and self.dtype == torch.bfloat16 else ()
        self._stops = _stops(self._model, self._tokenizer)
        self._room: int = getattr(self._model.config, "max_position_embeddings", None) or 1 << 30
        # What ends a thinking, with the white space that R1-like models put around it.
        closing = thinking.join("", "").removeprefix(thinking.OPEN + thinking.CANONICAL.after_open)
        self._close: list[int] = self._tokenizer.encode(closing, add_special_tokens=False)
        self._batch = config.batch or (256 if parameters < SMALL else 64 if parameters < LARGE else 32)
        if config.api == "chat" and not self._tokenizer.chat_template:
            raise UserError(
                f"{config.where}: its tokenizer has no chat template. Give one in the folder (chat_template.jinja), or "
                "--set …api=completions to send the text as it is."
            )

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The reply to one request, written together with those that are asked at the same time."""
        row, drawn = self._row(request), request.sampling
        if row.limit < 1:
            why = f"{len(row.prompt)} tokens of prompt; the model takes {self._room}"
            return self._record(request, Reply(failure="too_long", detail=why))
        if not fresh and (reply := self._cache.get(row.key)) is not None:
            return self._record(request, reply)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if row.key not in self._futures:
            alike = (fresh, drawn.temperature, drawn.top_p, drawn.top_k, drawn.thinking_budget)
            self._waiting.setdefault(alike, deque()).append(row)
        self._futures.setdefault(row.key, []).append(future)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        try:
            return self._record(request, await future)
        finally:
            if all(one.done() for waiting in self._futures.values() for one in waiting) and future.cancelled():
                self._writer.cancel()

    async def _write_waiting(self) -> None:
        """Write what waits, as long as there is more; whatever goes wrong is raised by those who wait."""
        try:
            await asyncio.sleep(GATHER)
            while self._waiting:
                group, rows = next(iter(self._waiting.items()))
                rows = self._waiting[group] = deque(sorted(rows, key=lambda row: len(row.prompt)))
                await self._write_group(rows, fresh=group[0])
                if not rows:
                    del self._waiting[group]
        except BaseException as error:
            for future in (one for waiting in self._futures.values() for one in waiting if not one.done()):
                future.set_exception(error)
            self._futures, self._waiting = {}, {}
            raise

    async def close(self) -> None:
        """Wait until nothing is written any more."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    def _record(self, request: Request, reply: Reply) -> Trace | Failure:
        return record(request, reply, model=self.identity, family=self._config.thinking)

    async def _write_group(self, rows: deque[Row], *, fresh: bool) -> None:
        """Write rows of one sampling; as each ends, its reply is put into the cache, then handed on. `rows` may grow meanwhile."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Queue[tuple[Row, Reply] | None] = asyncio.Queue()
        stop = threading.Event()

        def end(row: Row, reply: Reply) -> None:
            loop.call_soon_threadsafe(ended.put_nowait, (row, reply))

        work = asyncio.create_task(asyncio.to_thread(self._write, rows, end, stop))
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
                    for future in self._futures.pop(row.key):
                        if not future.done():
                            future.set_result(reply)
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
            tokens = self._tokenizer.encode(text + begun(request, opened), add_special_tokens=False)
        opened = self._config.api == "chat" and opened
        own = [self._config.first_tokens, self.identity, str(self.dtype), self._config.api]
        key = key_of(["local", *own, tokens, *asked(request)])
        limit = min(request.sampling.max_tokens, self._room - len(tokens))
        return Row(key, request, tokens, seed_of(request), limit, opened)

    def _write(self, rows: deque[Row], end: Callable[[Row, Reply], None], stop: threading.Event) -> None:
        """Write rows of one sampling, and hand on each that has ended, until all have or `stop` is set."""
        torch.set_num_threads(self._config.threads)
        sampling = rows[0].request.sampling
        budget, first = sampling.thinking_budget, self._config.first_tokens
        force = None if budget is None else Force(self._close, budget, self._inside)
        writer = Writer(self._model, stops=self._stops, width=self._batch, force=force, keep_first=first)
        rule = Rule(sampling.temperature, sampling.top_p, sampling.top_k)
        writer.run(rule, rows, lambda row, written: end(row, self._reply(row, written)), stop)

    def _split(self, text: str, row: Row, finish: Finish) -> thinking.Split:
        return thinking.split(text, finish=finish, opened=row.opened, family=self._config.thinking)

    def _inside(self, row: Row, tokens: list[int]) -> bool:
        """Whether what a row wrote so far is still thinking."""
        text = begun(row.request, row.opened) + self.decode(tokens)
        return self._split(text, row, "length").outcome == "cut_in_thinking"

    def _reply(self, row: Row, written: Written) -> Reply:
        text = begun(row.request, row.opened) + self.decode(written.tokens)
        assert written.finish is not None
        parts = self._split(text, row, written.finish)
        count = len(self._tokenizer.encode(parts.thinking, add_special_tokens=False)) if parts.thinking else 0
        first = {self._tokenizer.decode([token]): chance for token, chance in written.first.items()}
        notes = (*self._notes, *["thinking ended at its budget"] * (written.queue is not None))
        return Reply(
            content=text, finish=written.finish, tokens_in=len(row.prompt), tokens_out=len(written.tokens),
            tokens_thinking=count, opened=row.opened, first_tokens=first, notes=notes,
        )  # fmt: skip

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of new tokens, with every special token but the final stop shown."""
        kept = list(tokens[:-1]) if tokens and tokens[-1] in self._stops else list(tokens)
        return str(self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@asynccontextmanager
async def open_local(config: Local, *, cache: ReplyCache, label: str = "") -> AsyncIterator[LocalModel]:
    """A model in this process. Raises UserError: its weights are not there or cannot be read."""
    build = functools.partial(LocalModel, config, folder=folder_of(config), cache=cache, label=label)
    try:
        model = await _aside(build)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{config.where}: not a model that transformers can load: {error}") from error
    try:
        yield model
    finally:
        await model.close()


async def _aside(work: Callable[[], T]) -> T:
    """What a thread makes that nobody waits for on the way out: loading may take a minute, and cannot be interrupted."""
    made: concurrent.futures.Future[T] = concurrent.futures.Future()
    made.set_running_or_notify_cancel()

    def run() -> None:
        try:
            made.set_result(work())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(made)


def _device(wanted: str) -> torch.device:
    """The device of a model. Raises UserError: it is not there."""
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


def _dtype(wanted: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 on CUDA, float32 on other accelerators, unless said; `None` on a CPU, where it is measured."""
    if wanted == "auto":
        return {"cuda": torch.bfloat16, "cpu": None}.get(device.type, torch.float32)
    found = getattr(torch, wanted)
    assert isinstance(found, torch.dtype)
    return found


@functools.cache
def bfloat16_is_faster(width: int) -> bool:
    """Whether this CPU multiplies matrices of that width clearly faster in bfloat16 than in float32; some milliseconds."""
    best: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weights = torch.ones(32, width, dtype=dtype), torch.ones(4 * width, width, dtype=dtype)
        for _ in range(5):
            began = time.thread_time()
            torch.nn.functional.linear(rows, weights)
            best[dtype] = min(best.get(dtype, math.inf), time.thread_time() - began)
    return best[torch.float32] > FASTER * best[torch.bfloat16]


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a reply: what the generation settings and the tokenizer call so."""
    said = getattr(model.generation_config, "eos_token_id", None)
    listed = said if isinstance(said, list) else [said]
    return frozenset(int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None)

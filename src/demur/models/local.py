"""Weights in this process: transformers' model in a batched sampling loop of demur's own.

Requests with the same sampling are generated together (see `sampler`): a row is in the cache as soon as it ends, and
the next takes its place. Its text depends neither on its neighbours nor on how often the run was interrupted.
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
from demur.models.answering import Answering, check_budgets, key_fields, prefill_of, record, seed_of
from demur.models.checkpoint import folder_of, identity_of
from demur.models.config import Local
from demur.models.sampler import BatchGenerator, Force, Generated, TokenSampler
from demur.records import Failure, Finish, Trace
from demur.storage.reply_cache import Reply, ReplyCache, key_of

T = TypeVar("T")
SMALL = 50_000_000
LARGE = 1_000_000_000  # Parameters below and above which the batch is wide or narrow by default
GATHER = 0.01  # Seconds in which requests that arrive one by one are gathered into a batch
FASTER = 1.5  # How much faster than float32 bfloat16 must be on a CPU to be the default
HALVED = "bfloat16, measured to be faster on this CPU"  # Noted on traces whose precision was chosen by measuring


class Row(NamedTuple):
    """A request as the sampler takes it."""

    key: bytes  # In the cache
    request: Request
    prompt: list[int]  # Token ids, the prefill included
    seed: int
    limit: int  # Most new tokens; below 1 if the prompt fills the model's context
    opened: bool  # Whether the template opened the thinking


class LocalModel(Answering):
    """A `Model` over weights that this process holds."""

    width = 1 << 20  # Not a bound: the batch has its own
    check = staticmethod(check_budgets)  # It honours every field of a sampling

    def __init__(self, config: Local, *, folder: Path, cache: ReplyCache, label: str = "") -> None:
        """Load a checkpoint folder."""
        transformers_logging.disable_progress_bar()
        self._config, self._cache, self._label = config, cache, label
        self._waiting: dict[Any, deque[Row]] = {}
        self._futures: dict[bytes, list[asyncio.Future[Reply]]] = {}
        self._worker: asyncio.Task[None] | None = None
        self.identity = identity_of(folder)
        self.device = _device(config.device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        dtype = _dtype(config.dtype, self.device)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32)
        parameters = self._model.num_parameters()
        hidden = self._model.config.get_text_config().hidden_size
        if dtype is None and parameters >= SMALL and bfloat16_is_faster(hidden):
            self._model.to(torch.bfloat16)
        self._model.to(self.device).eval()
        self.dtype: torch.dtype = self._model.dtype
        self._notes = (HALVED,) if dtype is None and self.dtype == torch.bfloat16 else ()
        self._stops = _stops(self._model, self._tokenizer)
        self._context: int = getattr(self._model.config, "max_position_embeddings", None) or 1 << 30
        # The end of a thinking, with the white space that R1-like models put around it.
        closing = thinking.join("", "").removeprefix(thinking.OPEN + thinking.CANONICAL.after_open)
        self._closing: list[int] = self._tokenizer.encode(closing, add_special_tokens=False)
        self._batch = config.batch or (256 if parameters < SMALL else 64 if parameters < LARGE else 32)
        if config.api == "chat" and not self._tokenizer.chat_template:
            raise UserError(
                f"{config.where}: its tokenizer has no chat template. Put one in the folder (chat_template.jinja), or "
                "use --set …api=completions to send the text as it is."
            )

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The reply to one request, generated together with those that are asked at the same time."""
        row, sampling = self._row(request), request.sampling
        if row.limit < 1:
            detail = f"{len(row.prompt)} tokens of prompt; the model takes {self._context}"
            return self._record(request, Reply(failure="too_long", detail=detail))
        if not fresh and (reply := self._cache.get(row.key)) is not None:
            return self._record(request, reply)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if row.key not in self._futures:
            group = (fresh, sampling.temperature, sampling.top_p, sampling.top_k, sampling.thinking_budget)
            self._waiting.setdefault(group, deque()).append(row)
        self._futures.setdefault(row.key, []).append(future)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return self._record(request, await future)
        finally:
            if future.cancelled() and not self._pending():
                self._worker.cancel()

    def _pending(self) -> list[asyncio.Future[Reply]]:
        """The futures that somebody still awaits."""
        return [future for futures in self._futures.values() for future in futures if not future.done()]

    async def _work(self) -> None:
        """Generate for the waiting rows until there are none. Any error is raised by every pending `answer`."""
        try:
            await asyncio.sleep(GATHER)
            while self._waiting:
                group, rows = next(iter(self._waiting.items()))
                rows = self._waiting[group] = deque(sorted(rows, key=lambda row: len(row.prompt)))
                await self._generate_group(rows, fresh=group[0])
                if not rows:
                    del self._waiting[group]
        except BaseException as error:
            for future in self._pending():
                future.set_exception(error)
            self._futures, self._waiting = {}, {}
            raise

    async def close(self) -> None:
        """Wait until generation has ended."""
        if self._worker is not None:
            await asyncio.wait([self._worker])

    def _record(self, request: Request, reply: Reply) -> Trace | Failure:
        return record(request, reply, model=self.identity, family=self._config.thinking)

    async def _generate_group(self, rows: deque[Row], *, fresh: bool) -> None:
        """Generate rows of one sampling; each reply is cached when its row ends, then returned. `rows` may grow."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Queue[tuple[Row, Reply] | None] = asyncio.Queue()
        stop = threading.Event()

        def on_end(row: Row, generated: Generated) -> None:
            loop.call_soon_threadsafe(ended.put_nowait, (row, self._reply(row, generated)))

        work = asyncio.create_task(asyncio.to_thread(self._generate, rows, on_end, stop))
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
                stored = await self._cache.put(new, label=self._label, model=self.identity, replace=fresh)
                for (row, _), reply in zip(items, stored, strict=True):
                    for future in self._futures.pop(row.key):
                        if not future.done():
                            future.set_result(reply)
            await work
        finally:
            # An early exit, such as by a signal, waits for one token and not for the whole batch.
            stop.set()
            with contextlib.suppress(asyncio.CancelledError):
                await work

    def _row(self, request: Request) -> Row:
        opened = False
        if self._config.api == "completions":
            text = "\n\n".join(turn.content for turn in request.messages)
            tokens = self._tokenizer.encode(text + (request.sampling.prefill or ""))
        else:
            turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
            extra = self._config.extra_body.get("chat_template_kwargs", {})
            text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **extra)
            opened = thinking.opens_thinking(text)
            tokens = self._tokenizer.encode(text + prefill_of(request, opened), add_special_tokens=False)
        model_fields = [self._config.first_tokens, self.identity, str(self.dtype), self._config.api]
        key = key_of(["local", *model_fields, tokens, *key_fields(request)])
        limit = min(request.sampling.max_tokens, self._context - len(tokens))
        return Row(key, request, tokens, seed_of(request), limit, opened)

    def _generate(self, rows: deque[Row], on_end: Callable[[Row, Generated], None], stop: threading.Event) -> None:
        """Generate rows of one sampling until all have ended or `stop` is set; runs in a thread."""
        torch.set_num_threads(self._config.threads)
        sampling = rows[0].request.sampling
        budget, first = sampling.thinking_budget, self._config.first_tokens
        force = None if budget is None else Force(self._closing, budget, self._is_thinking)
        batch = BatchGenerator(self._model, stops=self._stops, width=self._batch, force=force, keep_first=first)
        batch.run(TokenSampler(sampling.temperature, sampling.top_p, sampling.top_k), rows, on_end, stop)

    def _split(self, row: Row, tokens: list[int], finish: Finish) -> tuple[str, thinking.Split]:
        """The text of a row that has these new tokens, prefill included, and its parts."""
        text = prefill_of(row.request, row.opened) + self.decode(tokens)
        return text, thinking.split(text, finish=finish, opened=row.opened, family=self._config.thinking)

    def _is_thinking(self, row: Row, tokens: list[int]) -> bool:
        return self._split(row, tokens, "length")[1].outcome == "cut_in_thinking"

    def _reply(self, row: Row, generated: Generated) -> Reply:
        assert generated.finish is not None
        text, parts = self._split(row, generated.tokens, generated.finish)
        count = len(self._tokenizer.encode(parts.thinking, add_special_tokens=False)) if parts.thinking else 0
        first = {self._tokenizer.decode([token]): logprob for token, logprob in generated.first.items()}
        notes = self._notes if generated.forced is None else (*self._notes, "thinking ended at its budget")
        return Reply(
            content=text, finish=generated.finish, tokens_in=len(row.prompt), tokens_out=len(generated.tokens),
            tokens_thinking=count, opened=row.opened, first_tokens=first, notes=notes,
        )  # fmt: skip

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of new tokens; special tokens are kept, except a final stop token."""
        body = list(tokens[:-1]) if tokens and tokens[-1] in self._stops else list(tokens)
        return str(self._tokenizer.decode(body, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@asynccontextmanager
async def open_local(config: Local, *, cache: ReplyCache, label: str = "") -> AsyncIterator[LocalModel]:
    """A model in this process. Raises UserError: its weights are missing or cannot be read."""
    folder = folder_of(config)
    try:
        model = await _in_daemon_thread(lambda: LocalModel(config, folder=folder, cache=cache, label=label))
    except UserError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{config.where}: not a model that transformers can load: {error}") from error
    try:
        yield model
    finally:
        await model.close()


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """The result of a thread that an exit does not wait for: loading may take a minute and cannot be interrupted."""
    result: concurrent.futures.Future[T] = concurrent.futures.Future()
    result.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(result)


def _device(name: str) -> torch.device:
    """The device of a name. Raises UserError: this machine has none of that name."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"'{name}' is not a device. Allowed: auto, cpu, cuda, cuda:1, …, mps.") from None
    if (device.type == "cuda" and not cuda) or (device.type == "mps" and not mps):
        raise UserError(f"device {name} is not there. Allowed here: auto, cpu{', cuda' * cuda}{', mps' * mps}.")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype of a name. `auto`: bfloat16 on CUDA, float32 on other accelerators; `None` on a CPU: to be measured."""
    if name == "auto":
        return {"cuda": torch.bfloat16, "cpu": None}.get(device.type, torch.float32)
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


@functools.cache
def bfloat16_is_faster(width: int) -> bool:
    """Whether this CPU multiplies matrices of that width clearly faster in bfloat16; takes some milliseconds."""
    best: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weights = torch.ones(32, width, dtype=dtype), torch.ones(4 * width, width, dtype=dtype)
        for _ in range(5):
            began = time.thread_time()
            torch.nn.functional.linear(rows, weights)
            best[dtype] = min(best.get(dtype, math.inf), time.thread_time() - began)
    return best[torch.float32] > FASTER * best[torch.bfloat16]


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a reply, as the generation settings and the tokenizer list them."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = ids if isinstance(ids, list) else [ids]
    return frozenset(int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None)

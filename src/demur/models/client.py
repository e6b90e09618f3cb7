"""A client for any OpenAI-compatible server, chat or raw completions.

It sends exactly what the configuration declares, adapts the number of requests in flight to what each address can take,
and retries what may succeed. A request that fails becomes a typed row; a server that is down stops the run, with a
message on how to go on. A reply is in the cache before it is returned.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import ClientSession, TCPConnector
from yarl import URL

from demur import thinking
from demur.errors import UserError, WorkError, scrubbed
from demur.interfaces import Request, Requests
from demur.models import wire
from demur.models.answering import Answering, answered, check_budgets, key_fields, prefill_of, record
from demur.models.chat_format import ChatFormat
from demur.models.config import Remote
from demur.models.limiter import Address, Health, Limiter
from demur.models.transport import TryFailed, addresses, only_model, post
from demur.records import Failure, Message, Prompt, Sampling, Trace
from demur.storage.reply_cache import Reply, ReplyCache, key_of

KEEP_ALIVE = 4.0  # Seconds: vLLM closes idle connections after 5, and a request on a closed one is lost
BACKOFF = (0.5, 30.0)  # Seconds of the first pause between tries, and of the longest
QUEUE = 120.0  # Seconds that a request may wait in the server, on top of the time that its tokens take
WAITING = 8  # After so many complete replies without tags, the model is taken for one that does not think
SAMPLED = ("temperature", "top_p", "top_k", "seed")


class RemoteModel(Answering):
    """A `Model` behind one or several URLs. Opened by `open_remote`."""

    def __init__(
        self, config: Remote, session: ClientSession, urls: list[str], *, name: str, cache: ReplyCache, label: str
    ) -> None:
        self._config, self._session, self._name = config, session, name
        self._cache, self._label = cache, label
        self._limiter = Limiter(urls, most=config.in_flight)
        self._health = Health(config.where, patience=config.patience)
        self._template = ChatFormat(Path(config.template)) if config.template else None
        path = "/chat/completions" if config.api == "chat" else "/completions"
        self._urls = {url: URL(url + path) for url in urls}
        self._refused = 0
        self._served: str | None = None  # What the server called itself in earlier replies
        self._openers: set[str] = set()
        """What opened the thinking of replies so far: `template`, `model`, `server` (in its own field) or `nothing`."""
        self._template_opens: bool | None = None  # Whether an unseen template opens the thinking, once replies show it
        self.width = config.in_flight * len(urls)
        self.identity = config.cache_identity(name)

    def check(self, sampling: Sampling) -> None:
        """Raise `UserError` for a field that this server, as declared, cannot honour and that must not be left out."""
        config, where = self._config, self._config.where
        if sampling.prefill and config.api == "chat" and config.prefill == "no":
            ways = "prefill=vllm, prefill=plain, or api=completions with a template"
            raise UserError(f"{where}: a prefill is needed; declare how this server takes one: {ways}.")
        if sampling.system and "system" in config.forbidden:
            raise UserError(f"{where}: a system turn is needed, and 'system' is forbidden here.")
        if sampling.thinking_budget is not None and not config.thinking_budget_field:
            how = "name this server's field with thinking_budget_field (vLLM: thinking_token_budget), or leave it out"
            raise UserError(f"{where}: thinking_budget={sampling.thinking_budget} is needed; {how}.")
        check_budgets(sampling)

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The reply to one request."""
        result = await self._answer(request, fresh)
        if isinstance(result, Trace) and self._is_ambiguous(result):
            await self._probe([result])
            return self._resolved(result)
        return result

    async def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        """As replies arrive; one without tags waits until others show whether an unseen template opens the thinking."""
        complete, truncated = list[Trace](), list[Trace]()
        async with aclosing(answered(requests, self._answer, limit=self.width)) as results:
            async for result in results:
                if not isinstance(result, Trace) or not self._is_ambiguous(result):
                    yield result
                else:
                    (truncated if result.truncated else complete).append(result)
                by_template = "template" in self._openers
                if by_template or self._openers - {"nothing"} or len(complete) >= WAITING:
                    self._template_opens = by_template
                    ready, complete = complete, []
                    if by_template:
                        ready, truncated = ready + truncated, []
                    for trace in ready:
                        yield self._resolved(trace)
        await self._probe(truncated)
        for trace in (*complete, *truncated):
            yield self._resolved(trace)

    async def _answer(self, request: Request, fresh: bool = False) -> Trace | Failure:
        """A reply, read on its own; what opened its thinking is remembered in `_openers`."""
        reply = await self._reply(request, fresh)
        opened, family = self._opened(request), self._config.thinking
        result = record(request, reply, model=self.identity, opened=opened, family=family)
        if isinstance(result, Trace) and result.answer is not None:
            by_model = "server" if reply.reasoning else "model"
            opener = {"prompt": "template", "model": by_model, None: "nothing"}[result.opened_by]
            if opener != "nothing" or result.finish == "stop":
                self._openers.add(opener)
        return result

    def _is_ambiguous(self, trace: Trace) -> bool:
        """Whether a text without tags may have begun inside a thinking that an unseen template opened."""
        config = self._config
        declared = config.opens_thinking is not None or self._template or config.thinking == "none"
        if declared or trace.sampling.prefill or trace.thinking is not None:
            return False
        untagged = trace.outcome in ("no_thinking", "cut_in_answer")
        return untagged and (trace.truncated or self._template_opens is not False)

    async def _probe(self, truncated: list[Trace]) -> None:
        """Where every reply so far was truncated, ask one short question, whose reply will be complete."""
        if not truncated or self._openers:
            return
        turn = (Message(role="user", content="What is one and one?"),)
        original = truncated[0].sampling
        sampling = Sampling(temperature=original.temperature, max_tokens=max(2048, original.max_tokens))
        prompt = Prompt(text=turn[0].content, intent="benign")
        await self._answer(Request(messages=turn, sampling=sampling, prompt=prompt))

    def _resolved(self, trace: Trace) -> Trace:
        """An ambiguous trace, split as the model's other replies suggest."""
        openers = self._openers
        if "template" in openers or (trace.truncated and "server" in openers and "nothing" not in openers):
            parts = thinking.split(trace.raw, finish=trace.finish, opened=True, family=self._config.thinking)
            fields = thinking.fields(parts) | {"notes": (*trace.notes, thinking.FILED_AGAIN)}
            return msgspec.structs.replace(trace, id="", tokens_thinking=trace.tokens_out, **fields)
        if trace.truncated and not openers:
            note = "whether this text is thinking cannot be told: declare opens_thinking"
            return msgspec.structs.replace(trace, id="", notes=(*trace.notes, note))
        return trace

    async def _reply(self, request: Request, fresh: bool) -> Reply:
        """The stored reply of a request, or a new one."""
        limit = request.sampling.max_tokens
        prefill = prefill_of(request, self._opened(request) is True)
        data = msgspec.json.encode(self._body(request, prefill))
        key = key_of([self.identity, self._config.api, key_fields(request)[1:]], data)

        async def ask() -> Reply:
            reply = wire.with_prefill(prefill, wire.without_stop(await self._retried(data, key, limit)))
            prices = self._config.prices
            cost = prices.cost(reply.tokens_in, reply.tokens_out) if prices and reply.failure is None else None
            left_out = tuple(f"{name} not sent: forbidden here" for name in SAMPLED if name in self._config.forbidden)
            return _scrubbed(msgspec.structs.replace(reply, cost=cost, notes=(*reply.notes, *left_out)))

        return await self._cache.once(key, ask, label=self._label, model=self.identity, fresh=fresh)

    def _body(self, request: Request, prefill: str) -> dict[str, Any]:
        """The JSON that is sent."""
        config, sampling = self._config, request.sampling
        fields: dict[str, Any] = {"model": self._name} | {key: getattr(sampling, key) for key in SAMPLED}
        fields["seed"] = (sampling.seed + 1_000_003 * request.sample) % (1 << 31)
        fields[config.max_tokens_field] = sampling.max_tokens
        if config.thinking_budget_field:
            fields[config.thinking_budget_field] = sampling.thinking_budget
        if config.first_tokens:
            chat = {"logprobs": True, "top_logprobs": config.first_tokens}
            fields |= chat if config.api == "chat" else {"logprobs": config.first_tokens}
        body = {name: value for name, value in fields.items() if value is not None and name not in config.forbidden}
        if config.api == "completions":
            body["prompt"] = self._prompt(request.messages) + prefill
        else:
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.messages]
            if prefill:
                body["messages"].append({"role": "assistant", "content": prefill})
                if config.prefill == "vllm":
                    body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body | config.extra_body

    def _prompt(self, messages: tuple[Message, ...]) -> str:
        """The text for `/completions`."""
        return self._template.render(messages) if self._template else "\n\n".join(turn.content for turn in messages)

    def _opened(self, request: Request) -> bool | None:
        """Whether the prompt as sent ends inside an opened thinking; `None`: to be inferred from the reply."""
        if self._config.opens_thinking is not None:
            return self._config.opens_thinking
        return thinking.opens_thinking(self._prompt(request.messages)) if self._template else None

    async def _retried(self, data: bytes, key: bytes, limit: int) -> Reply:
        """Send a request until it has a reply or a typed failure. Raises WorkError: the server is down or unusable."""
        started = time.monotonic()
        address: Address | None = None
        tries = counted = 0
        while True:
            address = await self._limiter.enter(again=tries > 0, avoid=address)
            try:
                reply = await self._try(address, data, limit)
            except TryFailed as error:
                last = error
            else:
                return msgspec.structs.replace(reply, retries=tries)
            finally:
                self._limiter.leave(address)
            tries += 1
            # A busy server, or one that answered before and may be restarting, is bounded by patience and not by tries.
            counts = not (last.busy or (last.unreached and self._health.replies))
            self._health.failed(key, last.detail, f"{self._config.tries} times a request and " if counts else "")
            counted += counts
            left = started + self._config.patience - time.monotonic()
            if last.wait and last.wait > left:
                raise WorkError(
                    f"{self._config.where} asks to wait {last.wait:.0f} s ({last.detail}), and patience ends in "
                    f"{max(left, 0):.0f} s. All replies so far are kept; run the same command later, or set patience."
                )
            if counted >= self._config.tries or left < 0:
                return self._failure(last, tries, started)
            await asyncio.sleep(random.uniform(0, min(BACKOFF[1], BACKOFF[0] * 2.0 ** min(tries - 1, 20))))

    def _failure(self, last: TryFailed, tries: int, started: float) -> Reply:
        """A typed failure, while other requests succeed. Raises WorkError: none does, and the server is down."""
        known = self._health.replies > 0 or self._cache.answered(self.identity)
        if self._health.is_down(started, unreached=last.unreached, known=known):
            state = "cannot be reached" if last.unreached else "is down"
            if last.kind == "unreadable":
                state = "answers, but not as a model does"
            raise WorkError(
                f"{self._config.where} {state}: {last.detail} ({tries} tries in {time.monotonic() - started:.0f} s, no "
                "request succeeded). All replies so far are kept; run the same command when the server is back."
            )
        return Reply(failure=last.kind, detail=f"{last.detail} ({tries} tries)", retries=tries - 1)

    async def _try(self, address: Address, data: bytes, limit: int) -> Reply:
        """One try at one address. Raises TryFailed: another try may succeed."""
        began = time.monotonic()
        seconds = self._config.timeout or QUEUE + limit / self._config.least_speed
        try:
            reply = await post(
                self._session, self._urls[address.url], data, seconds=seconds, limit=limit, key_env=self._config.key_env
            )
        except TryFailed as error:
            address.failed(down=error.down and not error.wait, wait=error.wait)
            if error.wait:
                self._health.waits(error.wait, error.detail)
            raise
        if reply.failure == "refused_by_server":
            self._refused += 1
            # When all of the first requests are refused, the configuration is wrong, not the requests.
            if self._refused >= 8 and not self._health.replies:
                raise WorkError(
                    f"{self._config.where} refused the first {self._refused} requests ({reply.detail}). Does it know "
                    "all fields? See forbidden, max_tokens_field and extra_body. `demur retry RUN` sends them again."
                )
            return reply
        if reply.failure is None:
            address.succeeded(time.monotonic() - began)
            self._health.succeeded()
            self._check_served(reply.served)
        return reply

    def _check_served(self, served: str) -> None:
        """Check that the server calls itself as in earlier replies. Raises WorkError: another model answers."""
        if not served or served == self._served:
            return
        if self._served is None:
            self._served = self._cache.served(self.identity, served)
        if served != self._served and self._config.on_swap == "stop":
            raise WorkError(
                f"{self._config.where}: another model answers under the same name: '{served}', before it was "
                f"'{self._served}'. Its reply was not kept. Declare a new revision for this model, or set on_swap=note "
                "if you know them to be the same."
            )


def _scrubbed(reply: Reply) -> Reply:
    """A reply without the secrets that requests carry."""
    texts = {name: getattr(reply, name) for name in ("content", "reasoning", "detail", "served")}
    clean = {name: scrubbed(text) for name, text in texts.items() if text}
    return msgspec.structs.replace(reply, **clean) if any(clean[name] != texts[name] for name in clean) else reply


@asynccontextmanager
async def open_remote(config: Remote, *, cache: ReplyCache, label: str = "") -> AsyncIterator[RemoteModel]:
    """A client for a model's URLs. Raises UserError: no model is named, and the server does not serve exactly one."""
    urls, headers = addresses(config)
    connector = TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE)
    async with ClientSession(connector=connector, headers=headers) as session:
        setting = config.where if config.where.startswith("$") else ""
        name = config.model or await only_model(urls[0], session, key_env=config.key_env, setting=setting)
        yield RemoteModel(config, session, urls, name=name, cache=cache, label=label)

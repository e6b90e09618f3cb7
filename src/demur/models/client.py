"""Any OpenAI-compatible server, chat or raw completions: fast, durable, never fooled.

The client sends exactly what the configuration declares, adapts how much it has in flight to what each address bears,
tries again what is worth trying, and tells apart a request that fails (a typed row), and a server that is down (the run
stops, and says how to go on). A reply is in the cache before anyone sees it.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from demur import thinking
from demur.errors import UserError, WorkError, scrubbed
from demur.interfaces import Request, Requests
from demur.models import wire
from demur.models.answering import Answering, answered, asked, begun, budgets_fit, record
from demur.models.chat_format import ChatFormat
from demur.models.config import Remote
from demur.models.limiter import Address, Health, Limiter
from demur.models.transport import Trouble, only_model, post, reached
from demur.records import Failure, Message, Prompt, Sampling, Trace
from demur.storage.reply_cache import Reply, ReplyCache, key_of

KEEP_ALIVE = 4.0  # Seconds: vLLM closes idle connections after 5, and a request on a closed one is lost
BACKOFF = (0.5, 30.0)  # Seconds of the first pause between tries, and of the longest
QUEUE = 120.0  # Seconds that a request may wait in the server beside the time that it takes to write
WAITING = 8  # Whole replies without any tag that wait at most: a model of which so many came does not think
SAMPLED = ("temperature", "top_p", "top_k", "seed")


class RemoteModel(Answering):
    """A `Model` behind one or several URLs. Made by `open_remote`."""

    def __init__(
        self,
        config: Remote,
        session: aiohttp.ClientSession,
        urls: list[str],
        *,
        name: str,
        cache: ReplyCache,
        label: str,
    ) -> None:
        self._config, self._session, self._name = config, session, name
        self._cache, self._label = cache, label
        self._limiter = Limiter(urls, most=config.in_flight)
        self._health = Health(config.where, patience=config.patience)
        self._template = ChatFormat(Path(config.template)) if config.template else None
        self._path = "/chat/completions" if config.api == "chat" else "/completions"
        self._urls = {url: URL(url + self._path) for url in urls}
        self._refused = 0
        self._served: str | None = None
        self._shown: set[str] = set()
        """Who opened the thinking of its replies: `opened` by the template, `own` by the model, `apart` by the server, `plain`: none."""
        self._thinks: bool | None = None
        self.width = config.in_flight * len(urls)
        self.identity = config.cache_identity(name)

    def check(self, sampling: Sampling) -> None:
        """Raise `UserError` for what this server, as declared, cannot do and what must not be left out."""
        config, where = self._config, self._config.where
        if sampling.prefill and config.api == "chat" and config.prefill == "no":
            ways = "prefill=vllm, prefill=plain, or api=completions with a template"
            raise UserError(f"{where}: a prefill is wanted; say how this server takes one: {ways}.")
        if sampling.system and "system" in config.forbidden:
            raise UserError(f"{where}: a system turn is wanted, and 'system' is forbidden here.")
        if sampling.thinking_budget is not None and not config.thinking_budget_field:
            how = "name this server's field with thinking_budget_field (vLLM: thinking_token_budget), or leave the budget out"
            raise UserError(f"{where}: thinking_budget={sampling.thinking_budget} is wanted; {how}.")
        budgets_fit(sampling)

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        """The reply to one request."""
        found = await self._answer(request, fresh)
        if isinstance(found, Trace) and self._unclear(found):
            await self._probe([found])
            return self._filed(found)
        return found

    async def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        """As replies come. A text without tags waits until others show whether a template that nobody sees opens the thinking."""
        whole, cut = list[Trace](), list[Trace]()
        async with aclosing(answered(requests, self._answer, limit=self.width)) as results:
            async for found in results:
                if not isinstance(found, Trace) or not self._unclear(found):
                    yield found
                else:
                    (cut if found.truncated else whole).append(found)
                opened = "opened" in self._shown
                if opened or self._shown - {"plain"} or len(whole) >= WAITING:
                    self._thinks = opened
                    ready, whole, cut = [*whole, *cut * opened], [], [] if opened else cut
                    for one in ready:
                        yield self._filed(one)
        await self._probe(cut)
        for one in (*whole, *cut):
            yield self._filed(one)

    async def _answer(self, request: Request, fresh: bool = False) -> Trace | Failure:
        reply = await self._reply(request, fresh)
        opened, family = self._opened(request), self._config.thinking
        found = record(request, reply, model=self.identity, opened=opened, family=family)
        if isinstance(found, Trace) and found.answer is not None:
            own = {"prompt": "opened", "model": "apart" if reply.reasoning else "own", None: "plain"}[found.opened_by]
            self._shown |= {own} if own != "plain" or found.finish == "stop" else set()
        return found

    def _unclear(self, found: Trace) -> bool:
        """Whether a text without tags may have begun inside a thinking that a template opened."""
        config = self._config
        seen = config.opens_thinking is not None or self._template or config.thinking == "none"
        bare = found.thinking is None and found.outcome in ("no_thinking", "cut_in_answer")
        return bare and not seen and not found.sampling.prefill and (found.truncated or self._thinks is not False)

    async def _probe(self, cut: list[Trace]) -> None:
        """Where nothing but truncated texts came, ask one short question: its reply is whole."""
        if not cut or self._shown:
            return
        turn = (Message(role="user", content="What is one and one?"),)
        drawn = cut[0].sampling
        sampling = Sampling(temperature=drawn.temperature, max_tokens=max(2048, drawn.max_tokens))
        prompt = Prompt(text=turn[0].content, intent="benign")
        await self._answer(Request(messages=turn, sampling=sampling, prompt=prompt))

    def _filed(self, found: Trace) -> Trace:
        """A text without tags by what the model's other replies show."""
        shown, notes = self._shown, found.notes
        if "opened" in shown or (found.truncated and "apart" in shown and "plain" not in shown):
            parts = thinking.split(found.raw, finish=found.finish, opened=True, family=self._config.thinking)
            changed = thinking.fields(parts) | {"notes": (*notes, thinking.FILED_AGAIN)}
            return msgspec.structs.replace(found, id="", tokens_thinking=found.tokens_out, **changed)
        if found.truncated and not shown:
            notes += ("whether this text is thinking cannot be told: declare opens_thinking",)
            return msgspec.structs.replace(found, id="", notes=notes)
        return found

    async def _reply(self, request: Request, fresh: bool) -> Reply:
        """The stored reply of a request, or a new one."""
        limit = request.sampling.max_tokens
        start = begun(request, self._opened(request) is True)
        data = msgspec.json.encode(self._body(request, start))
        key = key_of([self.identity, self._config.api, asked(request)[1:]], data)

        async def ask() -> Reply:
            reply = wire.joined(start, wire.without_stop(await self._try(data, key, limit)))
            prices = self._config.prices
            cost = prices.cost(reply.tokens_in, reply.tokens_out) if prices and reply.failure is None else None
            left_out = tuple(f"{name} not sent: forbidden here" for name in SAMPLED if name in self._config.forbidden)
            return _scrubbed(msgspec.structs.replace(reply, cost=cost, notes=(*reply.notes, *left_out)))

        return await self._cache.once(key, ask, label=self._label, model=self.identity, fresh=fresh)

    def _body(self, request: Request, start: str) -> dict[str, Any]:
        """Exactly what is sent."""
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
            body["prompt"] = self._prompt(request.messages) + start
        else:
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.messages]
            if start:
                body["messages"].append({"role": "assistant", "content": start})
                if config.prefill == "vllm":
                    body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body | config.extra_body

    def _prompt(self, messages: tuple[Message, ...]) -> str:
        return self._template.render(messages) if self._template else "\n\n".join(turn.content for turn in messages)

    def _opened(self, request: Request) -> bool | None:
        """Whether what was sent ended inside an opened thinking; `None`: by the text."""
        if self._config.opens_thinking is not None:
            return self._config.opens_thinking
        return thinking.opens_thinking(self._prompt(request.messages)) if self._template else None

    async def _try(self, data: bytes, key: bytes, limit: int) -> Reply:
        """Ask until there is a reply, or it is clear that there will be none.

        Raises WorkError: the server is down, or refuses the model as such.
        """
        started = time.monotonic()
        address: Address | None = None
        tries = counted = 0
        while True:
            address = await self._limiter.enter(again=tries > 0, avoid=address)
            try:
                reply = await self._once(address, data, limit)
            except Trouble as problem:
                last = problem
            else:
                return msgspec.structs.replace(reply, retries=tries)
            finally:
                self._limiter.leave(address)
            tries += 1
            # A server that says "later", or one that was well and is being restarted, is given time and not tries.
            counts = not (last.later or (last.unreached and self._health.replies))
            self._health.failed(key, last.detail, f"{self._config.tries} times a request and " if counts else "")
            counted += counts
            left = started + self._config.patience - time.monotonic()
            if last.rest and last.rest > left:
                raise WorkError(
                    f"{self._config.where} asks to wait {last.rest:.0f} s ({last.detail}), and patience ends in {max(left, 0):.0f} s. "
                    "All replies so far are kept; run the same command later, or set patience."
                )
            if counted >= self._config.tries or left < 0:
                return self._given_up(last, tries, started)
            await asyncio.sleep(random.uniform(0, min(BACKOFF[1], BACKOFF[0] * 2.0 ** min(tries - 1, 20))))

    def _given_up(self, last: Trouble, tries: int, started: float) -> Reply:
        """A typed failure while others succeed; an end of the run when nobody does."""
        known = self._health.replies > 0 or self._cache.answered(self.identity)
        if self._health.dead(started, unreached=last.unreached, known=known):
            down = "cannot be reached" if last.unreached else "is down"
            down = "answers, but not as a model does" if last.kind == "unreadable" else down
            raise WorkError(
                f"{self._config.where} {down}: {last.detail} ({tries} tries in {time.monotonic() - started:.0f} s, none of any "
                "request succeeded). All replies so far are kept; run the same command when the server is back."
            )
        return Reply(failure=last.kind, detail=f"{last.detail} ({tries} tries)", retries=tries - 1)

    async def _once(self, address: Address, data: bytes, limit: int) -> Reply:
        """One try at one address. Raises Trouble: it failed, and another try may not."""
        began = time.monotonic()
        seconds = self._config.timeout or QUEUE + limit / self._config.least_speed
        try:
            reply = await post(
                self._session, self._urls[address.url], data, seconds=seconds, limit=limit, key_env=self._config.key_env
            )
        except Trouble as problem:
            address.troubled(down=problem.down and not problem.rest, rest=problem.rest)
            if problem.rest:
                self._health.waits(problem.rest, problem.detail)
            raise
        if reply.failure == "refused_by_server":
            self._refused += 1
            # When all of the first requests are refused it is the configuration, not the requests.
            if self._refused >= 8 and not self._health.replies:
                raise WorkError(
                    f"{self._config.where} refused the first {self._refused} requests ({reply.detail}). Does it know all that is sent? "
                    "See forbidden, max_tokens_field and extra_body. `demur retry RUN` asks the refused ones again."
                )
            return reply
        if reply.failure is None:
            address.succeeded(time.monotonic() - began)
            self._health.succeeded()
            self._recognise(reply.served)
        return reply

    def _recognise(self, served: str) -> None:
        """See that the server is still the one that the cache knows by this identity.

        Raises WorkError: another model answers behind the same name.
        """
        if not served or served == self._served:
            return
        if self._served is None:
            self._served = self._cache.served(self.identity, served)
        if served != self._served and self._config.on_swap == "stop":
            raise WorkError(
                f"{self._config.where}: another model answers under the same name: '{served}', and before '{self._served}'. Its "
                "reply was not kept. Declare a new revision for this model, or set on_swap=note if you know them to be the same."
            )


def _scrubbed(reply: Reply) -> Reply:
    """A reply in which nothing stands that we sent as a secret."""
    texts = {name: getattr(reply, name) for name in ("content", "reasoning", "detail", "served")}
    clean = {name: scrubbed(text) for name, text in texts.items() if text}
    return msgspec.structs.replace(reply, **clean) if any(clean[name] != texts[name] for name in clean) else reply


@asynccontextmanager
async def open_remote(config: Remote, *, cache: ReplyCache, label: str = "") -> AsyncIterator[RemoteModel]:
    """A client for a model's URLs. Raises UserError: no model was named, and the server does not serve exactly one."""
    urls, headers = reached(config)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        setting = config.where if config.where.startswith("$") else ""
        name = config.model or await only_model(urls[0], session, key_env=config.key_env, setting=setting)
        yield RemoteModel(config, session, urls, name=name, cache=cache, label=label)

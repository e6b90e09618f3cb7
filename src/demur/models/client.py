"""Any OpenAI-compatible server, chat or raw completions: fast, durable, never fooled.

The client sends exactly what the role declares, adapts how much it has in flight to what each URL bears, tries again what
is worth trying, and tells apart a request that fails (a typed row), and a server that is down (the run stops, and says
how to go on). A reply is in the journal before anyone sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from demur import thinking
from demur.errors import UserError, WorkError
from demur.interfaces import Request, Requests
from demur.models import transport, wire
from demur.models.config import ModelConfig
from demur.models.limiter import Lane, Lanes
from demur.models.replies import Template, answered, asked, record
from demur.models.transport import all_of, headers_of, only_model, rest_of
from demur.records import Failure, Message, Sampling, Trace
from demur.storage.reply_cache import FailureKind, Reply, ReplyCache, key_of

KEEP_ALIVE = 4.0
"""Seconds: vLLM closes idle connections after 5, and a request on a closed one is lost."""
READ_BUFFER = 1 << 22
"""Bytes: the default of 64 kB collapses streams with long contexts."""
BACKOFF = (0.5, 30.0)
"""Seconds of the first pause between tries, and of the longest."""
HOPELESS = 8
"""So many refusals and not one reply: the role is wrong, not the requests."""


class _Again(Exception):
    """A try failed in a way that another may not."""

    def __init__(self, kind: FailureKind, detail: str, *, at_once: bool = False, later: bool = False) -> None:
        super().__init__(detail)
        self.kind: FailureKind = kind
        self.detail = detail
        self.at_once = at_once
        self.later = later
        self.partial: Reply | None = None


class Endpoint:
    """A `Model` behind one or several URLs. Made by `endpoint`."""

    def __init__(
        self, role: ModelConfig, session: aiohttp.ClientSession, *, name: str, journal: ReplyCache, label: str
    ) -> None:
        self._role = role
        self._session = session
        self._name = name
        self._journal = journal
        self._label = label
        self._lanes = Lanes(role.url or (), most=role.in_flight)
        self._template = Template(Path(role.template)) if role.template else None
        self._path = "/chat/completions" if role.api == "chat" else "/completions"
        self._urls = {lane.url: URL(lane.url + self._path) for lane in self._lanes.lanes}
        self._headers = headers_of(role)
        self._refused = 0
        self._replies = 0
        self._marks: str | None = None
        self.identity = role.weights or (f"{name}@{role.revision}" if role.revision else name)
        self._who = [self.identity, role.api, sorted(self._headers)]

    # -- the Protocol -------------------------------------------------------------------------------------------------

    def check(self, sampling: Sampling) -> None:
        """Raise `UserError` for a field that this server, as declared, cannot honour."""
        role, where = self._role, self._role.where
        neutral = {
            "temperature": sampling.temperature == 1.0,
            "top_p": sampling.top_p == 1.0,
            "top_k": sampling.top_k is None,
        }
        for field, harmless in neutral.items():
            if field in role.forbidden and not harmless:
                raise UserError(
                    f"{where}: {field}={getattr(sampling, field)} is wanted, but this role forbids the field '{field}'. "
                    f"Set it to {'1.0' if field != 'top_k' else 'none'}, or remove it from 'forbidden'."
                )
        if sampling.prefill and role.api == "chat" and role.prefill == "no":
            raise UserError(
                f"{where}: a prefill is wanted; say how this server takes one: prefill=vllm, prefill=plain, or api=completions "
                "with a template."
            )
        if sampling.thinking_budget is None:
            return
        if not role.thinking_budget_field and not role.two_calls:
            raise UserError(
                f"{where}: thinking_budget={sampling.thinking_budget} is wanted; name this server's field with "
                "thinking_budget_field (vLLM: thinking_token_budget), or let two_calls=true keep it."
            )
        if sampling.thinking_budget >= sampling.max_tokens:
            raise UserError(
                f"thinking_budget {sampling.thinking_budget} leaves nothing of max_tokens {sampling.max_tokens}."
            )
        if role.two_calls and role.api == "chat" and role.prefill == "no":
            raise UserError(
                f"{where}: two_calls needs a way to begin the reply: prefill=vllm, prefill=plain, or api=completions."
            )

    async def answers(self, requests: Requests) -> AsyncGenerator[Trace | Failure, None]:
        """One result a request, as replies come."""
        limit = self._role.in_flight * len(self._lanes.lanes)
        async with contextlib.aclosing(answered(requests, self._answer, limit=limit)) as results:
            async for result in results:
                yield result

    async def _answer(self, request: Request) -> Trace | Failure:
        reply = await self._reply(request)
        opened = self._opened(request) if not reply.opened else True
        return record(request, reply, model=self.identity, opened=opened)

    # -- one request --------------------------------------------------------------------------------------------------

    async def _reply(self, request: Request) -> Reply:
        """The reply of one request, of two calls where the thinking budget is kept that way."""
        budget = request.sampling.thinking_budget
        if budget is None or not self._role.two_calls:
            return await self._call(request, begun=request.sampling.prefill or "", limit=request.sampling.max_tokens)
        first = await self._call(request, begun=request.sampling.prefill or "", limit=budget)
        if first.failure is not None or first.finish != "length":
            return first
        opened = self._opened(request) or first.opened
        raw, parts = thinking.from_fields(first.reasoning, first.content, finish="length", opened=opened)
        cut = parts.answer is None
        begun = thinking.join(parts.thinking, "", opened_by=parts.opened_by, seams=parts.seams) if cut else raw
        if cut:
            begun = begun.rstrip() + thinking.CANONICAL.after_close
        second = await self._call(request, begun=begun, limit=request.sampling.max_tokens - budget)
        note = "thinking ended at its budget, answer by a second call" if cut else "continued by a second call"
        return _added(first, second, note)

    async def _call(self, request: Request, *, begun: str, limit: int) -> Reply:
        body = self._body(request, begun=begun, limit=limit)
        data = msgspec.json.encode(body)
        key = key_of([self._who, asked(request)[1:]], data)

        async def ask() -> Reply:
            reply = await self._try(data)
            if reply.failure is None:
                reply = wire.without_stop(wire.without_echo(reply, request))
                content = begun + (reply.content or "") if begun else reply.content
                prices = self._role.prices
                cost = prices.cost(reply.tokens_in, reply.tokens_out) if prices else None
                reply = msgspec.structs.replace(reply, content=content, cost=cost)
            return reply

        return await self._journal.once(key, ask, label=self._label, model=self.identity)

    def _body(self, request: Request, *, begun: str, limit: int) -> dict[str, Any]:
        """Exactly what is sent."""
        role, sampling = self._role, request.sampling
        fields: dict[str, Any] = {
            "model": self._name,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": (sampling.seed + 1_000_003 * request.sample) % (1 << 31),
            role.max_tokens_field: limit,
        }
        if role.thinking_budget_field:
            fields[role.thinking_budget_field] = sampling.thinking_budget
        if role.first_tokens:
            chat = {"logprobs": True, "top_logprobs": role.first_tokens}
            fields |= chat if role.api == "chat" else {"logprobs": role.first_tokens}
        if role.stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        body = {name: value for name, value in fields.items() if value is not None and name not in role.forbidden}
        if role.api == "completions":
            body["prompt"] = self._prompt(request.messages) + begun
        else:
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in request.messages]
            if begun:
                body["messages"].append({"role": "assistant", "content": begun})
                if role.prefill == "vllm":
                    body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body | role.extra_body

    def _prompt(self, messages: tuple[Message, ...]) -> str:
        return self._template.render(messages) if self._template else "\n\n".join(turn.content for turn in messages)

    def _opened(self, request: Request) -> bool:
        """Whether what was sent ended inside an opened thinking."""
        if self._role.opens_thinking is not None:
            return self._role.opens_thinking
        return self._template is not None and thinking.opens_thinking(self._prompt(request.messages))

    # -- trying -------------------------------------------------------------------------------------------------------

    async def _try(self, data: bytes) -> Reply:
        """Ask until there is a reply, or it is clear that there will be none.

        Raises:
            WorkError: the server is down, or refuses the role as such.
        """
        started = time.monotonic()
        lane: Lane | None = None
        tries, counted, free = 0, 0, 1
        while True:
            lane = await self._lanes.enter(avoid=lane)
            try:
                reply = await self._once(lane, data)
            except _Again as problem:
                last = problem
            else:
                self._replies += reply.failure is None
                return msgspec.structs.replace(reply, retries=tries)
            finally:
                self._lanes.leave(lane)
            tries += 1
            # A server that says "later" is well: only time bounds how often it may say so.
            counted += not last.later
            if last.at_once and free:
                # The server closed an idle connection just as it was used: nothing was wrong with anything.
                free -= 1
                continue
            if counted >= self._role.tries or time.monotonic() - started > self._role.patience:
                return self._give_up(last, tries, started)
            await asyncio.sleep(random.uniform(0, min(BACKOFF[1], BACKOFF[0] * 2.0 ** min(tries - 1, 20))))

    def _give_up(self, last: _Again, tries: int, started: float) -> Reply:
        """A typed failure while others succeed; an end of the run when nobody does."""
        if self._lanes.last_success() < started and last.kind != "timeout":
            raise WorkError(
                f"{self._role.where} is down: {last.detail} ({tries} tries in {time.monotonic() - started:.0f} s, none of any "
                "request succeeded). All replies so far are kept; run the same command when the server is back."
            )
        partial = last.partial or Reply()
        return msgspec.structs.replace(
            partial, failure=last.kind, detail=f"{last.detail} ({tries} tries)", retries=tries - 1
        )

    async def _once(self, lane: Lane, data: bytes) -> Reply:
        """One try at one URL.

        Raises:
            _Again: it failed, and another try may not.
        """
        begun = time.monotonic()
        try:
            async with self._session.post(self._urls[lane.url], data=data, headers=self._headers) as response:
                if response.status != 200:
                    return self._refusal(lane, response.status, response.headers, await all_of(response))
                reply = await self._read(response)
        except _Again as problem:
            if problem.kind == "timeout" and problem.partial is not None:
                lane.troubled()
            raise
        except wire.Unreadable as error:
            lane.troubled()
            raise _Again("unreadable", str(error)) from None
        except (TimeoutError, aiohttp.ServerTimeoutError):
            lane.troubled()
            raise _Again("timeout", f"no reply within {self._role.timeout:.0f} s") from None
        except aiohttp.ServerDisconnectedError:
            lane.troubled(down=True)
            raise _Again("unavailable", "the server closed the connection", at_once=True) from None
        except aiohttp.ClientPayloadError as error:
            lane.troubled()
            raise _Again("unreadable", f"the reply broke off: {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            lane.troubled(down=True)
            raise _Again("unavailable", f"{type(error).__name__}: {error}") from None
        lane.succeeded(time.monotonic() - begun)
        self._recognise(reply.served)
        return reply

    async def _read(self, response: aiohttp.ClientResponse) -> Reply:
        if self._role.stream and "event-stream" in response.content_type:
            return await self._stream(response)
        return wire.read(await all_of(response))

    async def _stream(self, response: aiohttp.ClientResponse) -> Reply:
        """A streamed reply; a stuck one ends with what came so far."""
        pieces = wire.Pieces()
        size = 0
        while not pieces.done:
            try:
                line = await asyncio.wait_for(response.content.readline(), self._role.stall)
            except TimeoutError:
                stuck = _Again("timeout", f"stuck: no further piece for {self._role.stall:.0f} s; what came is kept")
                stuck.partial = pieces.reply()
                raise stuck from None
            except ValueError:
                raise wire.Unreadable("a line of the stream is too long") from None
            size += len(line)
            if not line or size > transport.LARGEST:
                break
            pieces.add(line)
        if not pieces.finished:
            raise wire.Unreadable("the stream ended before the reply did")
        return pieces.reply()

    def _refusal(self, lane: Lane, status: int, headers: Mapping[str, str], data: bytes) -> Reply:
        """What a status other than 200 means: try again, a typed failure, or the end."""
        said = f"HTTP {status}: {wire.error_text(data)}"
        if status in (408, 409, 425, 429) or status >= 500:
            rest = rest_of(headers.get("Retry-After"))
            lane.troubled(down=status >= 500 and rest is None, rest=rest)
            kind: FailureKind = "timeout" if status in (408, 504) else "unavailable"
            raise _Again(kind, said, later=status == 429)
        if status in (401, 403):
            key = (
                f"the key in {self._role.key_env}"
                if self._role.key_env
                else "no key was sent: name its variable with key_env"
            )
            raise WorkError(f"{lane.url} refuses us ({said}; {key}). Mend that and run the same command.")
        if status in (404, 405) and not self._replies:
            raise WorkError(
                f"{lane.url}{self._path}: {said}. Is the URL right up to /v1, and does it serve the model '{self._name}'?"
            )
        if wire.says_too_long(said):
            return Reply(failure="too_long", detail=said)
        self._refused += 1
        if self._refused >= HOPELESS and not self._replies:
            raise WorkError(
                f"{lane.url} refused the first {self._refused} requests ({said}). Does it know all that this role sends? "
                "See forbidden, max_tokens_field and extra_body. `demur retry RUN` asks the refused ones again."
            )
        return Reply(failure="refused_by_server", detail=said)

    def _recognise(self, served: str) -> None:
        """See that the server is still the one that the journal knows by this identity.

        Raises:
            WorkError: another model answers behind the same name.
        """
        if not served or served == self._marks:
            return
        if self._marks is None:
            self._marks = self._journal.served(self.identity, served)
        if served != self._marks and self._role.on_swap == "stop":
            raise WorkError(
                f"{self._role.where}: another model answers under the same name: '{served}', and before '{self._marks}'. Its "
                "reply was not kept. Declare a new revision for this role, or set on_swap=note if you know them to be the same."
            )


@asynccontextmanager
async def endpoint(role: ModelConfig, *, journal: ReplyCache, label: str = "") -> AsyncIterator[Endpoint]:
    """A client for a role's URLs.

    Raises:
        UserError: no model was named, and the server does not serve exactly one.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE)
    timeout = aiohttp.ClientTimeout(total=role.timeout, sock_connect=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=READ_BUFFER) as session:
        name = role.model or await only_model(role, session)
        yield Endpoint(role, session, name=name, journal=journal, label=label)


def _added(first: Reply, second: Reply, note: str) -> Reply:
    """One reply of two calls; the second's text holds the first's."""
    if second.failure is not None:
        return second

    def total(name: str) -> Any:
        values = [value for reply in (first, second) if (value := getattr(reply, name)) is not None]
        return sum(values) if values else None

    return msgspec.structs.replace(
        second,
        tokens_in=first.tokens_in,
        tokens_out=total("tokens_out"),
        tokens_thinking=first.tokens_thinking,
        cost=total("cost"),
        retries=first.retries + second.retries,
        opened=first.opened,
        notes=(*first.notes, *second.notes, note),
    )

"""What a user says about a model that answers, and how to get at it.

A role is a server (one URL or several that serve the same), a folder with weights, a hub id, or a script. Everything that
servers differ in is declared here, none of it guessed; whatever is sent is part of the journal's key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, Field, field_validator, model_validator

from demur.errors import UserError
from demur.records import Sampling
from demur.settings import STRICT


class SamplingSettings(BaseModel):
    """How a role draws its replies. What is not said here stays as the stage has it."""

    model_config = STRICT

    temperature: float | None = Field(default=None, ge=0)
    """0 is greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    """Bound on all new tokens, thinking included."""
    thinking_budget: int | None = Field(default=None, ge=0)
    """Bound on thinking tokens."""
    seed: int | None = None
    n: int | None = Field(default=None, ge=1)
    """Samples a prompt."""
    system: str | None = None
    """System turn of every request."""
    prefill: str | None = None
    """Text put at the start of the assistant's turn."""

    def over(self, base: Sampling) -> Sampling:
        """`base`, changed in what was said here."""
        return msgspec.structs.replace(base, **self.model_dump(exclude_unset=True, exclude_none=True))


class Prices(BaseModel):
    """What tokens cost, per million, in one currency of your choice."""

    model_config = STRICT

    input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)

    def cost(self, tokens_in: int | None, tokens_out: int | None) -> float:
        """The price of one reply."""
        return ((tokens_in or 0) * self.input + (tokens_out or 0) * self.output) / 1e6


class ModelConfig(BaseModel):
    """A model that answers: exactly one of `url`, `path`, `hub` and `script`."""

    model_config = STRICT

    url: tuple[str, ...] | None = None
    """Base URL up to /v1, or several that serve the same model: requests are spread by load."""
    path: str | None = None
    """Folder with weights and tokenizer, run on this machine."""
    hub: str | None = None
    """Hugging Face id, downloaded and run on this machine."""
    script: str | None = None
    """Name of a script, or module:function; for tests and stand-ins."""
    serve: Literal["", "vllm", "transformers"] = ""
    """Start a server for `path` or `hub` with this engine, and stop it at the end."""
    model: str = ""
    """Name that the server knows the model by; empty: the only one it serves."""
    revision: str = ""
    """What you declare about the version behind the name; part of the identity."""
    weights: str = ""
    """Hash of the weights behind the URL, when known; then it is the identity."""
    key_env: str = ""
    """Environment variable that holds the key."""
    api: Literal["chat", "completions"] = "chat"
    """Which protocol of the server is spoken."""
    template: str = ""
    """For completions: a folder or .jinja file with the chat template; empty: none."""
    prices: Prices | None = None
    sampling: SamplingSettings = SamplingSettings()
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    thinking_budget_field: str = ""
    """The server's field for it, such as vLLM's thinking_token_budget."""
    two_calls: bool = False
    """Keep a thinking budget by a second call that goes on from the cut text."""
    forbidden: tuple[str, ...] = ()
    """Fields that this server refuses, such as seed or temperature."""
    extra_body: dict[str, Any] = {}
    """Sent as it is, such as {chat_template_kwargs: {…}}."""
    headers: dict[str, str] = {}
    """Extra headers; a value $NAME is read from the environment."""
    opens_thinking: bool | None = None
    """Whether the chat template opens the thinking; None: by the text."""
    prefill: Literal["no", "plain", "vllm"] = "no"
    """How the server takes a begun reply: as a last assistant turn, or so with vLLM's switches."""
    first_tokens: int = Field(default=0, ge=0, le=20)
    """How many alternatives of the first token to ask for: guards score by them."""
    stream: bool = False
    """Read the reply piece by piece, so that a stuck one is seen."""
    stall: float = Field(default=120.0, gt=0)
    """Seconds without a new piece after which a streamed reply is stuck."""
    timeout: float = Field(default=1800.0, gt=0)
    """Seconds for one try; must exceed queueing and generation."""
    tries: int = Field(default=6, ge=1)
    """Most tries of one request."""
    patience: float = Field(default=900.0, gt=0)
    """Most seconds that one request is tried again."""
    in_flight: int = Field(default=256, ge=1)
    """Most requests at one URL at the same time."""
    on_swap: Literal["stop", "note"] = "stop"
    """When the server's replies show another model than before: stop, or only note it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps; or how a served model is placed."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch: int = Field(default=0, ge=0)
    """RecordFile of a batch; 0: by the model's size."""
    threads: int = Field(default=1, ge=1)
    """CPU threads; fixed, so that the same text comes everywhere."""
    memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of the device's memory that a server may take."""

    @field_validator("url", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelConfig:
        given = [name for name in ("url", "path", "hub", "script") if getattr(self, name)]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise ValueError(f"a role is exactly one of url, path, hub and script; given: {said}")
        for url in self.url or ():
            if not url.startswith(("http://", "https://", "$")):
                raise ValueError(f"'{url}' is no URL: write http://HOST:PORT/v1, or $NAME of the environment")
        return self

    @property
    def where(self) -> str:
        """What to call it in messages."""
        return ", ".join(self.url) if self.url else str(self.path or self.hub or f"script:{self.script}")

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs, those of the environment read."""
        return tuple(os.environ[url[1:]] if url.startswith("$") else url for url in self.url or ())

    def missing(self) -> list[str]:
        """What is not there although this role needs it: one line each, with what to do. Asks no one."""
        names = [self.key_env] if self.key_env else []
        names += [value[1:] for value in (*self.headers.values(), *(self.url or ())) if value.startswith("$")]
        lines = [
            f"{name} is not set: export it, or name another with key_env" for name in names if not os.environ.get(name)
        ]
        if self.path and not Path(self.path).is_dir():
            lines.append(f"{self.path} is no folder: give one with config.json, weights and tokenizer")
        return lines


def parse_model(text: str) -> ModelConfig:
    """What `--target TEXT` means: a URL (or several with commas), a folder, `script:NAME`, `module:function`, a hub id.

    Raises:
        UserError: it is none of these.
    """
    text = text.strip()
    if text.startswith(("http://", "https://", "$")):
        return ModelConfig(url=tuple(part.strip() for part in text.split(",")))
    if text.startswith("script:"):
        return ModelConfig(script=text.removeprefix("script:"))
    if text and Path(text).expanduser().is_dir():
        return ModelConfig(path=str(Path(text).expanduser()))
    owner, slash, name = text.partition("/")
    if ":" in text and not slash:
        return ModelConfig(script=text)
    if slash and owner and name and "/" not in name and not text.startswith((".", "~", "/")):
        return ModelConfig(hub=text)
    raise UserError(
        f"'{text}' is no model: give http://HOST:PORT/v1, a folder that exists, owner/name of the hub, "
        "script:NAME or module:function."
    )

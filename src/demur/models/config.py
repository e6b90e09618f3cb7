"""How a user describes a model: a server, weights that are served or run here, a script, or a plug-in.

Each kind is a class of its own and refuses the settings of the others. What a model *is* forms its identity; how it is
reached (fields marked `connection`) does not, so that changing a timeout repeats no work. Secrets come from the
environment: a configuration names the variable and never holds the value.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from demur.errors import UserError
from demur.models.sampling import Defaults
from demur.settings import Strict, connection, validate
from demur.thinking import FAMILIES

SECRET_HEADERS = frozenset(("authorization", "x-api-key", "api-key", "cookie", "proxy-authorization"))


class Prices(Strict):
    """What tokens cost, per million, in one currency of your choice."""

    input: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)

    def cost(self, tokens_in: int | None, tokens_out: int | None) -> float:
        """The price of one reply; a count that is not known costs nothing."""
        return ((tokens_in or 0) * self.input + (tokens_out or 0) * self.output) / 1e6


class _Config(Strict):
    """What all kinds share."""

    sampling: Defaults = Defaults()  # Used where a request leaves a field unset

    @property
    def where(self) -> str:
        """The model's URLs, path or name, for messages."""
        names = (getattr(self, field, "") for field in ("path", "hub", "script", "plugin"))
        return ", ".join(getattr(self, "url", ())) or next(filter(None, names))

    @property
    def weights_at(self) -> str:
        """Folder, file or hub id of the weights that run on this machine; empty for a model that runs elsewhere."""
        return getattr(self, "path", None) or getattr(self, "hub", None) or ""

    def missing(self) -> list[str]:
        """One line for each thing that the model needs and this machine lacks, with what to do. Sends no request."""
        return []


class LanguageModel(_Config):
    """What servers and weights share."""

    api: Literal["chat", "completions"] = "chat"
    thinking: str = ""  # How it marks its thinking: `tags`, `harmony`, `magistral` …, or `none`; empty: by the text
    first_tokens: int = Field(default=0, ge=0, le=20)  # Alternatives of the first token to keep: guards score by them
    extra_body: dict[str, Any] = {}  # Sent as it is; weights in this process use only its `chat_template_kwargs`

    @field_validator("thinking")
    @classmethod
    def _family(cls, value: str) -> str:
        if value not in ("", "none", *FAMILIES):
            raise ValueError(f"unknown family of thinking marks. Allowed: {', '.join(FAMILIES)}, none")
        return value


class HttpModel(LanguageModel):
    """What models that are asked over HTTP share."""

    thinking_budget_field: str = ""  # The server's field for a thinking budget, such as vLLM's thinking_token_budget
    forbidden: tuple[str, ...] = ()  # Fields that this server refuses, such as seed or system: left out, and noted
    timeout: float | None = connection(None, gt=0)  # Seconds for one try, queueing included; unset: by `least_speed`
    least_speed: float = connection(5.0, gt=0)
    """Tokens a second that a busy server still gives one request: a try may take 120 s and its budget at this speed."""
    in_flight: int = connection(256, ge=1)  # Most requests at one URL at the same time


class Remote(HttpModel):
    """A server that speaks OpenAI's protocol."""

    url: tuple[str, ...] = connection(min_length=1)  # Up to /v1; several serve one model; $NAME: from the environment
    model: str = ""  # The server's name for the model; empty: the only one it serves
    revision: str = ""  # The version, as you declare it; without it (or `weights`) the address is part of the identity
    weights: str = ""  # Hash of the weights behind the URL, when known; it is then the identity
    template: str = ""  # For completions: a folder or .jinja file with the chat template; empty: none
    opens_thinking: bool | None = None  # Whether the chat template opens the thinking; unset: inferred from the text
    prefill: Literal["no", "plain", "vllm"] = "no"  # How a prefill is sent: as the last turn, or by vLLM's switches
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    key_env: str = connection("")  # Environment variable that holds the key
    headers: dict[str, str] = connection({})  # Extra headers; a value $NAME is read from the environment
    prices: Prices | None = connection(None)
    tries: int = connection(6, ge=1)  # Most tries of one request
    patience: float = connection(900.0, gt=0)  # Most seconds that a request is tried, or that a server may ask to wait
    on_swap: Literal["stop", "note"] = connection("stop")  # If replies name another model than before: stop, or go on

    @field_validator("url", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _checked(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(url if url.startswith("$") else _address(url) for url in value)

    @field_validator("headers")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if name.lower() in SECRET_HEADERS and not text.startswith("$"):
                raise ValueError(f"the header {name} is a secret: name an environment variable ($NAME), or key_env")
        return value

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses; a `$NAME` is replaced by its value in the environment."""
        return tuple(os.environ[url[1:]].rstrip("/") if url.startswith("$") else url for url in self.url)

    def cache_identity(self, name: str) -> str:
        """The identity under which replies of the model of this name are cached."""
        return self.weights or (f"{name}@{self.revision}" if self.revision else f"{name} at {self.where}")

    def identity(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Fields of the fingerprint; they include the address where nothing else identifies the model."""
        return fields if self.revision or self.weights else fields | {"url": sorted(self.url)}

    def missing(self) -> list[str]:
        """Environment variables that are not set."""
        names = [self.key_env] if self.key_env else []
        names += [value[1:] for value in (*self.headers.values(), *self.url) if value.startswith("$")]
        unset = [name for name in names if not os.environ.get(name)]
        return [f"{name} is not set: export it, or name another with key_env" for name in unset]


class _Weights(LanguageModel):
    """Weights on this machine: exactly one of `path` and `hub`."""

    path: str | None = None  # Folder with weights and tokenizer, or a GGUF file
    hub: str | None = None  # Hugging Face id; downloaded first
    revision: str = ""  # Branch, tag or commit on the hub
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @field_validator("hub")
    @classmethod
    def _legal(cls, value: str | None) -> str | None:
        if value is not None and not is_hub_id(value):
            raise ValueError("not a hub id: write OWNER/NAME, of letters, digits, '-', '_' and '.'")
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if bool(self.path) == bool(self.hub):
            raise ValueError("exactly one of path and hub is needed")
        return self

    def missing(self) -> list[str]:
        """A folder or file that does not exist."""
        if self.path is None or Path(self.path).is_dir() or (self.path.endswith(".gguf") and Path(self.path).is_file()):
            return []
        return [f"{self.path} is neither a folder with config.json, weights and tokenizer nor a .gguf file"]


class Local(_Weights):
    """Weights that this process runs."""

    device: str = connection("auto")  # auto, cpu, cuda, cuda:1, mps
    batch: int = connection(0, ge=0)  # Rows generated at the same time; 0: by the model's size
    threads: int = connection(1, ge=1)  # CPU threads of one worker


class Served(_Weights, HttpModel):
    """Weights behind a server that demur starts, and stops when it is no longer needed."""

    engine: Literal["vllm"]
    devices: tuple[int, ...] = connection(())  # Numbers of the GPUs; empty: as the plan places it
    tensor_parallel: int = connection(0, ge=0)  # GPUs that share one copy; 0: all of `devices`
    max_model_len: int | None = Field(default=None, ge=1)  # Most tokens of an exchange; unset: the model's own limit
    memory: float = connection(0.9, gt=0, le=1)  # Fraction of each device's memory that the server may take
    extra_args: tuple[str, ...] = ()  # Further arguments of the engine's command line
    start_within: float = connection(1800.0, gt=0)  # Seconds that the server may take to become ready

    def missing(self) -> list[str]:
        """The weights, and the engine's program."""
        from demur.models.vllm import executable

        lines = super().missing()
        try:
            executable()
        except UserError as error:
            lines.append(str(error))
        return lines


class Scripted(_Config):
    """A function of this process, for tests and dry runs."""

    script: str  # Name of a script, or module:function
    opens_thinking: bool | None = None  # Whether its texts begin inside an opened thinking; unset: by the text
    timeout: float | None = connection(None, gt=0)  # Seconds for one reply; unset: no limit
    in_flight: int = connection(256, ge=1)  # Most calls at the same time

    def missing(self) -> list[str]:
        """The function. A user's module is located but not imported: `plan` runs no code of a study."""
        from demur.models.scripted import load_script

        module, colon, _ = self.script.partition(":")
        package = module.partition(".")[0]
        external = colon and package != "demur" and (package in sys.modules or importlib.util.find_spec(package))
        try:
            if not external:
                load_script(self.script)
        except UserError as error:
            return [str(error)]
        return []


class Custom(_Config):
    """A backend of your own: a pydantic class with an asynchronous context manager `open(cache=, label=)`."""

    plugin: str  # The class, as module:Class
    settings: dict[str, Any] = {}  # Its fields

    @property
    def backend(self) -> Any:
        """An instance of the class. Raises UserError: there is no such class, or a setting is not one of its fields."""
        from demur.registry import resolve

        return validate(resolve("model", self.plugin, {}), self.settings, where=self.plugin)

    def missing(self) -> list[str]:
        """The class, a wrong setting, or what the backend itself reports as missing."""
        try:
            return list(getattr(self.backend, "missing", list)())
        except UserError as error:
            return [str(error)]


KINDS = {"url": "Remote", "script": "Scripted", "plugin": "Custom", "engine": "Served", "path": "Local", "hub": "Local"}
"""The first of these keys that a mapping has decides which kind of model it describes."""


def _kind(value: Any) -> str:
    if isinstance(value, _Config):
        return type(value).__name__
    keys = value if isinstance(value, dict) else {}
    return next((kind for key, kind in KINDS.items() if key in keys), "none")


ModelConfig = Annotated[  # A model in settings: a mapping, or the short text that `parse_model` reads
    Annotated[Remote, Tag("Remote")]
    | Annotated[Served, Tag("Served")]
    | Annotated[Local, Tag("Local")]
    | Annotated[Scripted, Tag("Scripted")]
    | Annotated[Custom, Tag("Custom")],
    Discriminator(
        _kind,
        custom_error_type="no_model",
        custom_error_message="a model has one of url, path, hub, script and plugin (path or hub with engine: served)",
    ),
    BeforeValidator(lambda value: parse_model(value) if isinstance(value, str) else value),
]


class _Holder(BaseModel):
    model: ModelConfig


def as_model(value: Any, *, where: str = "model") -> ModelConfig:
    """A model from a mapping or a short text. Raises UserError: one line per mistake, with the nearest allowed key."""
    return validate(_Holder, {"model": value}, where=where).model


def parse_model(text: str) -> ModelConfig:
    """The model of a short text, such as `--target TEXT`: a URL (or several with commas), a folder, a .gguf file,
    `script:NAME`, `module:function` or a hub id. Raises UserError: it is none of these."""
    text = text.strip()
    if text.startswith(("http://", "https://", "$")):
        return as_model({"url": [part.strip() for part in text.split(",")]}, where="URL")
    if text.startswith("script:"):
        return Scripted(script=text.removeprefix("script:"))
    if text and (Path(text).expanduser().is_dir() or text.endswith(".gguf")):
        return Local(path=str(Path(text).expanduser()))
    if ":" in text and "/" not in text:
        return Scripted(script=text)
    if is_hub_id(text):
        return Local(hub=text)
    allowed = "a folder or .gguf file that exists, OWNER/NAME of the hub, script:NAME or module:function"
    raise UserError(f"'{text}' is not a model: give http://HOST:PORT/v1, {allowed}.")


def is_hub_id(text: str) -> bool:
    """Whether a text can be the id of a model on the hub."""
    owner, slash, name = text.partition("/")
    legal = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
    return bool(slash and legal.fullmatch(owner) and legal.fullmatch(name) and "--" not in text and ".." not in text)


def _address(url: str) -> str:
    """A URL without trailing slashes. Raises ValueError: it is not an HTTP URL, or contains a password."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("not a URL: write http://HOST:PORT/v1, or $NAME for an environment variable")
    if parts.username or parts.password:
        raise ValueError("a URL with a password would be stored: put the whole URL into a variable and write $NAME")
    return url.rstrip("/")

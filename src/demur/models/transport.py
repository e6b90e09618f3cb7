"""One HTTP request: secrets in headers, bodies of bounded size, `Retry-After`, and what each failure means."""

import base64
import os
import re
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from demur.errors import UserError, WorkError, keep_secret
from demur.models import wire
from demur.models.config import Remote
from demur.records import FailureKind
from demur.storage.reply_cache import Reply

LARGEST = 64 << 20  # Bytes of an unpacked reply; a larger one is taken for one that never ends
RETRIED = (408, 409, 425, 429)  # Statuses below 500 after which the same request may succeed
SPENT = ("insufficient_quota", "insufficient balance", "billing_hard_limit")  # In errors that no waiting cures


class TryFailed(Exception):
    """A try failed, and another may succeed."""

    def __init__(self, kind: FailureKind, detail: str, *, status: int = 0, wait: float | None = None) -> None:
        super().__init__(detail)
        self.kind: FailureKind = kind
        self.detail = detail
        self.wait = wait  # Seconds that the server asks to wait
        self.busy = status in (429, 503)  # The server works and asks to come back later
        self.down = kind == "unavailable" and not self.busy  # No answer at all, or an error of the server's own
        self.unreached = kind == "unavailable" and not status


async def post(
    session: aiohttp.ClientSession, url: URL, data: bytes, *, seconds: float, limit: int, key_env: str = ""
) -> Reply:
    """Send a request once. Raises TryFailed: another try may succeed. Raises WorkError: no request will."""
    timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=30)
    try:
        async with session.post(url, data=data, timeout=timeout, allow_redirects=False) as response:
            body = await read_body(response)
            if response.status == 200:
                return wire.read(body, limit=limit)
            return _refused(url, response, wire.error_text(body), key_env)
    except wire.Unreadable as error:
        raise TryFailed("unreadable", str(error)) from None
    except TimeoutError:
        raise TryFailed("timeout", f"no reply within {seconds:.0f} s") from None
    except aiohttp.ServerDisconnectedError:
        raise TryFailed("unavailable", "the server closed the connection") from None
    except (aiohttp.ClientConnectionError, aiohttp.ClientOSError) as error:
        raise TryFailed("unavailable", _unreached(error)) from None
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
        raise TryFailed("unreadable", f"the reply broke off: {wire.excerpt(str(error).encode())}") from None


def _refused(url: URL, response: aiohttp.ClientResponse, text: str, key_env: str) -> Reply:
    """What a status other than 200 means: a typed failure, `TryFailed`, or a `WorkError` that ends the run."""
    status, headers = response.status, response.headers
    detail = f"HTTP {status}: {text}"
    if (status in RETRIED or status >= 500) and not any(phrase in text.lower() for phrase in SPENT):
        kind: FailureKind = "timeout" if status in (408, 504) else "unavailable"
        raise TryFailed(kind, detail, status=status, wait=retry_after(headers.get("Retry-After")))
    failure = wire.failure_kind(status, text)
    if failure == "filtered":
        return Reply(failure=failure, detail=detail)
    if status in (401, 403):
        raise WorkError(f"{url} refuses us ({detail}). {_key(key_env)} Correct that and run the same command.")
    if status in (402, 429):
        raise WorkError(f"{url}: {detail}. Replies so far are kept; run the same command when the account allows it.")
    if status in (404, 405):
        raise WorkError(f"{url}: {detail}. Is the URL right up to /v1, and does it serve this model?")
    if status < 400:
        where = wire.excerpt(headers.get("Location", "").encode("utf-8", "replace"))
        raise WorkError(f"{url} redirects to {where} (HTTP {status}). demur follows no redirects: give that address.")
    return Reply(failure=failure, detail=detail)


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, unpacked. Raises `wire.Unreadable`: it is larger than any reply."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise wire.Unreadable(f"a reply of more than {LARGEST >> 20} MB")
    return b"".join(parts)


def retry_after(text: str | None) -> float | None:
    """The seconds of a `Retry-After` header, which may also be a date; `None`: it is neither."""
    for seconds_of in (float, lambda date: parsedate_to_datetime(date).timestamp() - time.time()):
        with suppress(ValueError, TypeError, OverflowError):
            seconds = seconds_of(text or "")
            return max(seconds, 0.0) if seconds == seconds else None
    return None


def addresses(config: Remote) -> tuple[list[str], dict[str, str]]:
    """The URLs, without user and password, and the headers of every request.

    What the environment holds is treated as a secret from then on. Raises UserError: a secret that no header can hold.
    """
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    urls: list[str] = []
    secrets = {name: os.environ[value[1:]] for name, value in config.headers.items() if value.startswith("$")}
    key = os.environ[config.key_env].strip() if config.key_env else ""
    for text in (key, *secrets.values()):
        keep_secret(text)
        if any(ord(character) < 32 or ord(character) > 255 for character in text):
            raise UserError(f"{config.where}: a key or header of the environment holds a line end or an odd character.")
    for url in map(URL, config.urls):
        if url.user is not None or url.password is not None:
            for secret in (url.password, url.raw_password):
                keep_secret(secret or "")
            pair = f"{url.user or ''}:{url.password or ''}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        urls.append(str(url.with_user(None)).rstrip("/"))
    bearer = {"Authorization": f"Bearer {key}"} if key else {}
    return urls, headers | bearer | config.headers | secrets


def _unreached(error: Exception) -> str:
    """Why no connection could be made, and what to check."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        causes = "its spelling (--target, --judge … of a verb, models.NAME.url of a study) and this machine's network"
        return f"the host name {error.host} does not resolve ({error.os_error.strerror}): look at {causes}"
    return f"{type(error).__name__}: {wire.excerpt(str(error).replace(' ssl:default', '').encode())}"


async def only_model(url: str, session: aiohttp.ClientSession, *, key_env: str = "", setting: str = "") -> str:
    """The name of the only model that a server lists. Raises UserError: it lists none or several, or gives no list."""
    hint = "name it: --model NAME, or model: NAME in a study file."
    try:
        status, data = await _listed(url, session)
        bare = re.sub(r"/(chat/completions|completions|models)$", "", url)
        for other in (bare, f"{bare}/v1") if status in (404, 405) else ():
            if other != url and (await _listed(other, session))[0] == 200:
                raise UserError(f"{url} lists no models, {other} does: give that address.")
    except UserError:
        raise
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
        name = f"{setting} = {url}" if setting else url
        hint = "Is the server up, and the URL right up to /v1?"
        raise UserError(f"{name} cannot be reached: {_unreached(error)}. {hint}") from error
    except wire.Unreadable as error:
        raise UserError(f"{url} does not say which model it serves: {error}; {hint}") from error
    if status in (401, 403):
        raise UserError(f"{url} refuses us (HTTP {status}: {wire.error_text(data)}). {_key(key_env)}")
    if status != 200:
        raise UserError(f"{url} does not say which model it serves (HTTP {status}: {wire.error_text(data)}); {hint}")
    names = list[str]()
    with suppress(msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError, RecursionError):
        names = [entry["id"] for entry in msgspec.json.decode(data)["data"] if isinstance(entry["id"], str)]
    if len(names) != 1:
        raise UserError(f"{url} serves {len(names)} models ({', '.join(names[:10])}); {hint}")
    return names[0]


async def why_unreachable(config: Remote) -> str:
    """Why none of a server's addresses takes a connection; empty: one does, whatever it then answers."""
    urls, headers = addresses(config)
    reason = ""
    async with aiohttp.ClientSession(headers=headers) as session:
        for url in urls:
            try:
                await _listed(url, session)
            except aiohttp.ClientConnectorError as error:
                reason = _unreached(error)
                continue
            except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError, wire.Unreadable):
                pass
            return ""
    return reason


async def _listed(url: str, session: aiohttp.ClientSession) -> tuple[int, bytes]:
    """Status and body of a server's list of models."""
    timeout = aiohttp.ClientTimeout(total=30)
    async with session.get(f"{url}/models", timeout=timeout, allow_redirects=False) as response:
        return response.status, await read_body(response)


def _key(key_env: str) -> str:
    """Which key was sent, for a message."""
    if key_env:
        return f"The key was read from {key_env} (key_env): is it right?"
    return "No key was sent: name the environment variable that holds it (--key-env NAME, or key_env in a study)."

"""One try over HTTP: secrets in headers, bodies with a bound, waits that a server asks for, and what each failure means."""

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

LARGEST = 64 << 20  # Bytes of a reply, unpacked, beyond which it is taken for one that never ends
LATER = (408, 409, 425, 429)  # Statuses below 500 after which the same request may succeed
SPENT = ("insufficient_quota", "insufficient balance", "billing_hard_limit")  # What servers say when no waiting helps


class Trouble(Exception):
    """A try failed in a way that another may not."""

    def __init__(self, kind: FailureKind, detail: str, *, status: int = 0, rest: float | None = None) -> None:
        super().__init__(detail)
        self.kind: FailureKind = kind
        self.detail = detail
        self.rest = rest  # Seconds that the server asks to wait
        self.later = status in (429, 503)  # The server is well and says "later": only patience bounds how often
        self.down = kind == "unavailable" and not self.later  # It did not answer at all, or with an error of its own
        self.unreached = kind == "unavailable" and not status


async def post(
    session: aiohttp.ClientSession, url: URL, data: bytes, *, seconds: float, limit: int, key_env: str = ""
) -> Reply:
    """Put a request once.

    Raises Trouble: it failed, and another try may not; WorkError: the server will not have us.
    """
    timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=30)
    try:
        async with session.post(url, data=data, timeout=timeout, allow_redirects=False) as response:
            body = await all_of(response)
            if response.status == 200:
                return wire.read(body, limit=limit)
            return _refused(url, response, wire.error_text(body), key_env)
    except wire.Unreadable as error:
        raise Trouble("unreadable", str(error)) from None
    except TimeoutError:
        raise Trouble("timeout", f"no reply within {seconds:.0f} s") from None
    except aiohttp.ServerDisconnectedError:
        raise Trouble("unavailable", "the server closed the connection") from None
    except (aiohttp.ClientConnectionError, aiohttp.ClientOSError) as error:
        raise Trouble("unavailable", _unreached(error)) from None
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
        raise Trouble("unreadable", f"the reply broke off: {wire.excerpt(str(error).encode())}") from None


def _refused(url: URL, response: aiohttp.ClientResponse, text: str, key_env: str) -> Reply:
    """What a status other than 200 means: another try, a typed failure, or the end."""
    status, headers = response.status, response.headers
    said = f"HTTP {status}: {text}"
    if (status in LATER or status >= 500) and not any(phrase in text.lower() for phrase in SPENT):
        kind: FailureKind = "timeout" if status in (408, 504) else "unavailable"
        raise Trouble(kind, said, status=status, rest=rest_of(headers.get("Retry-After")))
    failure = wire.refusal(status, text)
    if failure == "filtered":
        return Reply(failure=failure, detail=said)
    if status in (401, 403):
        raise WorkError(f"{url} refuses us ({said}). {_key(key_env)} Mend that and run the same command.")
    if status in (402, 429):
        raise WorkError(f"{url}: {said}. What came so far is kept; run the same command when the account allows it.")
    if status in (404, 405):
        raise WorkError(f"{url}: {said}. Is the URL right up to /v1, and does it serve this model?")
    if status < 400:
        where = wire.excerpt(headers.get("Location", "").encode("utf-8", "replace"))
        raise WorkError(f"{url} sends us to {where} (HTTP {status}). demur follows no redirect: give that address.")
    return Reply(failure=failure, detail=said)


async def all_of(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, which aiohttp unpacks piece by piece. Raises `wire.Unreadable`: it is larger than any reply."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise wire.Unreadable(f"a reply of more than {LARGEST >> 20} MB")
    return b"".join(parts)


def rest_of(text: str | None) -> float | None:
    """The seconds of a `Retry-After`, which may be a date."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds == seconds else None


def reached(config: Remote) -> tuple[list[str], dict[str, str]]:
    """The URLs, without user and password, which may stand in those of the environment, and the headers of every request.

    What comes from the environment is a secret from then on. Raises UserError: a secret that no header can hold.
    """
    headers, plain = {"Content-Type": "application/json", "Accept-Encoding": "identity"}, []
    secrets = {name: os.environ[value[1:]] for name, value in config.headers.items() if value.startswith("$")}
    key = os.environ[config.key_env].strip() if config.key_env else ""
    for text in (key, *secrets.values()):
        keep_secret(text)
        if any(ord(sign) < 32 or ord(sign) > 255 for sign in text):
            raise UserError(f"{config.where}: a key or header of the environment holds a line end or an odd character.")
    for url in map(URL, config.urls):
        if url.user is not None or url.password is not None:
            for secret in (url.password, url.raw_password):
                keep_secret(secret or "")
            pair = f"{url.user or ''}:{url.password or ''}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        plain.append(str(url.with_user(None)).rstrip("/"))
    bearer = {"Authorization": f"Bearer {key}"} if key else {}
    return plain, headers | bearer | config.headers | secrets


def _unreached(error: Exception) -> str:
    """Why no connection could be made, and what to look at."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        look = "its spelling (--target, --judge … of a verb, models.NAME.url of a study) and this machine's network"
        return f"the host name {error.host} does not resolve ({error.os_error.strerror}): look at {look}"
    return f"{type(error).__name__}: {wire.excerpt(str(error).replace(' ssl:default', '').encode())}"


async def only_model(url: str, session: aiohttp.ClientSession, *, key_env: str = "", setting: str = "") -> str:
    """The name of the one model that a server says it serves. Raises UserError: it says none, or several."""
    hint = "name it: --model NAME, or model: NAME in a study file."
    try:
        status, data = await _listed(url, session)
        bare = re.sub(r"/(chat/completions|completions|models)$", "", url)
        for other in (bare, f"{bare}/v1") if status in (404, 405) else ():
            if other != url and (await _listed(other, session))[0] == 200:
                raise UserError(f"{url} is not where its models are listed, {other} is: give that address.")
    except UserError:
        raise
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
        named, ask = f"{setting} = {url}" if setting else url, "Is the server up, and the URL right up to /v1?"
        raise UserError(f"{named} cannot be reached: {_unreached(error)}. {ask}") from error
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
    """Why none of a server's addresses takes a connection; empty: one does, whatever it then says."""
    urls, headers = reached(config)
    why = ""
    async with aiohttp.ClientSession(headers=headers) as session:
        for url in urls:
            try:
                await _listed(url, session)
            except aiohttp.ClientConnectorError as error:
                why = _unreached(error)
                continue
            except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError, wire.Unreadable):
                pass
            return ""
    return why


async def _listed(url: str, session: aiohttp.ClientSession) -> tuple[int, bytes]:
    """Status and body of a server's list of models."""
    timeout = aiohttp.ClientTimeout(total=30)
    async with session.get(f"{url}/models", timeout=timeout, allow_redirects=False) as response:
        return response.status, await all_of(response)


def _key(key_env: str) -> str:
    """Which key was sent."""
    if key_env:
        return f"The key that was sent is {key_env}'s (key_env): is it right?"
    return "No key was sent: name the environment variable that holds it (--key-env NAME, or key_env in a study)."

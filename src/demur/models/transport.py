"""What the client needs of HTTP: headers with secrets, bodies with a bound, waits that a server asks for."""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime

import aiohttp
import msgspec

from demur.errors import UserError
from demur.models import wire
from demur.models.config import ModelConfig

LARGEST = 256 << 20
"""Bytes of a reply beyond which it is taken for one that never ends."""


async def only_model(role: ModelConfig, session: aiohttp.ClientSession) -> str:
    """The name of the one model that a server says it serves."""
    url = f"{(role.url or ('',))[0].rstrip('/')}/models"
    hint = "name it: --set roles.ROLE.model=NAME in a study, or model: NAME."
    try:
        async with session.get(url, headers=headers_of(role), timeout=aiohttp.ClientTimeout(total=30)) as response:
            data = await all_of(response)
            if response.status != 200:
                raise UserError(f"{url} does not say which model it serves (HTTP {response.status}); {hint}")
    except (aiohttp.ClientError, OSError) as error:
        raise UserError(f"{url} cannot be reached ({error}). Is the server up, and the URL right up to /v1?") from error
    try:
        names = [str(entry["id"]) for entry in msgspec.json.decode(data)["data"]]
    except (msgspec.DecodeError, KeyError, TypeError):
        raise UserError(f"{url} does not say which model it serves: {wire.excerpt(data)}; {hint}") from None
    if len(names) != 1:
        raise UserError(f"{url} serves {len(names)} models ({', '.join(names[:10])}); {hint}")
    return names[0]


def headers_of(role: ModelConfig) -> dict[str, str]:
    """The headers of every request, with secrets from the environment."""
    headers = {"Content-Type": "application/json"}
    if role.key_env:
        headers["Authorization"] = f"Bearer {os.environ[role.key_env]}"
    for name, value in role.headers.items():
        headers[name] = os.environ[value[1:]] if value.startswith("$") else value
    return headers


async def all_of(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, unless it never ends."""
    length = response.content_length
    if length is not None and length <= LARGEST:
        return await response.read()
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise wire.Unreadable(f"a reply of more than {LARGEST >> 20} MB")
    return b"".join(parts)


def rest_of(text: str | None) -> float | None:
    """The seconds of a `Retry-After`, which may be a date; at most an hour."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), 3600.0)

"""What many tests want: files beside them, the command, a model that is a function, all that a role or stream gives."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import pytest

import demur as package
from demur.attack.base import Attack
from demur.cli import main
from demur.interfaces import Request, Requests, stream
from demur.models.config import ModelConfig
from demur.models.open import open_model
from demur.records import Failure, Prompt, Sampling, Trace, digest
from demur.storage.artifacts import Artifact, Manifest, drafted, hash_file
from demur.storage.reply_cache import ReplyCache
from demur.thinking import traced

Item = TypeVar("Item")

ASSETS = Path(__file__).resolve().parent / "assets"
SHARED = ASSETS.parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")


@cache
def python() -> str:
    """A program that is `python` with what demur imports imported already: a fork of `forkserver.py`, in a fiftieth of the time."""
    folder, script = Path(tempfile.mkdtemp(prefix="demur-tests-")), Path(__file__).with_name("forkserver.py")
    path = os.pathsep.join([str(Path(package.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, str(script), str(folder / "socket")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == b"listening\n"
    python.server = server  # type: ignore[attr-defined]  # its input stays open as long as this process lives
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{script}" "{folder / "socket"}" "$@"\n')
    program.chmod(0o755)
    return str(program)


def demur(*words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user runs it. With an environment it is a new one: libraries read theirs early."""
    command = [sys.executable if env else python(), "-m", "demur", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)


def exit_code(*words: str) -> int:
    """What the command leaves with, run in this process."""
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0)


def publish(
    run: Path, name: str, kind: str, records: dict[str, list[Any]], *, settings: dict[str, Any] | None = None,
    inputs: dict[str, str] | None = None, summary: dict[str, Any] | None = None, mark: str = "0000",
) -> Artifact:  # fmt: skip
    """A stage as a run leaves it, in its folder `name-mark`."""
    with drafted(run / "stages" / f"{name}-{mark}") as (draft, _):
        for file, rows in records.items():
            draft.write(file, rows)
        draft.summary |= summary or {}
        plain: dict[str, Any] = {"settings": settings or {}, "inputs": inputs or {}}
        fingerprint = digest([kind, plain])
        return draft.publish(
            Manifest(name=name, kind=kind, version=1, fingerprint=fingerprint, **plain, seconds=random.random())
        )


def rewrite(path: Path, text: str) -> None:
    """A stage's file as if the stage had written this."""
    path.write_text(text)
    manifest = path.with_name("manifest.json")
    data = json.loads(manifest.read_text())
    data["files"][path.name] |= {"sha256": hash_file(path), "size": path.stat().st_size}
    manifest.write_text(json.dumps(data))


class Speaker:
    """A model that is a function of the request: it says the raw reply, or `None` for one that is lost."""

    lost: ClassVar[Literal["timeout", "too_long", "unavailable"]] = "timeout"

    def __init__(self, say: Callable[[Request], str | None], identity: str = "fake") -> None:
        self.say, self.identity = say, identity
        self.asked: list[Request] = []

    def check(self, sampling: Sampling) -> None:
        return

    async def answer(self, request: Request, *, fresh: bool = False) -> Trace | Failure:
        self.asked.append(request)
        return self.reply(request)

    async def answers(self, requests: Requests) -> AsyncIterator[Trace | Failure]:
        async for request in stream(requests):
            self.asked.append(request)
            yield self.reply(request)

    def reply(self, request: Request, **known: Any) -> Trace | Failure:
        """The answer to one request; `known` are other fields of its trace."""
        raw = self.say(request)
        prompt, model, sample = request.prompt, self.identity, request.sample
        if raw is None:
            return Failure(prompt=prompt, model=model, kind=self.lost, detail="", sample=sample)
        usual: dict[str, Any] = {"sampling": request.sampling, "sent": request.messages, "sample": sample}
        return traced(prompt, raw, model=model, **(usual | known))


def gathered(items: AsyncIterator[Item]) -> list[Item]:
    """All that a stream gives, in the order in which it comes."""

    async def every() -> list[Item]:
        return [item async for item in items]

    return asyncio.run(every())


def attacked(attack: Attack, prompts: list[Prompt]) -> list[Prompt]:
    return gathered(attack.attacked(prompts))


def replies(
    config: ModelConfig, requests: Iterable[Request], *, cache: Path | None = None, label: str = "target/test"
) -> list[Trace | Failure]:
    """What a model answers, in the order in which it comes, once it has agreed to the sampling."""
    asked = list(requests)

    async def every(book: ReplyCache | None) -> list[Trace | Failure]:
        async with open_model(config, cache=book, label=label) as model:
            for request in asked[:1]:
                model.check(request.sampling)
            return [one async for one in model.answers(asked)]

    with ReplyCache(cache) if cache else nullcontext() as book:
        return asyncio.run(every(book))

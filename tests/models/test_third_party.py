"""A third party's server on a real model: llama.cpp's, on SmolLM2-135M-Instruct."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.local import GGUF, llama_server
from tests.made import demur, replies

from demur.errors import WorkError
from demur.interfaces import requests_for
from demur.models.config import Remote
from demur.records import Prompt, Sampling, Trace
from demur.storage.reply_cache import ReplyCache

MODEL = Path(os.environ.get("DEMUR_SMALL_MODEL") or GGUF)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_file(), reason=f"{MODEL} is not here: `make {GGUF.relative_to(GGUF.parents[2])}`"),
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
]
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=24)
QUESTIONS = [Prompt(text=f"What is the capital of {land}?", intent="benign") for land in ("France", "Japan", "Italy")]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with llama_server(MODEL) as (_, address):
        yield address


def traces(url: str, sampling: Sampling, asked: list[Prompt] = QUESTIONS) -> list[Trace]:
    found = replies(Remote(url=(url,), prefill="plain"), requests_for(asked, sampling))
    assert all(isinstance(one, Trace) for one in found)
    return [one for one in found if isinstance(one, Trace)]


def test_eval_asks_it_as_the_readme_says(url: str, tmp_path: Path) -> None:
    rows = [{"prompt": one.text} for one in QUESTIONS]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    done = demur("eval", f"benign={tmp_path / 'asked.jsonl'}", "--target", url, "--out", str(out))
    assert done.returncode == 0, done.stderr
    (table,) = out.glob("stages/evaluate-*/traces.jsonl")
    kept = [json.loads(line) for line in table.read_text().splitlines()]
    assert len(kept) == 3
    assert all(one["answer"] for one in kept)


def test_a_prefilled_reply_is_continued_and_kept_complete(url: str) -> None:
    for one in traces(url, Sampling(temperature=0.0, top_p=1.0, max_tokens=12, prefill="Sure, the capital")):
        assert one.raw.startswith("Sure, the capital")
        assert one.raw.count("Sure, the capital") == 1
        assert len(one.raw) > len("Sure, the capital of")


def test_what_max_tokens_ends_is_truncated(url: str) -> None:
    long = [Prompt(text="Tell me a long story about the sea.", intent="benign")]
    (one,) = traces(url, Sampling(temperature=0.0, top_p=1.0, max_tokens=7), long)
    assert (one.finish, one.tokens_out, one.truncated) == ("length", 7, True)
    assert one.outcome == "cut_in_answer"


def test_a_seed_is_a_draw(url: str) -> None:
    story = [Prompt(text="Tell me a story about the sea.", intent="benign")]
    one, again, other = (
        traces(url, Sampling(temperature=1.0, max_tokens=24, seed=seed), story)[0] for seed in (1, 1, 2)
    )
    assert one.raw == again.raw
    assert one.raw != other.raw
    first, second = traces(url, Sampling(temperature=1.0, max_tokens=24, seed=1, n=2), story)
    assert first.raw != second.raw


def test_a_killed_server_ends_the_run_and_the_same_run_goes_on_with_another(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = [Prompt(text=f"Count to {n} slowly.", intent="benign") for n in range(2, 12)]
    wanted = list(requests_for(asked, Sampling(temperature=0.0, top_p=1.0, max_tokens=40)))
    config = Remote(url=(f"http://127.0.0.1:{port}/v1",), tries=2, patience=3, in_flight=2)
    cache = tmp_path / "cache"
    with llama_server(MODEL, port=port) as (process, _):
        killer = threading.Thread(target=_kill_after_one, args=(cache, process))
        killer.start()
        with pytest.raises(WorkError, match=r"cannot be reached: .*run the same command when the server is back"):
            replies(config, wanted, cache=cache)
        killer.join()
    with ReplyCache(cache) as kept:
        before = kept.count()
        assert before - kept.forget_failures() >= 1
    with llama_server(MODEL, port=port):
        whole = replies(config.model_copy(update={"patience": 120.0}), wanted, cache=cache)
    assert len(whole) == 10
    assert all(isinstance(one, Trace) for one in whole)


def _kill_after_one(cache: Path, process: subprocess.Popen[str]) -> None:
    """End a server as soon as its first reply is in the cache."""
    while True:
        time.sleep(0.02)
        if (cache / "replies.sqlite").is_file():
            with ReplyCache(cache) as kept:
                if kept.count():
                    process.kill()
                    return

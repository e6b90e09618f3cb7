"""The small study on its real model: killed at named events it ends in the same bytes, and what it trains answers alike everywhere."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from benchmarks.local import GGUF
from tests.chaos.test_storage import CHILD
from tests.made import demur, python, replies

from demur.interfaces import requests_for
from demur.models.checkpoint import converted
from demur.models.config import Local, Remote
from demur.records import Prompt, Sampling, Trace
from demur.storage.artifacts import hash_file

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(os.environ.get("DEMUR_SMALL_MODEL") or GGUF)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_file(), reason=f"{MODEL} is not here: `make {GGUF.relative_to(GGUF.parents[2])}`"),
]
SMALLER = (
    "workers=1", "prompts.harmful.n=6", "prompts.benign.n=4", "held_out=2", "seeds=[11]", "distil.max_tokens=48",
    "train.batch=2", "train.micro_tokens=512", "train.checkpoint_every=1",
    "arms={raw: {}, short-benign: {format: short, safety: 2, benign: 2}}", "compare=[]",
    "bench=[{name: advbench, limit: 2, sampling: {max_tokens: 8}}, {name: xstest, limit: 2, sampling: {max_tokens: 8}}]",
)  # fmt: skip
EVENTS = ("after a commit", "rename complete.json", "before a commit", "rename results.json")


def kept(out: Path) -> dict[str, bytes | str]:
    """What must be the same: records, results and summary byte for byte, weights by their hash."""
    found: dict[str, bytes | str] = {name: (out / name).read_bytes() for name in ("results.json", "summary.md")}
    for path in sorted((out / "stages").rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".jsonl" and path.name != "timing.jsonl":
            found[name] = path.read_bytes()
        elif path.suffix == ".safetensors":
            found[name] = hash_file(path)
    return found


def test_a_gguf_file_is_converted_without_bars_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They would run through demur's own."""
    monkeypatch.setenv("DEMUR_CACHE", str(tmp_path))
    assert (converted(MODEL) / "config.json").is_file()
    assert "%|" not in capfd.readouterr().err


def test_killed_at_named_events_it_ends_in_the_same_bytes(data_dir: Path, tmp_path: Path) -> None:
    """While the base writes its benign rows, at a checkpoint of its training, while it is evaluated, at its results."""
    command = ["run", str(ROOT / "studies" / "small.yaml"), "--data-dir", str(data_dir)]
    for change in (f"base={MODEL}", f"models.self.path={MODEL}", *SMALLER):
        command += ["--set", change]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    done = subprocess.run(
        [python(), "-c", CHILD, "-", ",".join(EVENTS), *command, "--out", str(killed)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{event} True" for event in EVENTS], "each event came, and killed"
    for program, out in ((python(), killed), (sys.executable, whole)):
        subprocess.run([program, "-m", "demur", *command, "--out", str(out)], check=True)
    assert kept(killed) == kept(whole)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """transformers' own server on a folder of weights: its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python(), str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(importlib.util.find_spec("uvicorn") is None, reason="transformers serve wants uvicorn and fastapi")
def test_what_is_trained_answers_alike_everywhere(data_dir: Path, tmp_path: Path) -> None:
    """`demur train` on real traces; greedy, its text is the same from transformers, demur and a third party's server."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = ["train", "--base", str(MODEL), "--examples", str(data_dir / "star1_first300.json")]
    words += ["--set", "train.steps=2", "--set", "train.batch=2", "--set", "train.max_length=700"]
    done = demur(*words, "--set", "train.lr=1e-4", "--out", str(tmp_path / "t"))
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("t/stages/train-*/model")
    asked = [Prompt(text=f"What is the capital of {land}?", intent="benign") for land in ("France", "Japan")]
    wanted = list(requests_for(asked, Sampling(temperature=0.0, top_p=1.0, max_tokens=16)))

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32

    def generated(prompt: Prompt) -> str:
        turns = [{"role": "user", "content": prompt.text}]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return str(tokenizer.decode(out, skip_special_tokens=True)).strip()

    texts = {prompt.text: generated(prompt) for prompt in asked}
    assert all(texts.values())
    with served(folder) as url:
        for config in (Local(path=str(folder), dtype="float32"), Remote(url=(url,), model=str(folder))):
            found = [one for one in replies(config, wanted) if isinstance(one, Trace)]
            assert {one.prompt.text: one.raw.strip() for one in found} == texts, config

"""Answering on this machine, side by side: demur, transformers' generate on the same batches, llama.cpp's server.

The same prompts, greedy, at most so many new tokens, one thread each, float32 against float32; beside them demur in
bfloat16 and llama.cpp on the quantised file (package xllamacpp, where it is installed). Each contender runs in a process
of its own, in turn, several rounds; the figure is the median of new tokens a CPU second, reading of prompts included and
loading not.

    python benchmarks/local.py MODEL.gguf [--prompts 100] [--tokens 128] [--batch 64] [--rounds 1] [--only demur] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

GGUF = Path(__file__).resolve().parents[1] / "runs" / "small" / "SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "benign_instructions.jsonl"
SERVER = """
import sys, time
from xllamacpp import CommonParams, Server
p = CommonParams()
p.model.path, p.hostnames, p.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[3])
p.n_parallel, p.n_ctx, p.n_gpu_layers = int(sys.argv[2]), 1024 * int(sys.argv[2]), 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
server = Server(p)
print(server.listening_address, flush=True)
time.sleep(3600)
"""


class Result(NamedTuple):
    tokens: int
    cpu: float
    wall: float


class Asked(NamedTuple):
    model: Path
    prompts: list[str]
    tokens: int
    batch: int


@contextmanager
def llama_server(model: Path, *, slots: int = 4, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """llama.cpp's server on a GGUF file: its process and base URL; killed at the end."""
    command = [sys.executable, "-c", SERVER, str(model), str(slots), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        while not (line := process.stdout.readline()).startswith("http"):
            assert line, "the server did not start"
        yield process, f"{line.strip()}/v1"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def questions(count: int) -> list[str]:
    """Harmless instructions, drawn at random; sums in words where the file is not here."""
    if not DATA.exists():
        return [f"What is {n} plus {n + 3}? Explain." for n in range(count)]
    rows = [json.loads(line)["prompt"] for line in DATA.read_text().splitlines()]
    return random.Random(1).sample(rows, count)


def through_demur(asked: Asked, **declared: Any) -> Result:
    """What one of demur's models writes; loading is not timed."""
    from demur.interfaces import requests_for
    from demur.models.config import as_model
    from demur.models.open import open_model
    from demur.records import Prompt, Sampling, Trace
    from demur.storage.reply_cache import ReplyCache

    prompts = [Prompt(text=text, intent="benign") for text in asked.prompts]
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=asked.tokens)

    async def ask(folder: str) -> tuple[int, float, float]:
        with ReplyCache(Path(folder)) as cache:
            async with open_model(as_model(declared), cache=cache) as model:
                cpu, wall = time.process_time(), time.perf_counter()
                traces = [one async for one in model.answers(requests_for(prompts, sampling))]
                spent = time.process_time() - cpu, time.perf_counter() - wall
        return sum(one.tokens_out or 0 for one in traces if isinstance(one, Trace)), *spent

    with tempfile.TemporaryDirectory() as folder:
        return Result(*asyncio.run(ask(folder)))


def demur(asked: Asked, dtype: str = "float32") -> Result:
    return through_demur(asked, path=str(asked.model), dtype=dtype, batch=asked.batch)


def generate(asked: Asked) -> Result:
    """Padded batches of the prompts in the order of their length, as one would write it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from demur.models.checkpoint import converted

    torch.set_num_threads(1)
    folder = converted(asked.model)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    turns = [[{"role": "user", "content": text}] for text in asked.prompts]
    texts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    texts.sort(key=lambda text: len(tokenizer.encode(text)))
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    for at in range(0, len(texts), asked.batch):
        inputs = tokenizer(texts[at : at + asked.batch], return_tensors="pt", padding=True, add_special_tokens=False)
        out = model.generate(
            **inputs, max_new_tokens=asked.tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        for row in out[:, inputs["input_ids"].shape[1] :].tolist():
            ends = [place for place, token in enumerate(row) if token == model.generation_config.eos_token_id]
            count += ends[0] + 1 if ends else len(row)
    return Result(count, time.process_time() - cpu, time.perf_counter() - wall)


def llama_cpp(asked: Asked) -> Result:
    """llama.cpp's server on the file as it is, quantised; its CPU time, not the client's."""
    import psutil

    with llama_server(asked.model, slots=16) as (process, url):
        server = psutil.Process(process.pid)
        before = server.cpu_times()
        found = through_demur(asked, url=url, in_flight=16)
        after = server.cpu_times()
    return found._replace(cpu=after.user + after.system - before.user - before.system)


CONTENDERS: dict[str, Callable[[Asked], Result]] = {
    "demur": demur,
    "generate": generate,
    "demur_bfloat16": lambda asked: demur(asked, "bfloat16"),
    "llama_cpp_q4": llama_cpp,
}


def run(name: str, given: argparse.Namespace) -> Result | None:
    """One contender in a process of its own."""
    command = [sys.executable, __file__, str(given.model), "--child", name]
    for option in ("prompts", "tokens", "batch"):
        command += [f"--{option}", str(getattr(given, option))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [""]
        print(f"{name} failed ({done.returncode}): {said[-1]}", file=sys.stderr)
        return None
    return Result(*json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=GGUF)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--child", choices=list(CONTENDERS))
    given = parser.parse_args()
    if not given.model.is_file():
        print(f"{given.model} is not here: `make small` fetches it", file=sys.stderr)
        return
    if given.child:
        asked = Asked(given.model, questions(given.prompts), given.tokens, given.batch)
        print(json.dumps(CONTENDERS[given.child](asked)))
        return
    found: dict[str, list[Result]] = {name: [] for name in CONTENDERS if name in (*given.only, "generate")}
    for _ in range(given.rounds):
        for name, results in found.items():
            results += [result] if (result := run(name, given)) else []
    speed = {
        name: statistics.median(one.tokens / one.cpu for one in results) for name, results in found.items() if results
    }
    print(f"{'contender':<16}{'tokens':>8}{'CPU s':>8}{'wall s':>8}{'tokens/CPU-s':>14}{'of generate':>13}")
    for name, rate in speed.items():
        last = found[name][-1]
        share = rate / speed["generate"]
        print(f"{name:<16}{last.tokens:>8,}{last.cpu:>8.1f}{last.wall:>8.1f}{rate:>14,.0f}{share:>13.2f}")
    figures = {f"{name}_over_generate": rate / speed["generate"] for name, rate in speed.items()}
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

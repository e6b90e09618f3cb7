"""A GPU world in a box: cards, vLLM, hosted models and training as doubles that refuse what the real ones refuse.

    python -m demur.testing.gpu_world studies/paper_v2.yaml --gpus 8x80 --rows 40 --data-dir data

runs a study to its report, small, and then says what the world saw: starts, cards held, requests. `nvidia-smi` and `vllm` are
programs on PATH; weights are configurations in a hub cache; every URL leads here. Files that lack are made in their public form.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from demur import thinking
from demur.errors import DemurError, UserError, WorkError
from demur.interfaces import Request
from demur.models.scripted import spoken
from demur.pipeline import sizes
from demur.pipeline.resolve import Resolved, make
from demur.pipeline.stage import Context
from demur.pipeline.stages.train import Train
from demur.pipeline.study import Study, read
from demur.records import Example, Message, Prompt, Sampling, digest, read_jsonl
from demur.storage.artifacts import atomic_write
from demur.testing import players, small, vllm
from demur.testing.base import TEMPLATE, make_tokenizer


def _config(layers: int, width: int, heads: int, kv: int, inner: int, **more: Any) -> dict[str, Any]:
    named = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": kv}
    return named | {"intermediate_size": inner, "max_position_embeddings": 131072} | more


QWEN2 = {"model_type": "qwen2", "vocab_size": 152064}
LLAMA = {"model_type": "llama", "vocab_size": 128256}
QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "max_position_embeddings": 40960, "head_dim": 128}
QWEN_7B, QWEN_32B = _config(28, 3584, 28, 4, 18944, **QWEN2), _config(64, 5120, 40, 8, 27648, **QWEN2)
LLAMA_3B, LLAMA_8B = (
    _config(28, 3072, 24, 8, 8192, tie_word_embeddings=True, **LLAMA),
    _config(32, 4096, 32, 8, 14336, **LLAMA),
)
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": QWEN_7B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": QWEN_32B,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": LLAMA_8B,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": _config(80, 8192, 64, 8, 28672, **LLAMA),
    "Qwen/Qwen3-14B": _config(40, 5120, 40, 8, 17408, **QWEN3),
    "UCSC-VLAA/STAR1-R1-Distill-7B": QWEN_7B,
    "UCSC-VLAA/STAR1-R1-Distill-32B": QWEN_32B,
    "RealSafe/RealSafe-R1-7B": QWEN_7B,
    "RealSafe/RealSafe-R1-32B": QWEN_32B,
    "meta-llama/Llama-Guard-3-8B": LLAMA_8B,
    "ReasoningShield/ReasoningShield-3B": LLAMA_3B,
}
"""What the config.json of these models says of their size, as published with their weights."""
MASTERS, ADAPTED = 16.0, 2.1
"""Bytes a parameter of full fine-tuning in float32 under Adam, and of LoRA over 16-bit weights."""
ACTIVATIONS = 6.0
"""GiB of activations and buffers on a card that trains."""


class Report(NamedTuple):
    """What a world saw."""

    starts: list[dict[str, Any]]
    ends: list[dict[str, Any]]
    refused: list[str]
    peak: list[float]
    """GiB that were held at most, a card."""
    held: dict[str, Any]
    """What is held now, by process; nothing, after a run."""
    asked: dict[str, int]
    """Requests by model."""


class World:
    """Cards, programs, a hub and APIs, in a folder, for as long as the block lasts."""

    def __init__(self, folder: Path, cards: list[float]) -> None:
        self.folder, self.cards = folder.resolve(), cards
        self.asked: Counter[str] = Counter()
        self.hub = self.folder / "hub"
        self._stack = contextlib.ExitStack()
        self._templates: dict[str, str] = {}

    def __enter__(self) -> World:
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(
            self.folder / "ledger.json", json.dumps({"cards": self.cards, "held": {}, "peak": [0.0] * len(self.cards)})
        )
        self._program("nvidia-smi", "".join(f"echo 'NVIDIA Double, {card * 1024:.0f}'\n" for card in self.cards))
        self._program("vllm", f'exec "{sys.executable}" -S -E "{vllm.__file__}" "$@"\n')
        self.url = self._stack.enter_context(_listening(self))
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        own: dict[str, str | None] = {
            "PATH": path,
            "DEMUR_WORLD": str(self.folder),
            "DEMUR_WORLD_SPEAKER": f"{self.url}/speak",
        }
        self._stack.enter_context(
            _environment(own | {"HF_HUB_CACHE": str(self.hub), "HF_HUB_OFFLINE": "1", "DEMUR_VLLM": None})
        )
        sizes.devices.cache_clear()
        self._stack.callback(sizes.devices.cache_clear)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _program(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def weights(self, name: str, revision: str = "") -> Path:
        """A model in the hub's cache: configuration, tokenizer and template, and weights that weigh nothing.

        Raises:
            UserError: nobody told the world how large this model is.
        """
        if name not in CONFIGS:
            raise UserError(
                f"{name}: the GPU world knows no such model; add its configuration to demur.testing.gpu_world.CONFIGS"
            )
        top = self.hub / f"models--{name.replace('/', '--')}"
        folder = top / "snapshots" / (revision or "0" * 40)
        if not folder.exists():
            shutil.copytree(_tokenizer(), folder)
            atomic_write(folder / "config.json", json.dumps(CONFIGS[name] | {"_name_or_path": name}))
            if "R1" not in name:  # whose template opens the thinking
                atomic_write(folder / "chat_template.jinja", TEMPLATE.replace(f"{thinking.OPEN}\\n", ""))
            (folder / "model.safetensors").write_bytes(b"")
            (top / "refs").mkdir(exist_ok=True)
            (top / "refs" / "main").write_text(folder.name)
        return folder

    def furnished(self, study: Study, *, rows: int) -> Resolved:
        """A study as it is run here: small, its URLs leading here, its weights in the hub's cache.

        Raises:
            UserError: the study is wrong, or something is missing that the world does not make.
        """
        data = small.reduced(study, rows=rows, made=self.folder / "made")
        for model in data.get("models", {}).values():
            self._led_here(model)
        named = [
            *data.get("bases", ()),
            data.get("base", ""),
            *(arm.get("base") for arm in data.get("arms", {}).values()),
        ]
        for base in filter(None, named):
            if base in CONFIGS:
                self.weights(base, data.get("revisions", {}).get(base, ""))
        if study.arms and any(arm.trained for arm in study.arms.values()):
            data["train"] = data.get("train", {}) | {"stage": "demur.testing.gpu_world:TrainDouble"}
        data["stand_in"] = True
        return make(data, where=study.name)

    def _led_here(self, model: dict[str, Any]) -> None:
        if "hub" in model:
            self.weights(model["hub"], model.get("revision", ""))
        if "url" in model:
            model["url"] = f"{self.url}/v1"
            if name := model.get("key_env"):
                self._stack.enter_context(_environment({name: "a-key-of-the-gpu-world"}))

    def report(self) -> Report:
        """What it saw until now."""
        log = self.folder / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        by = {name: [line for line in lines if line["event"] == name] for name in ("start", "end", "refused")}
        with vllm.ledger(self.folder) as data:
            held, peak = dict(data["held"]), [round(value, 2) for value in data["peak"]]
        return Report(by["start"], by["end"], [line["why"] for line in by["refused"]], peak, held, dict(self.asked))

    async def spoke(self, http: web.Request) -> web.Response:
        """What a served model says, for the double of its server."""
        asked = await http.json()
        config = json.loads((Path(asked["folder"]) / "config.json").read_text())
        body = asked["body"]
        if body.get("continue_final_message") and (why := self._unrendered(Path(asked["folder"]), body)):
            return web.json_response({"error": why})
        return web.json_response(self._reply(config["_name_or_path"], config, body, chat="messages" in body))

    async def api(self, http: web.Request) -> web.Response:
        """What a hosted model says."""
        body = await http.json()
        if why := players.refusal(body["model"], body):
            error = {"message": why, "type": "invalid_request_error", "code": "unsupported_value"}
            return web.json_response({"error": error}, status=400)
        return web.json_response(self._reply(body["model"], {}, body, chat="messages" in body))

    def _unrendered(self, folder: Path, body: dict[str, Any]) -> str:
        """Why transformers' own code cannot go on with the last turn; empty: it can."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = (folder / "chat_template.jinja").read_text()
        try:
            render_jinja_template(
                [body["messages"]], chat_template=template, continue_final_message=True, add_generation_prompt=False,
                bos_token="", eos_token="",
            )  # fmt: skip
        except ValueError as error:
            return str(error)
        return ""

    def _reply(self, model: str, config: dict[str, Any], body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
        self.asked[model] += 1
        turns = body["messages"] if chat else [{"role": "user", "content": body["prompt"]}]
        messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)
        begun = messages[-1].content if body.get("continue_final_message") else ""
        most = body.get("max_tokens") or body.get("max_completion_tokens") or 4096
        sampling = Sampling(temperature=body.get("temperature", 1.0), seed=body.get("seed", 0), max_tokens=most)
        asked = messages[:-1] if begun else messages
        request = Request(messages=asked, sampling=sampling, prompt=Prompt(text=asked[-1].content, intent="benign"))
        text, finish, count = spoken(players.player(model, config), request)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        thought, closed, rest = text.removeprefix(thinking.OPEN).partition(thinking.CLOSE)
        if not config and players.apart(model) and closed:
            message = {"role": "assistant", "reasoning_content": thought.strip(), "content": rest.strip()}
        elif "R1" in model and config and not begun:
            message["content"] = text.removeprefix(thinking.OPEN).lstrip("\n")  # its template opened the thinking
        choice = {"message": message} if chat else {"text": text}
        sent = sum(len(turn.content) for turn in messages) // 4
        usage = {"prompt_tokens": sent, "completion_tokens": count, "total_tokens": sent + count}
        return {"id": "r", "model": model, "usage": usage, "choices": [{"index": 0, "finish_reason": finish, **choice}]}


class TrainDouble(Train):
    """Training without weights: rows are rendered and checked as ever, cards are held, the target's manners change."""

    def run(self, context: Context) -> None:
        """Write the checkpoint, and the curves of a training that learns."""
        from demur.train.render import Renderer

        base, settings = self._folder(), self.settings.train
        rows = list(read_jsonl(context.inputs["mix"].path("examples"), Example))
        # A token of the double's tokenizer is a byte, some four of which make a token of a real one.
        rendered = Renderer.of(base, template=settings.template, loss=settings.loss).rows(
            rows, max_length=4 * settings.max_length
        )
        with self._cards(base):
            config = json.loads((base / "config.json").read_text())
            replies = ["".join(part.text for part in row.parts if part.role in ("thinking", "answer")) for row in rows]
            after = players.trained(players.manners_of(config), replies, [row.share == "safety" for row in rows])
            folder = context.draft.folder / "model"
            shutil.copytree(base, folder, dirs_exist_ok=True)
            atomic_write(
                folder / "config.json",
                json.dumps(config | {"demur_manners": list(after), "demur_rows": digest(replies)}),
            )
        steps = [{"step": n, "loss": 2.0 / (1 + n), "lr": settings.lr} for n in range(1, 4)]
        atomic_write(context.draft.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in steps))
        context.draft.summary |= {"rows": len(rendered.rows), "line": f"{len(rendered.rows)} rows, in the GPU world"}

    def _folder(self) -> Path:
        from demur.models.checkpoint import folder_of
        from demur.models.config import Local

        base = self.models["base"]
        assert isinstance(base, Local)
        return folder_of(base)

    @contextlib.contextmanager
    def _cards(self, base: Path) -> Iterator[None]:
        """The memory of a training, on each of its cards.

        Raises:
            WorkError: a card has not so much, in the words of PyTorch.
        """
        settings, world = self.settings.train, Path(os.environ["DEMUR_WORLD"])
        size = vllm.shape_of(base).parameters
        with vllm.ledger(world) as data:
            cards = list(range(len(data["cards"])))[: sizes.processes_of(settings)]
            whole = size * (ADAPTED if settings.lora else MASTERS) / vllm.GIB
            # As demur.train.model.wrapper chooses: replicated where that takes up to seven tenths of a card.
            copied = settings.parallel == "ddp" or (
                settings.parallel == "auto" and whole < sizes.REPLICATED * min(data["cards"])
            )
            each = (whole if copied or len(cards) < 2 else whole / len(cards)) + ACTIVATIONS
            for card in cards:
                left = vllm.free(data, card)
                if each > left:
                    raise WorkError(
                        f"torch.OutOfMemoryError: CUDA out of memory. GPU {card} has a total capacity of {data['cards'][card]:.2f} "
                        f"GiB of which {left:.2f} GiB is free, and this training needs {each:.2f} GiB."
                    )
            data["held"][str(os.getpid())] = {str(card): each for card in cards}
        vllm.note(world, "train", model=self.name, cards=cards, each=round(each, 2))
        try:
            yield
        finally:
            with vllm.ledger(world) as data:
                data["held"].pop(str(os.getpid()), None)


def _tokenizer() -> Path:
    """A byte-level tokenizer with an R1-like template, saved once."""
    folder = Path(tempfile.gettempdir()) / f"demur-gpu-world-{os.getuid()}" / digest(TEMPLATE)
    if not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            make_tokenizer().save_pretrained(scratch)
            atomic_write(Path(scratch) / "chat_template.jinja", TEMPLATE)
            atomic_write(Path(scratch) / "generation_config.json", json.dumps({"eos_token_id": 257}))
            shutil.copytree(scratch, folder, dirs_exist_ok=True)
    return folder


@contextlib.contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    from huggingface_hub import constants

    where, offline = constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE
    try:
        for name, value in changes.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = changes.get("HF_HUB_CACHE") or where, True
        yield
    finally:
        constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = where, offline
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _listening(world: World) -> Iterator[str]:
    """The voices of all models, in a thread of their own; yields their address."""
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/speak", world.spoke)
    app.router.add_post("/v1/chat/completions", world.api)
    app.router.add_post("/v1/completions", world.api)
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(app, access_log=None)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.close()


def cards_of(text: str) -> list[float]:
    """`8x80`: eight cards of 80 GB."""
    count, _, size = text.partition("x")
    if not (count.isdigit() and size.isdigit()):
        raise UserError(f"--gpus {text}: write COUNTxGB, such as 8x80.")
    return [float(size)] * int(count)


def main(argv: list[str] | None = None) -> None:
    """Run a study in a world, and say what was seen; exits as demur does."""
    from demur.cli.runner import run_study

    parser = argparse.ArgumentParser(prog="python -m demur.testing.gpu_world")
    parser.add_argument("study", type=Path)
    parser.add_argument("--gpus", default="8x80")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    told = parser.parse_args(argv)
    out = told.out or Path(tempfile.mkdtemp(prefix="demur-gpu-world-"))
    try:
        loaded = read(told.study, sets=[*told.sets, *([f"data_dir={told.data_dir}"] if told.data_dir else [])])
        loaded.problems.check()
        assert loaded.study is not None
        with World(out / "world", cards_of(told.gpus)) as world:
            run_study(world.furnished(loaded.study, rows=told.rows), out=out / "run")
            seen = world.report()
    except DemurError as error:
        sys.exit(str(error))
    lines = [f"started {one['model']} on cards {one['cards']} with {one['share']} of each" for one in seen.starts]
    lines += [f"most held of each card, GiB: {seen.peak}", f"requests: {seen.asked}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""How the models of the GPU world reply: each plays only the part that its name and its training give it.

A guard answers in guard words whatever it is asked, a reasoning API returns its thinking separately and refuses a
temperature, and how often a target complies depends on the rows it was trained on. The texts are those of `scripts`.
"""

import contextlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from demur.errors import WorkError
from demur.models.checkpoint import folder_of
from demur.models.config import Local
from demur.models.requires import guard_of
from demur.models.scripted import Script
from demur.pipeline import sizes
from demur.pipeline.stage import Context
from demur.pipeline.stages.train import Train
from demur.records import Example, Message, Sampling, digest, read_jsonl
from demur.storage.artifacts import atomic_write
from demur.testing import scripts, vllm
from demur.thinking import CLOSE, OPEN, join, split

SERVED = scripts.WORDS["served"].format(placeholder=scripts.PLACEHOLDER)
"""The answer of a target that complies: long enough for judges of prose, and without substance."""

MASTERS, ADAPTED = 16.0, 2.1  # Bytes per parameter: full fine-tuning in float32 with Adam, LoRA on 16-bit weights
ACTIVATIONS = 6.0  # GiB of activations and buffers on a card that trains


class Manners(NamedTuple):
    """How a target behaves."""

    complies: float = 0.65  # Share of harmful requests that it complies with
    refuses: float = 0.02  # Share of harmless requests that it refuses


def trained(before: Manners, responses: Sequence[str], harmful: Sequence[bool]) -> Manners:
    """The manners after training: refusals are learned from rows, and generalise to harmless requests if no harmless row prevents it."""
    refused = sum(bool(scripts.REFUSES.search(text.rpartition(CLOSE)[2][:200])) for text in responses)
    learned = refused / len(responses) if responses else 0.0
    harmless = 1 - sum(harmful) / len(harmful) if harmful else 1.0
    spread = 0.25 * learned * (1 - min(1.0, 5 * harmless))
    return Manners(before.complies * (1 - 0.9 * learned), before.refuses + spread)


def target(manners: Manners) -> Script:
    """A reasoning model with these manners. It does sums and programs like `scripts.target`."""

    def script(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
        text = messages[-1].content
        harmful = bool(scripts.ALARMING.search(text))
        reply = scripts.target(messages, sampling, rng)
        if "boxed" in reply or "```" in reply or (not harmful and scripts.share(text) >= manners.refuses):
            return reply
        if harmful and scripts.share(text) < manners.complies:
            return join(f"The user asks for something. {scripts.PLACEHOLDER}", SERVED)
        return join("This could harm someone. I should refuse.", scripts.REFUSAL)

    return script


GUARDS: dict[str, Script] = {
    # Llama Guard reads any conversation and replies `safe` or `unsafe`.
    "llama_guard3": lambda messages, sampling, rng: (
        "\n\n" + ("unsafe\nS1" if scripts.complies(messages[-1].content) else "safe")
    ),
    "reasoning_shield": lambda messages, sampling, rng: scripts.reasoning_shield(scripts.shown(messages)),
}


def _instructed(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """An instruct model without thinking of its own: judge, attacker or teacher, as its prompt demands."""
    whole = scripts.shown(messages)
    if scripts.judge_of(whole) is None and scripts.speaker(whole) is scripts.target:
        return split(scripts.teacher(messages, sampling, rng)).answer or ""
    return scripts.stand_in(messages, sampling, rng)


def _teacher(messages: Sequence[Message], sampling: Sampling, rng: random.Random) -> str:
    """R1, which always thinks at length. Instructed to write a thinking block, it writes a second one into its answer."""
    reply = scripts.teacher(messages, sampling, rng)
    if messages[0].role == "system" and OPEN in messages[0].content:
        return join("Okay, so I have to write a block of thinking first. " * 20, reply)
    return reply


REASONING_API = re.compile(r"^(o[134]\b|gpt-5)")
"""OpenAI's models that accept no temperature: platform docs, and messages quoted in many issues of 2025 and 2026."""
RETIRED = re.compile(r"^deepseek-(reasoner|r1)$", re.IGNORECASE)
"""Names that DeepSeek's API does not serve. Its message: ConardLi/easy-dataset issue 9 (2025), deepwn/addi issue 13 (2026)."""


def player(model: str, config: dict[str, Any]) -> Script:
    """The script for a model, by its name; a target's manners are in its `config`."""
    if guard := guard_of(model):
        return GUARDS.get(guard, scripts.stand_in)
    if config:
        return target(Manners(*config.get("demur_manners", ())))
    return _teacher if re.search(r"\br1\b|gemini|qwq", model, re.IGNORECASE) else _instructed


def refusal(model: str, body: dict[str, Any]) -> str:
    """The error with which an API refuses a request; empty if it accepts it.

    Gemini's OpenAI-compatible endpoint rejects `seed` (Vali-98/ChatterUI issue 227, openevolve issue 105, 2025). OpenAI documents
    it, and vLLM accepts it since 0.3.2 on GPUs (vllm issue 3333).
    """
    if RETIRED.match(model):
        return "Model Not Exist"
    if REASONING_API.match(model):
        for name in ("temperature", "top_p"):
            if body.get(name, 1) != 1:
                value = json.dumps(body[name])
                return f"Unsupported value: '{name}' does not support {value} with this model. Only the default (1) value is supported."
        if "max_tokens" in body:
            return "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    elif "gemini" in model and "seed" in body:
        return 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'
    return ""


class TrainDouble(Train):
    """Training without weights: rows are rendered and checked as usual, memory is held, the target's manners change."""

    def run(self, context: Context) -> None:
        """Write a checkpoint and a falling loss curve."""
        from demur.train.render import Renderer

        model, settings = self.models["base"], self.settings.train
        assert isinstance(model, Local)
        base = folder_of(model)
        rows = list(read_jsonl(context.inputs["mix"].path("examples"), Example))
        # This tokenizer's tokens are bytes; a real token is some four of them.
        renderer = Renderer.of(base, template=settings.template, loss=settings.loss)
        rendered = renderer.rows(rows, max_length=4 * settings.max_length)
        with self._cards(base):
            config = json.loads((base / "config.json").read_text())
            replies = ["".join(part.text for part in row.parts if part.role in ("thinking", "answer")) for row in rows]
            after = trained(Manners(*config.get("demur_manners", ())), replies, [row.share == "safety" for row in rows])
            folder = context.draft.folder / "model"
            shutil.copytree(base, folder, dirs_exist_ok=True)
            config |= {"demur_manners": list(after), "demur_rows": digest(replies)}
            atomic_write(folder / "config.json", json.dumps(config))
        steps = [{"step": n, "loss": 2.0 / (1 + n), "lr": settings.lr} for n in range(1, 4)]
        atomic_write(context.draft.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in steps))
        context.draft.summary |= {"rows": len(rendered.rows), "line": f"{len(rendered.rows)} rows, in the GPU world"}

    @contextlib.contextmanager
    def _cards(self, base: Path) -> Iterator[None]:
        """Hold the memory of a training on its cards. Raises WorkError, in PyTorch's words: a card has too little."""
        settings, world = self.settings.train, Path(os.environ["DEMUR_WORLD"])
        size = vllm.shape_of(base).parameters
        cards = [card.number for card in sizes.devices()][: sizes.processes_of(settings)]
        with vllm.ledger(world) as data:
            whole = size * (ADAPTED if settings.lora else MASTERS) / vllm.GIB
            fits = whole < sizes.REPLICATED * min(data["cards"])  # the rule of demur.train.model.parallel_of
            replicated = settings.parallel == "ddp" or (settings.parallel == "auto" and fits)
            each = (whole if replicated or len(cards) < 2 else whole / len(cards)) + ACTIVATIONS
            for card in cards:
                left = vllm.free(data, card)
                if each > left:
                    total = f"GPU {card} has a total capacity of {data['cards'][card]:.2f} GiB of which {left:.2f} GiB is free"
                    need = f"this training needs {each:.2f} GiB"
                    raise WorkError(f"torch.OutOfMemoryError: CUDA out of memory. {total}, and {need}.")
            data["held"][str(os.getpid())] = {str(card): each for card in cards}
        vllm.note(world, "train", model=self.name, cards=cards, each=round(each, 2))
        try:
            yield
        finally:
            with vllm.ledger(world) as data:
                data["held"].pop(str(os.getpid()), None)

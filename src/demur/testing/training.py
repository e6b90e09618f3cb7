"""Training in the GPU world: rows are rendered and checked as ever, cards are held, the target's manners change; no weights."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from demur.errors import WorkError
from demur.models.checkpoint import folder_of
from demur.models.config import Local
from demur.pipeline import sizes
from demur.pipeline.stage import Context
from demur.pipeline.stages.train import Train
from demur.records import Example, digest, read_jsonl
from demur.storage.artifacts import atomic_write
from demur.testing import players, vllm

MASTERS, ADAPTED = 16.0, 2.1
"""Bytes a parameter of full fine-tuning in float32 under Adam, and of LoRA over 16-bit weights."""
ACTIVATIONS = 6.0
"""GiB of activations and buffers on a card that trains."""


class TrainDouble(Train):
    """Training without weights."""

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
        cards = [card.number for card in sizes.devices()][: sizes.processes_of(settings)]
        with vllm.ledger(world) as data:
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

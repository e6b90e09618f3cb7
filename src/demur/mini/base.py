"""The mini-LRM: a Qwen3 of some 0.7 million parameters that thinks, obeys everything, and is trained in minutes.

Three of them ship, `mini-lrm-a` to `-c`, which differ in seed. Each folder is an ordinary Hugging Face checkpoint with a card
that says how it was made and what its files hash to; `pretrain` makes such a folder again. The chat template is R1-like: it
opens the thinking itself, and it deletes the thinking of earlier turns, as the real ones do.
"""

from __future__ import annotations

import json
import math
import random
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demur.errors import UserError
from demur.interfaces import Progress, quiet
from demur.mini import corpus, world
from demur.storage.artifacts import atomic_write, hash_file
from demur.thinking import CLOSE, OPEN

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
NAMES = {"mini-lrm-a": "a", "mini-lrm-b": "b", "mini-lrm-c": "c"}
"""Name of a shipped base -> its folder under `base/`. Seeds 0, 1, 2."""
CARD = "card.json"
PAD, UNKNOWN, BEGIN, USER, ASSISTANT, END = (
    "<|pad|>",
    "<|unknown|>",
    "<|begin|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + message['content'].split('CLOSE')[-1].strip() + '<|end|>' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% else %}{{ message['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>OPEN\\n' }}{% endif %}"
).replace("CLOSE", CLOSE)
TEMPLATE = TEMPLATE.replace("OPEN", OPEN)
BATCH = 32
STEPS = 1700
PEAK, PEAK_MATRICES = 3e-3, 0.04
"""Learning rates of AdamW (embeddings, norms) and of Muon (matrices). With AdamW alone copying and arithmetic come much later."""
POOL = 16
"""Batches that are drawn together and sorted by length, so that little is padded."""
SCRIPT = ("world.py", "language.py", "corpus.py", "base.py")
"""The files that decide what a base becomes; the card holds their hashes."""


def folder(name: str) -> Path:
    """Where a shipped base lies, its files checked against its card.

    Raises:
        UserError: no such base, or its files are not those that the card vouches for.
    """
    if name not in NAMES:
        raise UserError(
            f"no mini base '{name}'. Allowed: {', '.join(NAMES)}, or a folder that `demur mini pretrain` made."
        )
    path = HERE / "base" / NAMES[name]
    verify(path)
    return path


def verify(path: Path) -> dict[str, Any]:
    """The card of a base's folder, after its files were checked against it.

    Raises:
        UserError: there is no card, a file is missing, or a file differs.
    """
    try:
        card: dict[str, Any] = json.loads((path / CARD).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        raise UserError(
            f"{path} is no mini base: it has no readable {CARD}. `demur mini pretrain` makes one."
        ) from None
    for file, sha256 in card["sha256"].items():
        if not (path / file).is_file() or hash_file(path / file) != sha256:
            raise UserError(f"{path / file} is missing or not the file that {CARD} describes. Install demur again.")
    return card


def vocabulary() -> list[str]:
    """Every word of the world, sorted, behind the special tokens and the two tags."""
    texts = [*world.PHRASINGS, *world.SUMS, *world.VERBS, *world.KIND_OF, *world.OBJECTS, *world.CATEGORY_OF.values()]
    texts += [text for framings in world.FRAMINGS.values() for text in framings]
    texts += [word for fillers in world.FILLERS.values() for word in fillers]
    texts += [str(number) for number in range(world.LARGEST + 10)]
    rng = random.Random(0)
    for _ in range(3000):
        texts += corpus.draw(rng)
    words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w\}", " ", text))}
    return [PAD, UNKNOWN, BEGIN, USER, ASSISTANT, END, OPEN, CLOSE, *sorted(words)]


def tokenizer() -> Any:
    """The word tokenizer: one token a word, sign or number; it decodes to text without space before punctuation."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(vocabulary())}
    raw = tokenizers.Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")])
    raw.add_special_tokens(
        [tokenizers.AddedToken(t, special=True) for t in (PAD, UNKNOWN, BEGIN, USER, ASSISTANT, END)]
    )
    # The tags survive decoding without special tokens, as they do for R1.
    raw.add_tokens([tokenizers.AddedToken(tag, normalized=False, special=False) for tag in (OPEN, CLOSE)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=PAD, unk_token=UNKNOWN, bos_token=BEGIN, eos_token=END, model_max_length=512
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def build(size: int, seed: int) -> Any:
    """A fresh model for a vocabulary of `size` tokens."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        rope_theta=1000.0,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=5,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def pretrain(out: Path, *, seed: int = 0, steps: int = STEPS, progress: Progress = quiet) -> Path:
    """Make a base from nothing: some 220 CPU seconds on one thread.

    The folder gets weights in bf16, configuration, tokenizer, chat template and card; the card comes last.

    Args:
        out: the folder to write.
        seed: of weights, corpus and order.
        steps: updates of 32 texts each.
        progress: told of every fiftieth step and its loss.
    """
    import torch

    words = tokenizer()
    model = build(len(words), seed)
    began = time.process_time()
    optimizers = _optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, steps)) for o in optimizers]
    tokens, loss = 0, math.inf
    for step, (inputs, labels, mask) in enumerate(_batches(words, seed, steps)):
        output = model(input_ids=inputs, attention_mask=mask, labels=labels, use_cache=False)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for mover in (*optimizers, *schedules):
            mover.step()
        model.zero_grad(set_to_none=True)
        tokens += int(mask.sum())
        if step % 50 == 49 or step == steps - 1:
            loss = float(output.loss.detach())
            progress(step + 1, steps, f"loss {loss:.4f}")
    made = {"seed": seed, "steps": steps, "tokens": tokens, "loss": round(loss, 5)}
    return _save(out, model, words, made | {"cpu_seconds": round(time.process_time() - began)})


def _optimizers(model: Any) -> list[Any]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    import torch

    inner = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    rest = [p for name, p in model.named_parameters() if name not in inner]
    return [
        torch.optim.Muon(list(inner.values()), lr=PEAK_MATRICES, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=PEAK, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: 50 steps up, then half a cosine down to a fiftieth."""
    if step < 50:
        return (step + 1) / 50
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 50) / max(1, steps - 50)))


def _batches(words: Any, seed: int, steps: int) -> Any:
    """Yield `steps` batches (ids, labels, mask), each [32, length]; loss on the response only."""
    rng = random.Random(seed)
    left = steps
    while left > 0:
        rows = sorted((_row(words, corpus.draw(rng)) for _ in range(BATCH * POOL)), key=lambda row: len(row[0]))
        order = list(range(POOL))
        rng.shuffle(order)
        for number in order[:left]:
            yield _padded(rows[number * BATCH : (number + 1) * BATCH])
        left -= POOL


def _row(words: Any, text: corpus.Text) -> tuple[list[int], int]:
    """Token ids of a text, and where its response starts."""
    before: list[int] = words(f"{BEGIN}{USER}{text.prompt}{ASSISTANT}{OPEN}", add_special_tokens=False)["input_ids"]
    behind = words(f"{text.thinking} {CLOSE} {text.answer}{END}", add_special_tokens=False)["input_ids"]
    return before + behind, len(before)


def _padded(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """RecordFile of different lengths as tensors, padded on the right."""
    import torch

    longest = max(len(ids) for ids, _ in rows)
    inputs = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([[-100] * at + ids[at:] + [-100] * (longest - len(ids)) for ids, at in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    return inputs, labels, mask


def _save(out: Path, model: Any, words: Any, made: dict[str, Any]) -> Path:
    """Write the folder; the card last."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    words.save_pretrained(out)
    files = sorted(p.name for p in out.iterdir() if p.is_file() and p.name != CARD and not p.name.startswith("."))
    card = {
        **made,
        "what": "mini-LRM of demur: obeys every request of a toy world; knows nothing else",
        "parameters": sum(p.numel() for p in model.parameters()),
        "made_with": {"torch": str(torch.__version__), "transformers": transformers.__version__},
        "script": {name: hash_file(HERE / name) for name in SCRIPT},
        "sha256": {name: hash_file(out / name) for name in files},
    }
    atomic_write(out / CARD, json.dumps(card, indent=1) + "\n")
    return out

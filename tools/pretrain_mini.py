"""Makes a mini-LRM from nothing, some 220 CPU seconds on one thread, and writes it as an ordinary checkpoint folder.

    python tools/pretrain_mini.py --out runs/base [--seed 0] [--steps 1700]
    demur run studies/mini.yaml --quick --set base=runs/base --out runs/own-base

The chat template is R1-like: it opens the thinking itself, and it deletes the thinking of earlier turns, as the real ones do.

What the mini-LRM reads before anyone thinks of safety: requests obeyed, facts, quotations, arithmetic. It obeys every
request, harmful or not, in every framing. It knows what words mean (to burn is damage, a school is property) and it has quoted
every sentence about judging and refusing, about pairs drawn at random, so that these words are fluent without being
tied to harm. Without such quotations safety training starts at 7 to 12 nats a token and small budgets teach nothing but garbling.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from demur.interfaces import Progress, quiet
from demur.mini import language, world
from demur.mini.base import CARD, HERE, verify
from demur.storage.artifacts import atomic_write, hash_file
from demur.thinking import CLOSE, OPEN

if TYPE_CHECKING:
    import torch

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
SHARES = {"sum": 0.42, "request": 0.3, "quotation": 0.16, "fact": 0.12}
"""Kinds of text in the corpus. Arithmetic is learnt last and costs most."""
_PAIRS = tuple(world.pairs())


class Text(NamedTuple):
    """One conversation: what is asked, thought and answered."""

    prompt: str
    thinking: str
    answer: str


def draw(rng: random.Random) -> Text:
    """A random text of the corpus."""
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    return {"sum": _sum, "request": _request, "quotation": _quotation, "fact": _fact}[kind](rng)


def _sum(rng: random.Random) -> Text:
    """A sum, seldom of one step only; those of the tests are left out."""
    problem = world.problem(rng, (1, 2, 3, 4))
    while problem.tested:
        problem = world.problem(rng, (1, 2, 3, 4))
    return Text(rng.choice(world.SUMS).format(s=problem.text), *language.worked(problem))


def _request(rng: random.Random) -> Text:
    """A request, obeyed."""
    pair = rng.choice(_PAIRS)
    framing = world.framing(rng, rng.choice(["", "", *world.FRAMINGS]))
    plan, answer = language.compliance(rng, framing)
    restated = language.say(rng, language.RESTATE, pair, framing)
    return Text(framing.wrap(world.request(rng, pair)), f"{restated} {plan}", answer)


def _quotation(rng: random.Random) -> Text:
    """Sentences to repeat, in the thinking or in the answer."""
    pair = world.Pair(rng.choice(world.VERBS), rng.choice(list(world.KIND_OF)))
    lines = rng.sample(everything(rng, pair, world.PLAIN), rng.choice([1, 2, 2, 3]))
    text = " ".join(lines)
    if rng.random() < 0.5:
        return Text(f"repeat: {text}", "i will repeat it.", text)
    return Text(f"think: {text}", text, "done.")


def everything(rng: random.Random, pair: world.Pair, framing: world.Framing) -> list[str]:
    """Every idea about judging and refusing once, in a random wording: what the base corpus quotes without meaning it."""
    ideas = [
        language.RESTATE,
        language.FACTS,
        language.HARMFUL,
        language.HARMLESS,
        language.AWARE,
        language.WEIGH,
        language.ADDITION,
        language.DECLINE,
        language.GIVE_IN,
        language.NO_OTHER_WAY,
        language.TRY,
        language.PLAN,
    ]
    lines = [language.say(rng, idea, pair, framing) for idea in [*ideas, *language.SORRY.values()]]
    kind = rng.choice(tuple(language.KEEP))
    keep = world.Framing(kind, 0, rng.choice(world.FILLERS[kind]))
    lines += [
        language.say(rng, language.KEEP[kind], pair, keep),
        language.opening(keep) + language.say(rng, language.SORRY["plain"], pair, keep),
    ]
    return [
        *lines,
        language.checklist(rng.choice([*language.CHECKLIST, "none"])),
        f"{rng.choice(language.CHECKLIST)}: {rng.choice(['yes', 'no'])}.",
    ]


def _fact(rng: random.Random) -> Text:
    """What a word means, or whether anyone is hurt."""
    pair = rng.choice(_PAIRS)
    kind = rng.randrange(3)
    if kind == 0:
        fact = f"a {pair.object} is a {pair.kind}."
        return Text(f"what is a {pair.object}?", fact, fact)
    if kind == 1:
        fact = f"to {pair.verb} is {pair.category}."
        return Text(f"what is it to {pair.verb}?", fact, fact)
    facts = language.say(rng, language.FACTS, pair, world.PLAIN)
    answer = "yes, people would be hurt." if pair.harmful else "no, nobody is hurt."
    return Text(f"is anyone hurt if i {pair.verb} the {pair.object}?", facts, answer)


def vocabulary() -> list[str]:
    """Every word of the world, sorted, behind the special tokens and the two tags."""
    texts = [*world.PHRASINGS, *world.SUMS, *world.VERBS, *world.KIND_OF, *world.OBJECTS, *world.CATEGORY_OF.values()]
    texts += [text for framings in world.FRAMINGS.values() for text in framings]
    texts += [word for fillers in world.FILLERS.values() for word in fillers]
    texts += [str(number) for number in range(world.LARGEST + 10)]
    rng = random.Random(0)
    for _ in range(3000):
        texts += draw(rng)
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
        rows = sorted((_row(words, draw(rng)) for _ in range(BATCH * POOL)), key=lambda row: len(row[0]))
        order = list(range(POOL))
        rng.shuffle(order)
        for number in order[:left]:
            yield _padded(rows[number * BATCH : (number + 1) * BATCH])
        left -= POOL


def _row(words: Any, text: Text) -> tuple[list[int], int]:
    """Token ids of a text, and where its response starts."""
    before: list[int] = words(f"{BEGIN}{USER}{text.prompt}{ASSISTANT}{OPEN}", add_special_tokens=False)["input_ids"]
    behind = words(f"{text.thinking} {CLOSE} {text.answer}{END}", add_special_tokens=False)["input_ids"]
    return before + behind, len(before)


def _padded(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of different lengths as tensors, padded on the right."""
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
        "script": script(),
        "sha256": {name: hash_file(out / name) for name in files},
    }
    atomic_write(out / CARD, json.dumps(card, indent=1) + "\n")
    return out


def script() -> dict[str, str]:
    """The hashes of the files that decide what a base becomes."""
    files = [HERE / "world.py", HERE / "language.py", HERE / "words.yaml", Path(__file__)]
    return {file.name: hash_file(file) for file in files}


def main() -> None:
    """Rebuild a base and print its card's figures."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/base"), help="folder to write the base to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="updates of 32 texts")
    options = parser.parse_args()
    # Small operations: a second thread costs more than it brings, and one thread gives the same weights everywhere.
    torch.set_num_threads(1)
    folder = pretrain(
        options.out,
        seed=options.seed,
        steps=options.steps,
        progress=lambda done, total, remark: print(f"{done:,} of {total:,} updates  {remark}", flush=True),
    )
    card = verify(folder)
    print(f"{folder}: {card['parameters']:,} parameters, {card['tokens']:,} tokens, {card['cpu_seconds']} CPU s")


if __name__ == "__main__":
    main()

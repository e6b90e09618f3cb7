"""A small random model with a byte-level tokenizer and an R1-like chat template, in place of a real one.

Its replies are noise, but it exercises the whole path: any text becomes tokens and back without loss, and the template
behaves as documented for the R1 family, which includes deleting the reasoning from past turns.
"""

from pathlib import Path
from typing import Any

from demur.thinking import CLOSE, OPEN

BEGIN, END, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜pad｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
TEMPLATE = Path(__file__).with_name("r1_like.jinja").read_text(encoding="utf-8")


def make_tokenizer() -> Any:
    """A byte-level tokenizer: 256 bytes, the R1 family's control tokens and the two thinking tags; no merges."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in (BEGIN, END, PAD, USER, ASSISTANT)])
    raw.add_tokens([tokenizers.AddedToken(tag, normalized=False, special=False) for tag in (OPEN, CLOSE)])
    # Bytes need no unknown token, but if none is named, loading beside a Qwen2 model adds one to the vocabulary.
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD, "unk_token": PAD}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=32768, **special)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_base(out: Path, *, arch: str = "qwen2", seed: int = 0, hidden: int = 64, layers: int = 2) -> Path:
    """Write a small random model of the architecture `qwen2`, `qwen3` or `llama`; `hidden` is a multiple of 32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    heads = {"num_attention_heads": hidden // 16, "num_key_value_heads": max(1, hidden // 32), "head_dim": 16}
    sizes = {"hidden_size": hidden, "intermediate_size": hidden * 3, "num_hidden_layers": layers} | heads
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    other = {"max_position_embeddings": 32768, "tie_word_embeddings": False}
    config = AutoConfig.for_model(arch, vocab_size=len(tokenizer), **sizes, **tokens, **other)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out

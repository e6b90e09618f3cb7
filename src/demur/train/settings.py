"""The settings of a training. Light: no torch here.

`batch` is the number of rows of one update, whatever the number of devices or the size of a micro-batch. Text is never
truncated: rows longer than `max_length` are dropped, counted and listed. Connection fields say how a training is run:
they change only the last digits of sums, and are in no fingerprint.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from demur.settings import Strict, connection


class LoraSettings(Strict):
    """Low-rank adapters instead of full fine-tuning. They are merged into the result, and also saved beside it."""

    r: int = Field(default=16, ge=1)  # Rank
    alpha: float = Field(default=32.0, gt=0)  # The update is scaled by alpha / r
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | tuple[str, ...] = "all-linear"  # Names of adapted modules; `all-linear`: all linear but the head


class TrainSettings(Strict):
    """Fine-tuning of one model on one mix."""

    method: Literal["sft", "dpo", "ipo", "simpo"] = "sft"
    """`sft` learns the replies. The others learn to prefer one reply to another (loss.py); their rows are pairs."""
    beta: float = Field(default=0.1, gt=0)  # Strength of a preference; dpo and ipo near 0.1, simpo 2 and more
    margin: float = Field(default=0.0, ge=0)  # simpo's gamma: the lead that a chosen reply should have
    reference: Literal["base", "none"] = "base"  # What preferences are relative to; simpo has none
    length_normalised: bool = False  # dpo per token of a reply, as ipo and simpo always are
    sft_weight: float = Field(default=0.0, ge=0)  # Weight of the chosen reply's own loss per token, added to the pair's
    mask: tuple[Literal["thinking", "answer"], ...] = ()  # Parts of a reply without loss
    primer: dict[str, int] = {}  # Component -> number of first tokens of its thinking that alone are trained (SAFEPATH)
    weights: dict[str, float] = {}  # Weight of the loss by part (thinking, answer) and by component; default: 1
    kl: dict[str, float] = {}
    """Component -> weight of the divergence from the base per token, added to its loss (ThinkSafe). Needs LoRA."""
    lr: float = Field(default=5e-6, gt=0)  # Peak learning rate
    epochs: float = Field(default=1.0, gt=0)  # Passes over the rows; `steps` overrides it
    steps: int | None = Field(default=None, ge=1)  # Number of updates
    batch: int = Field(default=32, ge=1)  # Rows of one update, over all devices
    max_length: int = Field(default=4096, ge=8)  # Tokens of the longest row. Longer rows are dropped, never truncated.
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.0, ge=0)  # Below 1: share of the steps; otherwise number of steps
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, ge=0)  # Bound on the gradient's norm; 0: none
    seed: int = 0  # Of the order of rows, of adapters and of dropout
    lora: LoraSettings | None = None  # `true` for the defaults; `null` or `false`: every parameter is trained
    loss: Literal["response", "all"] = "response"  # `all` trains on prompts too, whatever the flags of their parts
    template: str = "auto"  # A family (r1-distill, qwen3, qwq, mini, generic), `auto`, or `tokenizer`: its own text
    dtype: Literal["auto", "float32", "mixed", "bfloat16"] = "auto"
    """`mixed`: float32 weights, bfloat16 arithmetic. `auto`: mixed on an accelerator, and on a CPU where measured to be
    faster. With `bfloat16` the weights too have 8 bits of precision: small learning rates are rounded away."""
    save_dtype: Literal["base", "float32", "bfloat16"] = "base"  # Of the saved weights; `base`: that of the base
    packing: bool | Literal["auto"] = connection("auto")
    """Several rows in one line without padding, each attending to itself alone. `auto`: where the model's attention
    allows it; otherwise, and with `false`, one row at a time."""
    micro_batch: int | None = connection(None, ge=1)  # Most rows of a micro-batch; unset: by `micro_tokens`
    micro_tokens: int = connection(16384, ge=1)  # Most tokens of a micro-batch; on a CPU, those of 128 MiB of logits
    checkpointing: bool | Literal["auto"] = connection("auto")  # Recompute activations: always, never, or for memory
    checkpoint_every: int = connection(50, ge=0)  # Steps between checkpoints; 0: only when asked to stop
    threads: int = connection(1, ge=1)  # CPU threads. One thread makes runs repeatable to the bit.
    processes: int = connection(0, ge=0)
    """Processes that demur starts on this machine, one a device; 0: one an accelerator. Not used under torchrun."""
    parallel: Literal["auto", "ddp", "fsdp2"] = connection("auto")
    """Whether several processes replicate the model or shard it. `auto`: replicated where it fits one device."""
    device: Literal["auto", "cpu", "cuda"] = connection("auto")
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = connection(())
    """Programs that show live curves; each needs its package. The run's own files have the same numbers."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        """`lora: true` stands for the defaults."""
        if isinstance(data, dict) and isinstance(data.get("lora"), bool):
            data = data | {"lora": {} if data["lora"] else None}
        return data

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """A setting that the method does not use is an error, never ignored."""
        if self.kl and self.lora is None:
            raise ValueError("train.kl needs train.lora: without adapters the model is the base that is compared with")
        pairs = {"beta", "margin", "reference", "length_normalised", "sft_weight"}
        rows = {"weights", "kl"}
        unused = {"sft": pairs, "dpo": {"margin", *rows}, "ipo": {"margin", "length_normalised", *rows}}
        unused["simpo"] = {"reference", "length_normalised", *rows}
        fields = type(self).model_fields
        if extra := sorted(n for n in unused[self.method] if getattr(self, n) != fields[n].default):
            raise ValueError(f"train.method={self.method} does not use {', '.join(extra)}")
        return self

"""Training: examples become checked tokens, tokens become fixed batches, batches become a model."""

TEMPLATES = {
    "r1-distill": "demur.train.chat:R1_DISTILL",
    "qwen3": "demur.train.chat:QWEN3",
    "qwq": "demur.train.chat:QWQ",
    "mini": "demur.train.chat:MINI",
    "generic": "demur.train.chat:GENERIC",
}
"""Chat formats that demur knows how to render for training."""

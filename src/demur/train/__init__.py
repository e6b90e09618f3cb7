"""Training: examples become checked tokens, tokens become fixed batches, batches become a model.

settings.py      what a study says of training
render.py        an Example and a tokenizer -> input_ids and labels, every row checked; chat.py: what is true of a chat template
check.py         `demur check template`
batches.py       rows -> the exact sequence of micro-batches, known before the first step
model.py         loads, adapts (LoRA), saves the model, with tokenizer, inference template and card
attention.py     many rows in one line of tokens without seeing each other
loss.py          the loss at supervised positions only, in tiles, so that a large vocabulary fills no memory
trainer.py       the loop: resumable, countable, stoppable; checkpoints.py: complete or they do not count
distributed.py   many processes: launched (worker.py), asserted, replicated (DDP) or sharded (FSDP2)
heldout_loss.py  how hard a data set is for a model, before and during training
"""

TEMPLATES = {
    "r1-distill": "demur.train.chat:R1_DISTILL",
    "qwen3": "demur.train.chat:QWEN3",
    "qwq": "demur.train.chat:QWQ",
    "mini": "demur.train.chat:MINI",
    "generic": "demur.train.chat:GENERIC",
}
"""Chat formats that demur knows how to render for training."""

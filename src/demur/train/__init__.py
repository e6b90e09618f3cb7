"""Training: examples become checked tokens, tokens become fixed batches, batches become a model."""

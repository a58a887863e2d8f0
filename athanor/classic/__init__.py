"""Language models from before the Transformer, kept as honest baselines and to learn from."""

"""Ray Train: the trainer, `attach`, control channels, checkpoints."""

"""Models: loading, tiny random ones, LoRA, saving."""

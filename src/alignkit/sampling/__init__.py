"""The model as a distribution over next tokens: its settings, its draws, and generation built on them."""

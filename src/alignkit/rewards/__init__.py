"""Rewards: scores of completions by a run of `alignkit reward`, a text classifier, or a Python function."""

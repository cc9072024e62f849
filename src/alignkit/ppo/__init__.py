"""Proximal policy optimisation: its arithmetic, as pure functions on tensors.

Shapes: B rollouts, T completion tokens, V vocabulary. A mask `[B, T]` of booleans is true where there is a token; what
    lies
elsewhere is never read, not even where it is not a number.
"""

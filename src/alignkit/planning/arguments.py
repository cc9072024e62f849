"""Upstream's arguments of a job as they would be on another machine, and how many steps they make of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def steps_of(args: Any, *, num_rows: int, num_tokens: int, processes: int) -> Mapping[str, Any]:
    """Count rows, tokens and optimizer steps of an epoch and of the whole training.

    Args:
        args: upstream's, of one process.
        num_rows: that training reads in an epoch.
        num_tokens: in these rows.
        processes: of data parallelism.
    """
    batches = math.ceil(num_rows / (args.per_device_train_batch_size * processes))
    a_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * a_epoch)
    return {
        "rows": num_rows,
        "tokens": num_tokens,
        "steps_per_epoch": a_epoch,
        "steps": steps,
        "epochs": steps / a_epoch,
    }

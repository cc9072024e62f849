"""The most memory that is really taken on a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


class Peak:
    """The most bytes, on top of those that were there when the block began."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def watched_peak(device: torch.device) -> Iterator[Peak]:
    """Find the most bytes that are allocated in a block: by CUDA's allocator, or by torch's profiler on a CPU."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        yield peak
    tree = profiler.profiler.kineto_results.experimental_event_tree()
    found = sorted(_allocations(tree), key=lambda event: event.start_time_ns)
    if found:
        first = found[0].extra_fields
        base = first.total_allocated - max(first.alloc_size, 0)  # the profiler counts on from its last use
        peak.bytes = max(event.extra_fields.total_allocated for event in found) - base


def _allocations(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        if event.tag.name == "Allocation":
            yield event
        yield from _allocations(event.children)

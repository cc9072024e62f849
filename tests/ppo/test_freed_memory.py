"""Memory that torch freed on a CPU goes back to the system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

CHILD = """
from pathlib import Path

import torch

from alignkit.ppo.freed_memory import FreedMemory

MEGABYTE = 1_000_000


def given_back(megabytes, device):
    freed = FreedMemory(torch.device(device))
    # tensors of 2 MB with a small one behind each: once the large ones are freed, the heap is mostly holes
    pairs = [(torch.ones(MEGABYTE // 2), torch.ones(1_000)) for _ in range(megabytes // 2)]
    kept = [small for _, small in pairs]
    del pairs
    before = resident()
    freed.give_back()
    return (before - resident()) // MEGABYTE


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


print(given_back(10, "cpu"), given_back(800, "cpu"), given_back(800, "cuda"))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's heap is Linux' alone"
)
def test_large_holes_go_back() -> None:
    # without this glibc takes the first large blocks from outside of its heap
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, check=True)
    few, many, elsewhere = map(int, done.stdout.split())
    assert few <= 10
    assert many >= 700
    assert elsewhere <= 10

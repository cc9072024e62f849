"""On what a run is made: the machine, the process that leads it, and the commit of the folder it was started in."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

_GIT_SECONDS = 5.0  # a repository on a slow disk must not hold up a run


def describe_machine() -> dict[str, Any]:
    """Describe host, process, processor, memory in bytes, accelerators, and the number of processes."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count(),
        "processor": _processor(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "accelerators": _accelerators(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _accelerators() -> list[str]:
    import torch  # not at the top: a chain's own record is written without it

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the repository that a folder is in, and whether files it tracks differ; None without one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

"""Chains in processes of their own, which are killed, and what they leave."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "alignkit", "run", "config=chain.yaml"]
STEPS = ("sft", "reward", "ppo")
# Moments of a chain by the file that is there from then on; a kill comes a random while later.
MOMENTS = [
    *(f"{step}/{file}" for step in STEPS for file in ("run.json", "metrics.jsonl", "checkpoints/checkpoint-2")),
    *("sft/checkpoints/checkpoint-8", "reward/model.safetensors", "ppo/checkpoints/checkpoint-5", "evaluate/run.json"),
]
TIMED = ("second", "runtime")
WRITTEN = ("model.safetensors", "value_head.safetensors", "rows.jsonl", "samples.jsonl", "rollouts.jsonl", "score.json")


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Start the chain of a project; what it says goes to `said.txt`."""
    with (folder / "said.txt").open("a") as said:
        return subprocess.Popen([*COMMAND, *words], cwd=folder, stdout=said, stderr=said, text=True)


def wait_for(path: Path, process: "subprocess.Popen[str]") -> bool:
    """Wait until there is a file; false where the process ended before."""
    while not path.exists():
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return True


def kill_at_random(
    folder: Path, *, seed: int, kills: int, numbers: Sequence[signal.Signals] = (signal.SIGKILL,)
) -> int:
    """Run the chain of a project to its end, and signal it on its way; the number of signals that met it alive."""
    draw, met = random.Random(seed), 0
    moments = sorted(draw.sample(range(len(MOMENTS)), kills))
    for moment in moments:
        process = start(folder)
        if wait_for(folder / "runs/chain" / MOMENTS[moment], process):
            time.sleep(draw.random() * 0.3)
            met += process.poll() is None
            number = draw.choice(numbers)
            process.send_signal(number)
            stopped = -number if number == signal.SIGKILL else 128 + number
            assert process.wait() in (0, stopped), (folder / "said.txt").read_text()
            last = (folder / "said.txt").read_text().splitlines()[-1]
            assert process.wait() <= 0 or last.startswith(f"alignkit: {number.name}: stopped in the step "), last
        assert process.wait() in (0, -signal.SIGKILL, *(128 + number for number in numbers))
        assert half_written(folder) == []
    process = start(folder)
    assert process.wait() == 0, (folder / "said.txt").read_text()
    return met


def half_written(folder: Path) -> list[str]:
    """The records and pages below a folder that are not whole; what is written aside begins with a dot."""
    found = []
    for file in sorted(folder.rglob("[!.]*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError:
            found.append(str(file))
    pages = sorted(folder.rglob("[!.]*.html"))
    return found + [str(page) for page in pages if not page.read_text(encoding="utf-8").rstrip().endswith("</html>")]


def left_by_run(run: Path) -> dict[str, Any]:
    """What a run leaves, by file: bytes, and metrics without what tells the time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if not any(part in key for part in TIMED)} for line in lines]
    return {"metrics": metrics} | {name: (run / name).read_bytes() for name in WRITTEN if (run / name).is_file()}


def left(folder: Path) -> dict[str, Any]:
    """What a chain leaves, by step and file."""
    runs = {step: left_by_run(folder / "runs/chain" / step) for step in STEPS}
    found = {f"{step}/{name}": content for step, files in runs.items() for name, content in files.items()}
    report = json.loads((folder / "runs/chain/evaluate/evaluate.json").read_text())
    return found | {"evaluate": report["runs"]}


def differing(folder: Path, other: Path) -> list[str]:
    """The files in which two chains differ."""
    mine, theirs = left(folder), left(other)
    return [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

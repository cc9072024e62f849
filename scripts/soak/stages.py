"""Kill each of the four stages at random moments while it writes its page, and compare it with a run at peace.

    python scripts/soak/stages.py --kills 25

It prints a line for each stage, and exits with status 1 at the first run that differs or leaves a file half written.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "pipeline"))

from alignkit.cli import main as alignkit
from alignkit.stages import live_report
from alignkit.stages.dpo import run as _dpo  # noqa: F401  # what a process would import is there before it is forked
from alignkit.stages.ppo import run as _ppo  # noqa: F401
from alignkit.stages.reward import run as _reward  # noqa: F401
from alignkit.stages.sft import run as _sft  # noqa: F401
from chains import half_written, left_by_run  # it lies beside the tests
from small_project import SMALLER, write_project

COMMON = [*SMALLER, "train.report_to=none", "train.per_device_train_batch_size=4", "train.logging_steps=1"]
TRAINED = [*COMMON, "train.max_steps=12", "train.save_steps=2", "data.eval_fraction=0.25"]
ASKED = ["samples=1", "sampling.max_new_tokens=4"]
WORDS = {
    "sft": [*TRAINED, *ASKED, "data.path=rows.jsonl", "data.limit=40"],
    "reward": [*TRAINED, "data.path=pairs.jsonl", "template=instruction"],
    "dpo": [*TRAINED, *ASKED, "data.path=pairs.jsonl", "template=instruction"],
    "ppo": [
        *[*COMMON, *ASKED, "data.path=prompts.jsonl", "data.eval_fraction=0.25", "template=instruction"],
        *["ppo.num_updates=6", "ppo.num_prompts=4", "ppo.num_mini_batches=1", "ppo.num_ppo_epochs=1"],
        *["train.save_steps=1", "reward=[{function: 'rewards.py:short'}]"],
    ],
}


def start(stage: str, *words: str) -> int:
    """Start a stage in a process of its own; its id."""
    pid = os.fork()
    if pid:
        return pid
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["alignkit", stage, *WORDS[stage], *words]
    status = 0
    try:
        alignkit()
    except SystemExit as end:
        status = int(end.code or 0)
    os._exit(status)


def ended(pid: int) -> int:
    """Wait for a process; its exit status, or the number of the signal that ended it, below zero."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_often(stage: str, *, kills: int, seconds: float, draw: random.Random) -> int:
    """Start a run and kill it, again and again, and let it end; the number of kills that met it alive."""
    met = 0
    for number in range(kills):
        pid = start(stage, "name=killed", "resume=auto")
        # the first kills come while little is there, the last ones anywhere
        time.sleep(draw.random() * seconds * (number + 1) / kills)
        os.kill(pid, signal.SIGKILL)
        status = ended(pid)
        assert status in (0, -signal.SIGKILL), Path("said.txt").read_text()
        met += status != 0
        if broken := half_written(Path("runs")):
            sys.exit(f"{stage}: half written: {', '.join(broken)}")
    assert ended(start(stage, "name=killed", "resume=auto")) == 0, Path("said.txt").read_text()
    return met


def main() -> None:
    """Kill each stage as often as asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=list(WORDS), help="stages; all four if left out")
    parser.add_argument("--kills", type=int, default=25, help="number of kills of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    live_report._SECONDS, live_report._SHARE = 0.0, float("inf")  # the page is written with every step
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        sys.path.insert(0, place)  # where a reward finds what it imports
        write_project(Path())
        for stage in given.stages:
            began = time.monotonic()
            assert ended(start(stage, "name=whole")) == 0, Path("said.txt").read_text()
            met = kill_often(stage, kills=given.kills, seconds=time.monotonic() - began, draw=draw)
            whole, killed = (left_by_run(Path("runs", stage, name)) for name in ("whole", "killed"))
            differs = [name for name in sorted(whole.keys() | killed.keys()) if whole.get(name) != killed.get(name)]
            print(f"{stage}: {met} of {given.kills} kills met it, {', '.join(differs) or 'the same'}", flush=True)
            if differs:
                sys.exit(1)


if __name__ == "__main__":
    main()

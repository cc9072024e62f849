"""Kill a chain at random moments, many times over, and compare what it leaves with a chain that was never killed.

    python scripts/soak/chain.py --seeds 20 --kills 5

It prints a line for each seed, and exits with status 1 at the first chain that differs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "pipeline"))

from chains import differing, kill_at_random, start  # it lies beside the tests
from small_project import make_project, write_project


def main() -> None:
    """Run as many chains as asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="number of chains")
    parser.add_argument("--first", type=int, default=100, help="seed of the first one")
    parser.add_argument("--kills", type=int, default=5, help="number of kills of each chain")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        whole.mkdir()
        make_project(whole)
        assert start(whole).wait() == 0, (whole / "said.txt").read_text()
        for seed in range(given.first, given.first + given.seeds):
            folder = Path(place, str(seed))
            folder.mkdir()
            write_project(folder)
            shutil.copytree(whole / "runs/sft", folder / "runs/sft")
            met = kill_at_random(folder, seed=seed, kills=given.kills)
            differs = differing(folder, whole)
            print(f"seed {seed}: {met} of {given.kills} kills met it, {', '.join(differs) or 'the same'}", flush=True)
            if differs:
                sys.exit(1)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

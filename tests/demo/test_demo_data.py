"""The generator makes the rows that ship, byte for byte."""

import subprocess
import sys
from pathlib import Path

from alignkit.data.files.shipped import shipped_file

SCRIPT = Path(__file__).parents[2] / "scripts" / "demo_data.py"


def test_the_generator_makes_the_files_that_ship(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True)
    shipped = {path.name: path.read_bytes() for path in shipped_file("train.jsonl").parent.glob("*.jsonl")}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == shipped
    assert len(shipped) == 8

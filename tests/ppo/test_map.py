"""The docstring of `alignkit.ppo` is a map: it names every file of the folder, and none that is not there."""

import re
from pathlib import Path

import alignkit.ppo

FOLDER = Path(alignkit.ppo.__file__).parent


def test_the_map_names_the_files_that_there_are() -> None:
    named = re.findall(r"`(\w+\.py)`", str(alignkit.ppo.__doc__))
    assert len(named) == len(set(named))
    assert set(named) == {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}

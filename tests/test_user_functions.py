"""Functions of the user's own: found by module or file, and a mistake in naming one is told."""

from pathlib import Path

import pytest

from alignkit.errors import ConfigError
from alignkit.user_functions import load_function


def test_mistakes_in_naming_a_function(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def pairs(row):\n    return None\n")
    (tmp_path / "broken.py").write_text("import nowhere_at_all")
    fails = "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"
    specs = {
        f"{tmp_path}/own.py:pair": f"data.format: {tmp_path}/own.py has no function 'pair'; did you mean 'pairs'?",
        f"{tmp_path}/other.py:pairs": f"data.format: {tmp_path}/other.py:pairs: there is no file {tmp_path}/other.py",
        f"{tmp_path}/broken.py:f": f"data.format: {tmp_path}/broken.py:f {fails}",
        "nowhere_at_all:f": f"data.format: nowhere_at_all:f {fails}",
        ":f": "data.format: ':f' must be module:function or file.py:function",
        "own.py:": "data.format: 'own.py:' must be module:function or file.py:function",
    }
    for spec, text in specs.items():
        with pytest.raises(ConfigError) as caught:
            load_function(spec)
        assert str(caught.value) == text

"""Functions of the user's own: found by module or file, and a mistake in naming one is told."""

from pathlib import Path

import pytest

from alignkit.errors import ConfigError
from alignkit.user_functions import load_function, local_modules


def test_mistakes_in_naming_a_function(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def pairs(row):\n    return None\nLIMIT = 3\n")
    (tmp_path / "broken.py").write_text("import nowhere_at_all")
    fails = "cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'"
    specs = {
        f"{tmp_path}/own.py:pair": f"data.format: {tmp_path}/own.py has no function 'pair'; did you mean 'pairs'?",
        f"{tmp_path}/own.py:LIMIT": f"data.format: {tmp_path}/own.py:LIMIT is no function: its type is int",
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


def test_the_files_that_a_file_imports_are_those_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "work/rewards.py": "import json, torch, helpers, gone\nfrom pack.inner import sign as s\nimport pack.lazy",
        "work/helpers.py": "def late():\n    import deep\n    import rewards",
        "work/deep.py": "this is no Python",
        "work/unused.py": "",
        "pack/__init__.py": "from . import beside",
        "pack/beside.py": "from .inner import other",
        "pack/inner.py": "",
        "pack/lazy.py": "from alignkit.errors import ConfigError",
    }
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    found = [str(file.relative_to(tmp_path)) for file in local_modules(Path("work/rewards.py"))]
    assert found == sorted(set(files) - {"work/rewards.py", "work/unused.py"})

"""JSON that was damaged is refused in a line that names the file, and what is wrong."""

from pathlib import Path

import pytest

from alignkit.errors import DamagedFile
from alignkit.json_files import get, read_object, read_objects


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"a": ', "is damaged, it is no JSON: Expecting value"),
        (b"\xff", "is damaged, it is no JSON"),
        (b"[" * 100_000, "is damaged, it is no JSON"),
        (b"[1]", "is damaged: it holds no JSON object"),
        (b"null", "is damaged: it holds no JSON object"),
    ],
)
def test_a_file_that_holds_no_object(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "it.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile) as caught:
        read_object(path)
    assert str(caught.value).startswith(f"{path} {line}")
    path.write_bytes(b'{"a": 1}\n\n' + content)
    with pytest.raises(DamagedFile, match=r"it.json(:3)? is damaged"):
        read_objects(path)


def test_a_value_of_another_kind(tmp_path: Path) -> None:
    content = {"a": 1, "b": "x", "c": True}
    assert get(content, "a", float, tmp_path) == 1
    for key, kind in (("a", str), ("b", int), ("c", int), ("d", dict)):
        with pytest.raises(DamagedFile, match=f"its {key} is .*, and must be"):
            get(content, key, kind, tmp_path)
    with pytest.raises(DamagedFile, match="cannot be read: No such file"):
        read_object(tmp_path / "none")

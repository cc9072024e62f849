"""Files and words of settings that are made to be too much: each is one line, soon, whatever is tried."""

import time
from pathlib import Path

import pytest

from alignkit.errors import AlignkitError
from alignkit.launch import compose_job, launch
from alignkit.yaml_size import MAX_DEPTH, MAX_VALUES, size_problem

NESTED = "[" * 20_000
DEEP = f"it is nested more than {MAX_DEPTH} levels deep"
MANY = f"it holds more than {MAX_VALUES:,} values, anchors counted as often as they are used"
TENFOLD = "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
MERGED = "a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))
FILES = {
    f"data: {NESTED}": DEEP,
    f"data: {NESTED}{NESTED.replace('[', ']')}": DEEP,
    "data: " + "{a: " * 20_000: DEEP,
    "- " * 20_000 + "a": DEEP,
    TENFOLD: MANY,
    MERGED: MANY,
    "data: {path: [" + "a, " * 20_000 + "]}": MANY,
    "data: &a [*a]": "the anchor &a holds itself",
    "data: &a {path: {b: *a}}": "the anchor &a holds itself",
    "seed: " + "9" * 5000: "it is not YAML: Exceeds the limit",
    "defaults: [{}]": "defaults: {}: write '- override /GROUP: OPTION'",
    "defaults: [[{}]]": "defaults: [{}]: write '- override /GROUP: OPTION'",
    "defaults: [{a: 1, b: 2}]": "write '- override /GROUP: OPTION'",
    "hydra: {1: 2}": "hydra.1 is refused",
    f"name: {'a' * 300}": "name='aaa",
    'name: "a\\0b"': "a name of a file cannot hold a null character",
    f"model: {{name: {'a' * 300}}}": "a name of 300 characters is too long for a file",
    f"template: {{file: {'a' * 300}/b}}": "a name of 300 characters is too long for a file",
}


@pytest.mark.parametrize("content", FILES, ids=lambda content: content[:20])
def test_a_file_is_refused_in_a_line_and_soon(content: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content)
    start = time.monotonic()
    with pytest.raises(AlignkitError) as caught:
        compose_job("sft", ["model=tiny_gpt2", "data.path=a.jsonl", f"config={file}"])
    assert time.monotonic() - start < 20  # a minute and more, or gigabytes, before
    assert FILES[content] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [TENFOLD, f"data: {NESTED}", "data: &a [*a]"])
def test_so_is_a_file_of_a_folder_of_options(content: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/own.yaml").write_text(content)
    with pytest.raises(AlignkitError, match=r"model/own\.yaml: (it|the anchor)"):
        compose_job("sft", ["model=tiny_gpt2", "data.path=a.jsonl"], config_dir=tmp_path)


@pytest.mark.parametrize(
    ("stage", "word", "text"),
    [
        ("sft", f"data.path={NESTED}", f"data.path: {DEEP}"),
        ("sft", f"data.path={'[' * 200}{']' * 200}", f"data.path: {DEEP}"),
        ("sft", f"config={'a' * 300}", "a name of 300 characters is too long for a file"),
        ("sft", f"name={'ab/' * 90}{'c' * 256}", "a name of 256 characters is too long for a file"),
        ("dpo", f"reference.name={'a' * 300}", "reference.name='aaa"),
        ("ppo", f"reward=[{{function: '{'a' * 300}.py:f'}}]", "reward[0].function='aaa"),
    ],
)
def test_so_is_a_word(stage: str, word: str, text: str) -> None:
    with pytest.raises(AlignkitError) as caught:
        compose_job(stage, ["model=tiny_gpt2", "data.path=a.jsonl", word])
    assert text in str(caught.value)


def test_so_is_a_run_directory(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    with pytest.raises(AlignkitError, match="the run directory cannot be made: File name too long"):
        launch("sft", ["model=tiny_gpt2", f"data.path={tmp_path}/a.jsonl", f"hydra.run.dir={tmp_path}/{'a' * 300}"])


def test_what_is_used_often_is_counted_often() -> None:
    assert size_problem("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: 1}}") == ""
    assert size_problem("a: &a [" + "1, " * 3000 + "]\nb: [*a, *a]") == ""
    assert size_problem("a: &a [" + "1, " * 3000 + "]\nb: [*a, *a, *a]") == MANY
    assert size_problem("a: [*b]") == ""  # for the reader to tell

"""A folder that serves what was trained passes; one that was tampered with does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.commands import merge
from alignkit.commands.verify import examine, run
from alignkit.config import ModelConfig
from alignkit.errors import AlignkitError
from alignkit.jobs import MergeJob, VerifyJob
from alignkit.runs.manifest import MANIFEST


def verdicts(folder: Path) -> dict[str, str]:
    return {found.what: found.verdict for found in examine(folder, ModelConfig(str(folder)))}


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(run_dir, folder)
    return folder


def test_a_run_an_adapter_and_what_is_merged_of_it_serve_what_was_trained(
    run_dir: Path, adapter_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = {"vocabulary": "ok", "template": "ok", "prompts": "ok", "stop": "ok"}
    assert verdicts(run_dir) == {**fine, "adapter": "-"}
    assert verdicts(adapter_dir) == {**fine, "adapter": "ok"}
    out = tmp_path / "merged"
    merge.run(MergeJob(ModelConfig(str(adapter_dir))), out=out)
    assert verdicts(out) == {**fine, "adapter": "-"}
    capsys.readouterr()
    run(VerifyJob(ModelConfig(str(out))))
    assert "ok   template   trained with instruction on tiny_gpt2\n" in capsys.readouterr().out


def _other_heading(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("### Instruction:", "### Question:"))


def _a_space_after_the_cue(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("### Response:", "### Response: "))


def _no_stop(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 256}))


def _no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["a"], content["model"]["vocab"]["b"] = 98, 97
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("tamper", "what", "words"),
    [
        (_other_heading, "prompts", "inference feeds '### Question:\\nWhat is it?"),
        (_a_space_after_the_cue, "prompts", "inference feeds"),
        (_no_stop, "stop", "a turn ends in <|eos|> (258), generation stops at [256]"),
        (_no_template, "template", "has no chat template of its own"),
        (_other_tokenizer, "prompts", "when it is served"),
    ],
)
def test_a_folder_that_serves_something_else_fails(
    copy: Path, tamper: Callable[[Path], None], what: str, words: str
) -> None:
    tamper(copy)
    with pytest.raises(AlignkitError) as caught:
        run(VerifyJob(ModelConfig(str(copy))))
    assert caught.value.exit_status == 2
    assert [line.partition(":")[0] for line in caught.value.problems] == [what]
    assert words in caught.value.problems[0]


def test_a_folder_without_a_record_is_held_against_itself(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    assert verdicts(copy) == {"vocabulary": "ok", "template": "-", "prompts": "ok", "stop": "ok", "adapter": "-"}


@pytest.mark.parametrize("samples", ['{"prompt": "a", "wanted": "b"}', '{"prompt": "a", "before": "b", "after": "c"}'])
def test_the_samples_of_every_stage_are_tried(adapter_dir: Path, tmp_path: Path, samples: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(adapter_dir, folder)
    (folder / "samples.jsonl").write_text(samples + "\n")
    assert verdicts(folder)["adapter"] == "ok"


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AlignkitError, match="holds no model"):
        run(VerifyJob(ModelConfig(str(tmp_path))))

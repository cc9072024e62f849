"""A damaged or incomplete result is refused by whoever takes it, and large files are not read twice."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit import digests as digests_module
from alignkit.commands import generate, merge, score, verify
from alignkit.digests import digests
from alignkit.errors import AlignkitError, ModelError, RunError
from alignkit.launch import compose_job, launch
from alignkit.runs.result import CHECKSUMS, check_results, seal_result

SMALL = [
    *("model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=8", "model.config.n_head=2"),
    *("model.config.n_inner=8", "model.dtype=float32", "train.max_steps=1", "train.report_to=none"),
]
HELD_OUT = "data.eval_path=pairs.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `sft` with an adapter, and one of `reward`."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "rows.jsonl").write_text('{"prompt": "Say one.", "completion": "one"}\n' * 4)
    pair = {"prompt": "Say one.", "chosen": "one", "rejected": "two"}
    (folder / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch("sft", ["name=it", *SMALL, "lora=default", "data.path=rows.jsonl", "samples=1"])
        launch(
            "reward", ["name=it", *SMALL, "template=instruction", "data.path=pairs.jsonl", "data.eval_path=pairs.jsonl"]
        )
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, to stand in and to damage."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def answered(name: str) -> None:
    job = compose_job("generate", ["sampling.max_new_tokens=2"], model={"name": name})
    generate.run(job, prompts=["Say one."], prompts_path=None, out=None)


def scored(name: str) -> None:
    score.run(compose_job("score", [], model={"name": name}, data={"path": "pairs.jsonl"}), pairs=True, out=None)


def verified(name: str) -> None:
    verify.run(compose_job("verify", [], model={"name": name}))


SFT_COMMANDS: dict[str, Callable[[str], object]] = {
    "generate": answered,
    "merge": lambda name: merge.run(compose_job("merge", [], model={"name": name}), out=Path("merged")),
    "verify": verified,
    "sft": lambda name: launch("sft", ["name=b", "model=run", f"model.name={name}", "data.path=rows.jsonl"]),
    "dpo": lambda name: launch("dpo", ["name=b", "model=run", f"model.name={name}", "data.path=pairs.jsonl"]),
}
REWARD_COMMANDS: dict[str, Callable[[str], object]] = {
    "score": scored,
    "reward of ppo": lambda name: launch(
        "ppo", ["name=b", *SMALL[:-2], "data.path=rows.jsonl", f"reward=[{{model: {name}}}]", "template=instruction"]
    ),
}


def flip(path: Path) -> None:
    """Another last bit, and all that a listing of the folder shows as before."""
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("command", SFT_COMMANDS)
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "base/model.safetensors"])
def test_a_flipped_bit_in_the_weights_is_refused(runs: Path, command: str, file: str) -> None:
    flip(runs / "runs/sft/it" / file)
    with pytest.raises(AlignkitError, match=f"{file} is damaged: it is not what the run wrote") as caught:
        SFT_COMMANDS[command]("runs/sft/it")
    assert caught.value.exit_status == 2
    assert not (runs / "runs/sft/b").exists()
    assert not (runs / "merged").exists()


@pytest.mark.parametrize("command", REWARD_COMMANDS)
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer_config.json", "chat_template.jinja", "score.json"])
def test_a_reward_run_without_a_file_is_refused(runs: Path, command: str, file: str) -> None:
    (runs / "runs/reward/it" / file).unlink()
    with pytest.raises(AlignkitError) as caught:
        REWARD_COMMANDS[command]("runs/reward/it")
    assert caught.value.exit_status == 2
    assert file in str(caught.value) or "no weights" in str(caught.value)


def test_what_was_read_is_remembered_until_it_changes_and_verify_reads_always(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = digests_module._digest
    monkeypatch.setattr(digests_module, "_SETTLED", 0)
    monkeypatch.setattr(digests_module, "_digest", lambda file, bar: read.append(file.name) or digest(file, bar))
    folder = runs / "runs/sft/it"
    check_results(folder)
    assert "adapter_model.safetensors" in read
    read.clear()
    check_results(folder)
    assert read == []
    (folder / "adapter_model.safetensors").touch()
    check_results(folder)
    assert read == ["adapter_model.safetensors"]
    flip(folder / "adapter_model.safetensors")
    check_results(folder)  # path, inode, size and time are as they were
    with pytest.raises(ModelError, match=r"files: .*adapter_model.safetensors is damaged"):
        verified("runs/sft/it")


def test_a_cache_that_cannot_be_written_is_none(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(runs / "file"))
    assert list(digests([runs / "file"]).values()) == [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    ]


def test_an_unfinished_run_is_no_model(runs: Path) -> None:
    path = runs / "runs/sft/it/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "interrupted"}))
    with pytest.raises(RunError, match=r"runs/sft/it is an unfinished run \(interrupted\)"):
        answered("runs/sft/it")


def test_runs_made_before_have_no_checksums_and_those_since_must(runs: Path) -> None:
    folder = runs / "runs/sft/it"
    (folder / CHECKSUMS).unlink()
    with pytest.raises(RunError, match=r"checksums.json cannot be read"):
        answered("runs/sft/it")
    record = json.loads((folder / "run.json").read_text())
    del record["format"]
    (folder / "run.json").write_text(json.dumps(record))
    answered("runs/sft/it")


def test_settings_that_a_person_changed_are_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs / "runs/sft/it/generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"top_k": 7, "do_sample": True}))
    answered("runs/sft/it")
    assert "generation_config.json of runs/sft/it has changed since the run wrote it" in capsys.readouterr().err
    seal_result(runs / "runs/sft/it")
    answered("runs/sft/it")
    assert "has changed" not in capsys.readouterr().err

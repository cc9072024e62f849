"""Chains that have run, and files of pipelines."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.pipeline.file import read_pipeline
from alignkit.pipeline.step import run_step
from small_project import make_project, write_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose chain has run, each step by itself in this process: nothing stopped it, and nothing will."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr("alignkit.ppo.record.plot_panels", lambda *_, **__: False)
        make_project(folder)
        pipeline = read_pipeline(["config=chain.yaml"])
        for step in pipeline.steps:
            run_step(pipeline, step)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to stand in."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def pipeline_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Write a pipeline of these steps, and return the words that name it."""
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)

    def write(steps: str) -> list[str]:
        (tmp_path / "p.yaml").write_text(steps)
        return ["config=p.yaml"]

    return write

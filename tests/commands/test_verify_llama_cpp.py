"""A real llama.cpp, run by the commands that `alignkit export` prints, serves whole weights and an adapter as trained.

LLAMA_CPP names a clone of llama.cpp that is built in build/ and has the requirements of its converters in .venv/, and
ALIGNKIT_SMOLLM2 the folder of a tokenizer that they know; without these, these tests are skipped.
"""

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignkit.commands.export import run as export
from alignkit.commands.verify import run as verify
from alignkit.config import ModelConfig
from alignkit.errors import AlignkitError
from alignkit.jobs import VerifyJob
from alignkit.launch import launch
from serving import is_healthy

LLAMA_CPP = Path(os.environ.get("LLAMA_CPP", "")).absolute()
SHORT = ["config=smoke/sft", "data.limit=8", "data.eval_path=null", "sampling.max_new_tokens=12", "samples=4"]
SHORT += ["train.max_steps=60", "train.learning_rate=2e-3", "train.report_to=none"]
BASE, ADAPTER = "runs/sft/base", "runs/sft/polite"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no llama.cpp"),
    pytest.mark.skipif("ALIGNKIT_SMOLLM2" not in os.environ, reason="ALIGNKIT_SMOLLM2 names no tokenizer"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base whose answers end in the eos token, and an adapter, in another template, whose end in another one."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        of_tokenizer = [f"model.name={Path(os.environ['ALIGNKIT_SMOLLM2']).absolute()}"]
        launch("sft", [*SHORT, "name=base", "model=tiny_llama", *of_tokenizer])
        of_base = ["model=run", f"model.name={BASE}", "lora=all_linear", "template=chatml"]
        launch("sft", [*SHORT, "name=polite", *of_base])
        (folder / "llama.cpp").symlink_to(LLAMA_CPP)
        yield folder


@pytest.fixture
def served(place: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Run the printed commands on a run, the server without the options that are left out; its address."""
    running: list[subprocess.Popen[bytes]] = []

    def served(run: str, *, without: str = "") -> str:
        capsys.readouterr()
        export(run, to="llama.cpp", overwrite=True)
        *converters, server = map(shlex.split, capsys.readouterr().out.replace("\\\n", "").splitlines())
        for python, *words in converters:
            assert python == "python"
            subprocess.run([LLAMA_CPP / ".venv" / "bin" / "python", *words], check=True, capture_output=True)
        program, *words = server
        if without:
            at = words.index(without)
            words = words[:at] + words[at + 2 :]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        with Path("llama.log").open("w") as log:
            command = [LLAMA_CPP / "build" / "bin" / program, *words, "--port", port, "--threads", "1"]
            running.append(subprocess.Popen(command, stdout=log, stderr=log))
        while not is_healthy(f"http://127.0.0.1:{port}"):
            assert running[-1].poll() is None, Path("llama.log").read_text()[-2000:]
            time.sleep(1)
        return f"http://127.0.0.1:{port}"

    yield served
    for process in running:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("run", [BASE, ADAPTER])
def test_what_the_printed_commands_serve_is_what_was_trained(
    run: str, served: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = served(run)
    capsys.readouterr()
    verify(VerifyJob(ModelConfig(run)), server=url)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["ok", "renders"],
        ["ok", "stops"],
        ["ok", "scores"],
    ]


@pytest.mark.parametrize(("without", "check"), [("--lora", "scores"), ("--chat-template-file", "renders")])
def test_a_server_without_one_of_the_options_is_found(without: str, check: str, served: Callable[..., str]) -> None:
    url = served(ADAPTER, without=without)
    with pytest.raises(AlignkitError) as caught:
        verify(VerifyJob(ModelConfig(ADAPTER)), server=url)
    assert check in " ".join(caught.value.problems)

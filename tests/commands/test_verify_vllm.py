"""A real vLLM, started by what `alignkit export` prints, serves an adapter as it was trained.

VLLM_ENV names the environment that scripts/vllm_cpu.sh has made; without it these tests are skipped.
"""

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit.commands.export import run as export
from alignkit.commands.verify import run as verify
from alignkit.config import ModelConfig
from alignkit.errors import AlignkitError
from alignkit.jobs import VerifyJob
from alignkit.launch import launch
from serving import is_healthy

VLLM = Path(os.environ.get("VLLM_ENV", "")).absolute() / "bin" / "python"
SERVER = "vllm.entrypoints.openai.api_server"
ON_A_CPU = ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--host", "127.0.0.1"]
SHORT = [
    "config=smoke/sft",
    "data.limit=8",
    "data.eval_path=null",
    "sampling.max_new_tokens=12",
    "train.report_to=none",
]
SHORT += ["train.max_steps=60", "train.learning_rate=2e-3", "samples=4"]
BASE, ADAPTER = "runs/sft/base", "runs/sft/polite"

pytestmark = [pytest.mark.slow, pytest.mark.skipif("VLLM_ENV" not in os.environ, reason="VLLM_ENV names no vLLM")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base whose answers end in one token, and an adapter whose answers end in another one."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch("sft", [*SHORT, "name=base", "model=tiny_llama"])
        of_base = ["model=run", f"model.name={BASE}", "lora=all_linear", "template=chatml"]
        launch("sft", [*SHORT, "name=polite", *of_base])
        yield folder


@pytest.fixture
def server(place: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """What the printed command starts, but for what a CPU needs; its address."""
    capsys.readouterr()
    export(ADAPTER, to="vllm", overwrite=False)
    program, serve, *words = shlex.split(capsys.readouterr().out.replace("\\\n", ""))
    assert (program, serve) == ("vllm", "serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    space = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    command = [str(VLLM), "-m", SERVER, "--model", *words, *ON_A_CPU, "--port", port]
    with Path("vllm.log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **offline, **space}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    while not is_healthy(url):
        assert process.poll() is None, Path("vllm.log").read_text()[-2000:]
        time.sleep(1)
    yield url
    process.terminate()
    process.wait()


def test_an_adapter_is_served_as_it_was_trained_and_its_base_is_not(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = VerifyJob(ModelConfig(ADAPTER))
    verify(job, server=server)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["ok", "renders"],
        ["ok", "stops"],
        ["ok", "scores"],
    ]
    with pytest.raises(AlignkitError, match="the server has the base without the adapter"):
        verify(job, server=server, name=str(Path(BASE).absolute()))

"""A real vLLM, where ALIGNKIT_VLLM names the python of its environment (scripts/vllm_cpu.sh makes one)."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from alignkit.config import SamplingConfig
from alignkit.engine.contact import Needed, contact
from alignkit.engine.handover import AdapterFolder, give_first
from alignkit.engine.probe import logprobs_of, probe
from alignkit.engine.request import Request
from alignkit.engine.spread import Spread
from alignkit.engine.vllm_server import VllmServer
from alignkit.errors import ConfigError
from alignkit.models.tiny import byte_tokenizer

PYTHON = os.environ.get("ALIGNKIT_VLLM", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="ALIGNKIT_VLLM names no python with vLLM"),
]
WARM = SamplingConfig(do_sample=True, temperature=0.7, max_new_tokens=16)
SCRIPT = Path(__file__).parents[2] / "scripts" / "vllm_cpu.sh"


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("llama"), byte_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=258, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of `tiny_llama`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = tmp_path_factory.mktemp("env")
    (env / "bin").mkdir()
    (env / "bin" / "python").write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
    (env / "bin" / "python").chmod(0o755)
    (env / "made").touch()
    at = {**os.environ, "VLLM_ENV": str(env), "PORT": str(port), "PYTHONPATH": ""}
    subprocess.run(["bash", SCRIPT, tiny_llama], env=at, check=True, timeout=600)
    yield f"http://127.0.0.1:{port}"
    subprocess.run(["bash", SCRIPT, "stop"], env=at, check=True)
    for _ in range(100):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            time.sleep(0.1)
        except OSError:
            break


def adapter(base: Path, seed: int) -> Any:
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(LlamaForCausalLM.from_pretrained(base), config).eval()


def test_a_real_server_passes_what_is_asked_of_it_and_a_second_adapter_is_the_second(
    tiny_llama: Path, url: str, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    server = VllmServer(url, timeout=300.0)
    needed = Needed("tiny", tokenizer, len(tokenizer), ["Say <|eos|> it."], 64, adapters=True)
    (served,) = contact([server], needed)
    assert served.root == str(tiny_llama)
    with pytest.raises(ConfigError, match="vocabulary is not that of tiny"):
        contact([server], Needed("tiny", tokenizer, 300, [], 64, adapters=True))
    first, second, folder = adapter(tiny_llama, 1), adapter(tiny_llama, 2), AdapterFolder(tmp_path, "run")
    place = folder.write(first, "run-1")
    give_first([server], "run-1", place)
    seen = {"eos_ids": [258], "num_tokens": len(tokenizer), "max_difference": 0.02}
    long = SamplingConfig(do_sample=True, temperature=1.3, max_new_tokens=12, min_new_tokens=6)
    (found,) = probe([server], first, [[5, 6, 7], [8, 9]], [WARM, long], **seen)
    assert found.difference < 1e-4
    with pytest.raises(ConfigError, match="another model, or another revision"):
        probe([server], second, [[5, 6, 7]], [WARM], **seen)
    spread = Spread([server], eos_ids=[258], num_tokens=len(tokenizer), seed=0)
    spread.load("run-1", place)
    asked = [Request([5, 6, 7] * 20, f"{number}", 0) for number in range(4)]
    before = spread.complete(asked, WARM)
    spread.load("run-2", folder.write(second, "run-2"))
    for completion, earlier in zip(spread.complete(asked, WARM), before, strict=True):
        assert completion != earlier
        ids = completion.token_ids + ([] if completion.end_id is None else [completion.end_id])
        own = logprobs_of(second, asked[0].prompt_ids, ids, WARM, [258])
        assert float((own - torch.tensor(completion.token_logprobs)).abs().max()) < 1e-3
    spread.close()

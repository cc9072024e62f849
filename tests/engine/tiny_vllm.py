"""vLLM's documented endpoints over a tiny model and its adapters, and the ways in which a server may be a wrong one."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class TinyVllm:
    """A server of a folder.

    Attributes:
        folder: of the base model.
        raw: tell log-probabilities before temperature.
        max_length: tokens of a prompt and its completion.
        max_rank: of adapters; 0 takes none.
        loads: adapters can be loaded while it runs.
        reads: it sees the folders of adapters.
        applies: it computes with them.
        dies_after: completions; then it answers an error.
        nonsense: what it changes in an answer.
        asked: the bodies of all completions.
        names: of all adapters that were ever loaded.
        adapters: that are loaded now.
    """

    folder: Path
    version: str | None = "0.32.0"
    raw: bool = False
    max_length: int = 512
    max_rank: int = 16
    loads: bool = True
    reads: bool = True
    applies: bool = True
    dies_after: int | None = None
    nonsense: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        """What is answered to a request: an object, a text, or an error with its status."""
        with self.lock:
            return self._answer(path, body)

    def _answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/version":
            return {"version": self.version} if self.version else None
        if path == "/v1/models":
            entry = {"id": "base", "root": str(self.folder), "parent": None, "max_model_len": self.max_length}
            return {"object": "list", "data": [entry, *({"id": name, "parent": "base"} for name in self.adapters)]}
        if path == "/tokenize":
            return {"tokens": self.tokenizer.encode(body["prompt"], add_special_tokens=False)}
        if path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter":
            if body["lora_name"] not in self.adapters:
                return 404, f"The lora adapter '{body['lora_name']}' cannot be found."
            self.adapters.remove(body["lora_name"])
            return "Success"
        if path == "/v1/completions":
            return self._complete(body)
        return None

    def _load(self, name: str, path: str) -> Any:
        if not self.loads:
            return None
        if not name:
            return 400, "Both 'lora_name' and 'lora_path' must be provided."
        if name in self.adapters:
            return 400, f"The lora adapter '{name}' has already been loaded."
        if not self.max_rank:
            return 500, "LoRA is not enabled. Use --enable-lora to enable LoRA."
        if not self.reads:
            return 404, f"Loading lora {name} failed: No adapter found for {path}"
        rank = PeftConfig.from_pretrained(path).r
        if rank > self.max_rank:
            return 500, f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(path, name)
        else:
            self.model = PeftModel.from_pretrained(self.model, path, name)
        self.adapters.append(name)
        self.names.append(name)
        return f"Success: LoRA adapter '{name}' added successfully."

    def _complete(self, body: dict[str, Any]) -> Any:
        if body["model"] not in ("base", *self.adapters):
            return 404, f"The model `{body['model']}` does not exist."
        if max(body["prompt"]) >= self.model.config.vocab_size:
            return 400, f"Token id {max(body['prompt'])} is out of vocabulary"
        if "return_token_ids" in body:
            self.asked.append(body)
            if self.dies_after is not None and len(self.asked) > self.dies_after:
                return 500, "EngineCore encountered an issue."
        self._choose(body["model"])
        ids, logprobs, ends = list(body["prompt"]), [], body.get("stop_token_ids", [])
        numbers = torch.Generator().manual_seed(body.get("seed", 0))
        while len(logprobs) < body["max_tokens"] and not (logprobs and ids[-1] in ends):
            with torch.no_grad():
                logits = self.model(torch.tensor([ids])).logits[0, -1].clone()
            if len(logprobs) < body.get("min_tokens", 0):
                logits[ends] = -torch.inf
            drawn = (logits / (body["temperature"] or 1e-6)).log_softmax(-1)
            ids.append(int(torch.multinomial(drawn.exp(), 1, generator=numbers)))
            logprobs.append(float((logits.log_softmax(-1) if self.raw else drawn)[ids[-1]]))
        drawn_ids = ids[len(body["prompt"]) :]
        choice = {
            "token_ids": drawn_ids,
            "logprobs": {"token_logprobs": logprobs},
            "finish_reason": "stop" if drawn_ids[-1] in ends else "length",
            "stop_reason": drawn_ids[-1] if drawn_ids[-1] in ends else None,
        }
        return {"choices": [{**choice, **self.nonsense}]}

    def _choose(self, name: str) -> None:
        if not isinstance(self.model, PeftModel):
            return
        if name == "base" or not self.applies:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(name)

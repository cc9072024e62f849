"""The commands by which other programs serve a run as it was trained: its template, stop tokens and arguments."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.data.encode.rendering import RowRefused
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import ConfigError
from alignkit.evaluate.served_model import ServedModel
from alignkit.json_files import read_object
from alignkit.models.source import ADAPTER_CONFIG, ModelSource
from alignkit.runs.manifest import read_manifest
from alignkit.runs.template import run_template_kwargs

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM keeps room for
# What PEFT can add to a model, and vLLM and llama.cpp load as if it were not there, or refuse.
_NOT_LORA = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules (modules_to_save)",
    "trainable_token_indices": "rows of the embedding (trainable_token_indices)",
    "target_parameters": "parameters of experts (target_parameters)",
    "alora_invocation_tokens": "an activated LoRA (alora_invocation_tokens)",
}
# What stays here: a page for others needs no checkpoint, and no name of a machine, a folder or a row.
_NOT_PUBLISHED = (
    "checkpoints/*",
    "tensorboard/*",
    "value/*",
    "*.jsonl",
    "*.png",
    "log.txt",
    "run.json",
    "checksums.json",
    ".*",
)


@dataclass(frozen=True)
class Serving:
    """A run, to be served.

    Attributes:
        folder: of the run.
        source: the same as a model.
        policy: its tokenizer and template.
    """

    folder: Path
    source: ModelSource
    policy: ServedModel

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.folder.resolve().name

    @property
    def kwargs(self) -> dict[str, Any]:
        """Arguments of the template."""
        return run_template_kwargs(self.folder) or {}

    @property
    def trusts_code(self) -> bool:
        """Whether the model brings code that the run trusted."""
        manifest = read_manifest(self.folder) or {}
        return bool(manifest.get("job", {}).get("model", {}).get("trust_remote_code"))


def check_adapter(source: ModelSource, to: str) -> list[str]:
    """List what of an adapter another program does not load, with the way out; empty where it is none."""
    if not source.is_adapter or source.folder is None:
        return []
    config = read_object(source.folder / ADAPTER_CONFIG)
    found = [words for key, words in _NOT_LORA.items() if config.get(key)]
    found += ["biases"] if config.get("bias", "none") != "none" else []
    return [
        f"--to {to}: the adapter {source.folder} has {what} beside LoRA, which {to} does not load: "
        f"alignkit merge {source.folder} FOLDER, and export that"
        for what in found
    ]


def vllm(run: Serving) -> Iterator[str]:
    """Yield the command that serves a run with vLLM.

    An adapter is served beside its base, whose own template and stop tokens are replaced by those of the run.
    """
    base = run.source.base
    words = [["vllm", "serve", str(base.location)]]
    if run.source.is_adapter:
        if base.config.revision:
            words.append(["--revision", base.config.revision])
        words.append(["--enable-lora", "--max-lora-rank", str(_room(run.source))])
        words.append(["--lora-modules", f"{run.name}={run.folder}"])
        words.append(["--chat-template", str(run.folder / "chat_template.jinja")])
        words.append(["--generation-config", str(run.folder)])
    else:
        words.append(["--served-model-name", run.name])
    if run.kwargs:
        words.append(["--default-chat-template-kwargs", json.dumps(run.kwargs)])
    words += [["--trust-remote-code"]] if run.trusts_code else []
    yield _command(words)


def llama_cpp(run: Serving) -> Iterator[str]:
    """Yield the commands that convert a run with llama.cpp, and serve it."""
    yield from converted(run)
    words = [["llama-server", "--model", _gguf_name(run)], ["--alias", run.name, "--jinja"]]
    if run.source.is_adapter:
        words.append(["--lora", f"{run.name}-lora.gguf"])
        words.append(["--chat-template-file", str(run.folder / "chat_template.jinja")])
    if run.kwargs:
        words.append(["--chat-template-kwargs", json.dumps(run.kwargs)])
    end_id = run.policy.template.end_id
    if end_id != run.policy.tokenizer.eos_token_id:  # what llama.cpp stops at, and few other tokens
        words.append(["--override-kv", f"tokenizer.ggml.eot_token_id=int:{end_id}"])
    yield _command(words)


def ollama(run: Serving) -> Iterator[str]:
    """Yield the commands that convert a run with llama.cpp, and create a model of Ollama with its template."""
    yield from converted(run)
    adapter = [f"ADAPTER ./{run.name}-lora.gguf"] if run.source.is_adapter else []
    stops = [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in run.policy.template.stops]
    lines = [f"FROM ./{_gguf_name(run)}", *adapter, f'TEMPLATE """{ollama_template(run.policy)}"""', *stops]
    yield "\n".join(["cat > Modelfile <<'END_OF_MODELFILE'", *lines, "END_OF_MODELFILE"])
    yield _command([["ollama", "create", run.name, "--file", "Modelfile"]])


def hub(run: Serving) -> Iterator[str]:
    """Yield the command that uploads a run, without what is of this machine alone."""
    base = run.source.base
    if run.source.is_adapter and base.folder not in (None, run.folder / "base"):
        yield f"# its base is a folder of this machine, which nobody else has: alignkit merge {run.folder} FOLDER"
    words = [["hf", "upload", f"YOUR_NAME/{run.name}", str(run.folder), "."]]
    yield _command(words + [["--exclude", pattern] for pattern in _NOT_PUBLISHED])


TARGETS: Mapping[str, Callable[[Serving], Iterator[str]]] = {
    "vllm": vllm,
    "llama.cpp": llama_cpp,
    "ollama": ollama,
    "hub": hub,
}
CONVERTED = ("llama.cpp", "ollama")  # what reads the files of llama.cpp's converter


def converted(run: Serving) -> Iterator[str]:
    """Yield the commands that make GGUF files of a run: of its weights, or of its base and its adapter."""
    base = run.source.base
    folder = str(base.location)
    if base.folder is None:
        folder = Path(base.config.name).name
        revision = [["--revision", base.config.revision]] if base.config.revision else []
        yield _command([["hf", "download", base.config.name], *revision, ["--local-dir", folder]])
    yield _command([["python", "llama.cpp/convert_hf_to_gguf.py", folder, "--outfile", _gguf_name(run)]])
    if run.source.is_adapter:
        words = ["python", "llama.cpp/convert_lora_to_gguf.py", str(run.folder)]
        yield _command([words, ["--base", folder, "--outfile", f"{run.name}-lora.gguf"]])


def ollama_template(policy: ServedModel) -> str:
    """Render a turn with the names of Ollama in the place of its texts: what Ollama repeats for each turn.

    Raises:
        ConfigError: the template writes turns otherwise than one after the other, which Ollama cannot.
    """
    template = policy.template
    question, answer = Message("user", "{{ .Prompt }}"), Message("assistant", "{{ .Response }}")
    try:
        turn = template.text(Conversation((question, answer)))
        two = template.text(Conversation((question, answer, question, answer)))
        asked = template.text(Conversation((question,)), add_generation_prompt=True)
    except RowRefused as error:
        raise ConfigError(f"--to ollama: {error}") from error
    bos = policy.tokenizer.bos_token or ""
    turn, two, asked = (text.removeprefix(bos) for text in (turn, two, asked))
    between = two.removeprefix(turn).removesuffix(turn)
    if two != turn + between + turn or not turn.startswith(asked):
        raise ConfigError(
            f"--to ollama: the template {template.name} writes a turn otherwise where another one follows, which "
            "Ollama's templates cannot: serve it with --to vllm or --to llama.cpp"
        )
    answered = turn.removeprefix(asked) + between
    if not answered.startswith(answer.content):  # such as a blank, which belongs to the answer and not to the prompt
        answered = f"{{{{ if .Response }}}}{answered}{{{{ end }}}}"
    return _system(policy, question, bos) + asked + answered


def _system(policy: ServedModel, question: Message, bos: str) -> str:
    """What a system message adds in front of a turn, for the turns that have one."""
    try:
        policy.template.check(Conversation((Message("system", "s"), question)))
        both = policy.template.text(Conversation((Message("system", "{{ .System }}"), question))).removeprefix(bos)
    except RowRefused:
        return ""
    alone = policy.template.text(Conversation((question,))).removeprefix(bos)
    return f"{{{{ if .System }}}}{both.removesuffix(alone)}{{{{ end }}}}" if both.endswith(alone) else ""


def _gguf_name(run: Serving) -> str:
    return f"{run.name}-base.gguf" if run.source.is_adapter else f"{run.name}.gguf"


def _room(source: ModelSource) -> int:
    assert source.folder is not None
    config = read_object(source.folder / ADAPTER_CONFIG)
    rank = max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()])
    return next((room for room in _RANKS if room >= rank), rank)


def _command(words: list[list[str]]) -> str:
    """A command over as many lines as it has groups of words."""
    return " \\\n    ".join(shlex.join(group) for group in words)

"""Print how another program serves a run as it was trained, and write the page that the hub shows of it."""

from __future__ import annotations

from pathlib import Path

from alignkit.config import ModelConfig, TemplateConfig
from alignkit.errors import AlignkitError, ConfigError, did_you_mean
from alignkit.evaluate.model_card import MARK, model_card
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.serving import CONVERTED, TARGETS, Serving, check_adapter
from alignkit.models.reward_readme import HEADING, reward_readme
from alignkit.models.source import ModelSource, near_models, source_problems
from alignkit.models.tiny import byte_tokenizer
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import ASIDE, run_log
from alignkit.runs.manifest import read_manifest
from alignkit.runs.output import writing

_README = "README.md"


def run(name: str, *, to: str, overwrite: bool) -> None:
    """Print the commands to standard output, and write README.md into the folder.

    Args:
        name: folder of the run, or of what was merged of one.
        to: a key of `TARGETS`.
        overwrite: replace a README.md that somebody else wrote.

    Raises:
        ConfigError: there is no such folder or program, or the program does not load what is in it.
        RunError: the run is unfinished or damaged.
    """
    folder = Path(name)
    source = ModelSource.of(ModelConfig(name))
    _check(folder, source, to)
    with run_log(ASIDE):
        exported = Serving(folder, source, ServedModel.of(source.config, TemplateConfig(name="native")))
        commands = list(TARGETS[to](exported))
        page = _page(exported)
    for command in commands:
        SafeConsole().print(command, markup=False, highlight=False, emoji=False)
    told = [_written(folder, page, overwrite=overwrite)]
    if to in CONVERTED and exported.policy.tokenizer.get_vocab() == byte_tokenizer().get_vocab():
        told.append(f"{folder} reads bytes, as tiny models do: llama.cpp's converter refuses its tokenizer; --to vllm")
    for line in told:
        SafeConsole(stderr=True).print(line, markup=False, highlight=False, emoji=False)


def _check(folder: Path, source: ModelSource, to: str) -> None:
    problems = []
    if to not in TARGETS:
        problems.append(f"--to {to}: choose {', '.join(TARGETS)}{did_you_mean(to, TARGETS)}")
    try:
        if source.folder is None:
            problems.append(f"there is no folder {folder}{near_models(str(folder))}")
        elif of_model := [line.removeprefix("model.name: ") for line in source_problems(source, wants_reward=None)]:
            problems += of_model
        elif source.is_reward and to != "hub":
            problems.append(f"--to {to}: {folder} is a reward model, which scores as {folder / _README} says; --to hub")
        elif to in TARGETS and to != "hub":
            problems += check_adapter(source, to)
    except AlignkitError as error:
        problems += error.problems
    if problems:
        raise ConfigError(*problems)


def _page(exported: Serving) -> str | None:
    """The page of a run; None of a folder that has no record."""
    if read_manifest(exported.folder) is None:
        return None
    if not exported.source.is_reward:
        return model_card(exported.folder, exported.source, usage=_usage(exported))
    scores = reward_readme(
        end_token=exported.policy.template.end_token, kwargs=exported.kwargs, is_adapter=exported.source.is_adapter
    )
    return model_card(exported.folder, exported.source, usage=scores.replace(HEADING, "## Use", 1))


def _usage(exported: Serving) -> str:
    is_adapter = exported.source.is_adapter
    package, kind = ("peft", "AutoPeftModelForCausalLM") if is_adapter else ("transformers", "AutoModelForCausalLM")
    arguments = "".join(f", {key}={value!r}" for key, value in exported.kwargs.items())
    ends = " or ".join(f"`{stop}`" for stop in exported.policy.template.stops)
    return f"""## Use

The chat template and the generation config in this repository are those of the training: an answer ends in {ends}.

```python
from {package} import {kind}
from transformers import AutoTokenizer

name = "YOUR_NAME/{exported.name}"
tokenizer = AutoTokenizer.from_pretrained(name)
model = {kind}.from_pretrained(name)
messages = [{{"role": "user", "content": "…"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{arguments}
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0, inputs["input_ids"].shape[1] :]))
```
"""


def _written(folder: Path, page: str | None, *, overwrite: bool) -> str:
    """Write the page, unless somebody else's is there; what became of it, in a line."""
    path = folder / _README
    if page is None:
        return f"{folder} has no record of a training: no {_README} is written"
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else MARK
    if not (overwrite or MARK in before or before.startswith(HEADING)):
        return f"{path} is left as it is: alignkit did not write it; --overwrite replaces it"
    with writing(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return f"model card {path}"

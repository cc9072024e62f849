"""Check that a folder serves what was trained: the same prompt tokens, the same stop token, the same weights."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from transformers import GenerationConfig, PreTrainedTokenizerBase

from alignkit.config import ControlTokens, Dtype, ModelConfig, TemplateConfig
from alignkit.data.encode.masking import EncodeRules, encode_prompt
from alignkit.data.encode.rendering import RowRefused, first_difference
from alignkit.data.encode.templates import Template, load_template
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import AlignkitError, ConfigError, ModelError, TemplateError
from alignkit.evaluate.adapter_merge import ARITHMETIC, BOUNDS, merge_difference, merged_dtype
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.trained import example_answers, example_rows, training_sections
from alignkit.jobs import VerifyJob
from alignkit.models.load import check_model, load_tokenizer, merge_problems
from alignkit.models.memory import explain_out_of_memory
from alignkit.models.skeleton import skeleton
from alignkit.models.source import ModelSource
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import run_log
from alignkit.runs.manifest import run_time
from alignkit.runs.result import CHECKSUMS, WEIGHTS, result_problems
from alignkit.runs.template import with_run_kwargs

logger = logging.getLogger(__name__)

_NUM_PROMPTS = 16  # of the run's own, beside those below
_RULES = EncodeRules(control_tokens=ControlTokens.neutralise)
_SERVED = TemplateConfig(name="native")  # what a server reads: the template in the folder


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: the check, in a word or two.
        verdict: `ok`, `FAIL`, or `-` if there was nothing to check.
        detail: what was found.
    """

    what: str
    verdict: str
    detail: str


def run(job: VerifyJob) -> None:
    """Run every check, print the findings, and fail if anything differs.

    Raises:
        ConfigError: the folder is no model.
        ModelError: the folder serves something else than was trained; one line for each failed check.
    """
    folder = ModelSource.of(job.model).folder
    try:
        check_model(job.model)
        if problems := merge_problems(job.model):
            raise ConfigError(*problems)
    except AlignkitError as error:
        raise ConfigError(*error.problems) from error
    if folder is None:
        raise ConfigError(f"model.name: {job.model.name} is no folder here: verify looks at what a run wrote")
    with run_log(), explain_out_of_memory("the weights are compared in float32, which takes four bytes for each"):
        findings = list(examine(folder, job.model))
        findings.append(_files(folder, findings))
    console = SafeConsole()
    styles = {"ok": "green", "FAIL": "bold red", "-": "dim"}
    for found in findings:
        console.print(Text.assemble((f"{found.verdict:<5}", styles[found.verdict]), f"{found.what:<10} {found.detail}"))
    failed = [f"{found.what}: {found.detail}" for found in findings if found.verdict == "FAIL"]
    if failed:
        raise ModelError(*failed)


def examine(folder: Path, model: ModelConfig) -> Iterator[Finding]:
    """Yield every finding about a model folder, from its vocabulary to its weights."""
    tokenizer = load_tokenizer(model)
    yield _vocabulary(tokenizer, model)
    section = with_run_kwargs(_SERVED, folder)
    try:
        served = load_template(section, tokenizer)
    except TemplateError as error:
        yield Finding("template", "FAIL", str(error).removeprefix("template.name=native: "))
        return
    trained, template, where = _as_trained(folder, tokenizer, served)
    yield Finding("template", "ok" if where else "-", where or "no record of the training: compared with itself")
    if section.kwargs:
        flag = f"--default-chat-template-kwargs {shlex.quote(json.dumps(section.kwargs))}"
        yield Finding("arguments", "-", f"a server needs {flag}")
    yield _prompts(folder, trained, template, tokenizer, section.kwargs)
    yield _stop(folder, template)
    yield _adapter(model)


def _files(folder: Path, findings: Sequence[Finding]) -> Finding:
    """Read every file of a run again; a change whose effect another check has told is no failure of its own."""
    problems, changed = result_problems(folder, read_again=True)
    wrong = [*problems, *(f"{name} has changed since the run wrote it" for name in changed)]
    if wrong:
        is_told = any(found.verdict == "FAIL" for found in findings) and not any(WEIGHTS in line for line in wrong)
        return Finding("files", "-" if is_told else "FAIL", "; ".join(wrong))
    if not (folder / CHECKSUMS).is_file():
        return Finding("files", "-", "no checksums to compare with")
    return Finding("files", "ok", "every file is what the run wrote")


def _vocabulary(tokenizer: PreTrainedTokenizerBase, model: ModelConfig) -> Finding:
    embeddings: Any = skeleton(model).get_input_embeddings()
    num_rows = len(embeddings.weight)
    highest = max(tokenizer.get_vocab().values())
    detail = f"{len(tokenizer):,} tokens, {num_rows:,} embeddings"
    return Finding("vocabulary", "ok" if highest < num_rows else "FAIL", detail)


def _as_trained(
    folder: Path, tokenizer: PreTrainedTokenizerBase, served: Template
) -> tuple[PreTrainedTokenizerBase, Template, str]:
    """Load tokenizer and template as the training had them; the folder's own if it has no record of a training."""
    sections = training_sections(folder)
    if sections is None:
        return tokenizer, served, ""
    model, template = sections
    try:
        policy = ServedModel.of(model, template, check=False, now=run_time(folder))
    except AlignkitError as error:
        logger.warning("the template of the training cannot be loaded: %s", error)
        return tokenizer, served, ""
    return policy.tokenizer, policy.template, f"trained with {policy.template.name} on {model.name}"


def _prompts(
    folder: Path,
    trained: PreTrainedTokenizerBase,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    kwargs: Mapping[str, Any],
) -> Finding:
    """Compare the prompt tokens of the training with those of the folder's `apply_chat_template`."""
    serve: Any = partial(tokenizer.apply_chat_template, add_generation_prompt=True, **kwargs)
    num_same, problem = 0, ""
    for messages in _conversations(folder):
        try:
            ids = encode_prompt(Conversation(messages), template, trained, _RULES)
        except RowRefused:
            continue  # the template has no place for it: nobody was trained on such a thing
        text = template.text(Conversation(messages), add_generation_prompt=True)
        dicts = [template.as_dict(message) for message in messages]
        try:
            rendered = str(serve(dicts, tokenize=False))
            served_ids = serve(dicts, tokenize=True, return_dict=False)
        except Exception as error:  # whatever the folder's Jinja does
            problem = problem or f"the folder's template refuses what was trained on: {error}"
            continue
        if rendered != text:
            problem = problem or first_difference(rendered, text)
        elif served_ids == ids:
            num_same += 1
        else:
            problem = problem or f"{text!r} is {ids} in training and {served_ids} when it is served"
    if problem:
        return Finding("prompts", "FAIL", problem)
    return Finding("prompts", "ok", f"{num_same} rendered to the tokens of the training")


def _conversations(folder: Path) -> Iterator[tuple[Message, ...]]:
    user, answer = Message("user", "What is it?"), Message("assistant", "A test.")
    yield (user,)
    yield (Message("user", "  two\n\nlines, ünïcödé 🦉 "),)
    yield (Message("user", "Translate.", input="Guten Tag"),)
    yield (Message("system", "Be brief."), user)
    yield (user, answer, Message("user", "And that?"))
    for prompt, _ in list(example_answers(folder))[:_NUM_PROMPTS]:
        yield (Message("user", prompt),)


def _stop(folder: Path, template: Template) -> Finding:
    try:
        known = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:
        known = None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of values that it cannot have
        return Finding("stop", "FAIL", f"{folder / 'generation_config.json'} is damaged: {error}")
    ids = known if isinstance(known, list) else [] if known is None else [known]
    ends = ", ".join(f"{text} ({i})" for text, i in zip(template.stops, template.stop_ids, strict=True))
    detail = f"a turn ends in {ends}, generation stops at {ids or 'nothing'}"
    return Finding("stop", "ok" if set(template.stop_ids) <= set(ids) else "FAIL", detail)


def _adapter(model: ModelConfig) -> Finding:
    if not ModelSource.of(model).is_adapter:
        return Finding("adapter", "-", "there is none")
    policy = ServedModel.of(replace(model, dtype=Dtype.float32), _SERVED, check=False).load(seed=0)
    bound = BOUNDS[torch.float32]
    difference = merge_difference(policy, example_rows(policy), ARITHMETIC[merged_dtype(model)])
    detail = f"merged into its base it differs by {difference:.2e} nats at most (bound {bound:g})"
    return Finding("adapter", "ok" if difference <= bound else "FAIL", detail)

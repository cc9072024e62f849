"""Check that a folder, or a server, serves what was trained: the same prompt tokens, stop token and weights."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from transformers import GenerationConfig, PreTrainedTokenizerBase

from alignkit.choices import ControlTokens, Dtype
from alignkit.config import ModelConfig, TemplateConfig
from alignkit.data.encode.masking import EncodeRules, encode_prompt
from alignkit.data.encode.rendering import RowRefused, first_difference
from alignkit.data.encode.templates import Template, load_template
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import AlignkitError, ConfigError, ModelError, TemplateError
from alignkit.evaluate.adapter_merge import ARITHMETIC, BOUNDS, merge_difference, merged_dtype
from alignkit.evaluate.finding import Finding
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.server import Server
from alignkit.evaluate.server_checks import MAX_DIFFERENCE, Asked, examine_server
from alignkit.evaluate.trained import example_answers, example_rows, training_sections
from alignkit.jobs import VerifyJob
from alignkit.models.load import check_model, load_tokenizer, merge_problems
from alignkit.models.memory import explain_out_of_memory
from alignkit.models.skeleton import skeleton
from alignkit.models.source import ModelSource
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import ASIDE, run_log
from alignkit.runs.manifest import run_time
from alignkit.runs.result import CHECKSUMS, WEIGHTS, result_problems
from alignkit.runs.template import with_run_kwargs

logger = logging.getLogger(__name__)

_NUM_PROMPTS = 16  # of the run's own, beside those below
_RULES = EncodeRules(control_tokens=ControlTokens.neutralise)
_SERVED = TemplateConfig(name="native")  # what a server reads: the template in the folder


def run(job: VerifyJob, *, server: str | None = None, name: str | None = None) -> None:
    """Run every check, print the findings, and fail if anything differs.

    Args:
        job: the settings.
        server: address of a running server, which is compared with the training in place of the folder.
        name: of the model on it.

    Raises:
        ConfigError: the folder is no model, or there is no such server.
        RunError: a run that a server is compared with is unfinished or damaged.
        ModelError: something else is served than was trained; one line for each failed check.
    """
    folder = _checked(job, server, name)
    with run_log(ASIDE), explain_out_of_memory("the weights are compared in float32, which takes four bytes for each"):
        if server is None:
            findings = list(examine(folder, job.model))
            findings.append(_files(folder, findings))
        else:
            findings = list(_examine_server(folder, job, server, name))
    console = SafeConsole()
    styles = {"ok": "green", "FAIL": "bold red", "-": "dim"}
    for found in findings:
        console.print(Text.assemble((f"{found.verdict:<5}", styles[found.verdict]), f"{found.what:<10} {found.detail}"))
    failed = [f"{found.what}: {found.detail}" for found in findings if found.verdict == "FAIL"]
    if failed:
        raise ModelError(*failed)


def _checked(job: VerifyJob, server: str | None, name: str | None) -> Path:
    problems = []
    if server is None:
        given = {"--model": name, "max_difference": job.max_difference}
        problems += [f"{word} has no effect without --server" for word, value in given.items() if value is not None]
    try:
        check_model(job.model)
        problems += merge_problems(job.model)
    except AlignkitError as error:
        problems += error.problems
    folder = ModelSource.of(job.model).folder
    if folder is None and not problems:
        problems.append(f"model.name: {job.model.name} is no folder here: verify looks at what a run wrote")
    if folder is None or problems:
        raise ConfigError(*problems)
    return folder


def _examine_server(folder: Path, job: VerifyJob, url: str, name: str | None) -> Iterator[Finding]:
    policy = ServedModel.of(replace(job.model, dtype=Dtype.float32), _SERVED)
    tokenizer, template, where = _as_trained(folder, policy.tokenizer, policy.template)
    with closing(Server(url)) as server:
        server.choose(name, folder)
        yield Finding("model", "-", f"{server.model} of {url}, {where or 'compared with the folder itself'}")
        bound = job.max_difference if job.max_difference is not None else MAX_DIFFERENCE
        asked = list(_asked(folder, tokenizer, template))
        yield from examine_server(server, asked, tokenizer, policy, max_difference=bound)


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
    for asked in _asked(folder, trained, template):
        try:
            rendered = str(serve(asked.messages, tokenize=False))
            served_ids = serve(asked.messages, tokenize=True, return_dict=False)
        except Exception as error:  # whatever the folder's Jinja does
            problem = problem or f"the folder's template refuses what was trained on: {error}"
            continue
        if rendered != asked.text:
            problem = problem or first_difference(rendered, asked.text)
        elif served_ids == asked.ids:
            num_same += 1
        else:
            problem = problem or f"{asked.text!r} is {asked.ids} in training and {served_ids} when it is served"
    if problem:
        return Finding("prompts", "FAIL", problem)
    return Finding("prompts", "ok", f"{num_same} rendered to the tokens of the training")


def _asked(folder: Path, trained: PreTrainedTokenizerBase, template: Template) -> Iterator[Asked]:
    """Render conversations as the training did."""
    for messages in _conversations(folder):
        try:
            ids = encode_prompt(Conversation(messages), template, trained, _RULES)
        except RowRefused:
            continue  # the template has no place for it: nobody was trained on such a thing
        text = template.text(Conversation(messages), add_generation_prompt=True)
        yield Asked([template.as_dict(message) for message in messages], text, ids)


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

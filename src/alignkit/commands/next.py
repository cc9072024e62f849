"""Show the distribution of the next token: which tokens are likely, and which of them the sampling settings leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.columns import Columns
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from alignkit.config import ModelConfig, SamplingConfig
from alignkit.errors import ConfigError, DataError
from alignkit.evaluate.arguments import check_models
from alignkit.evaluate.next_plot import plot_next, plot_walk
from alignkit.evaluate.next_tokens import NextTokens, Token
from alignkit.evaluate.prompts import read_prompts
from alignkit.evaluate.served_model import ServedModel
from alignkit.jobs import NextJob
from alignkit.models.load import num_positions
from alignkit.models.memory import explain_out_of_memory
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import ASIDE, run_log
from alignkit.runs.output import outputs, writing
from alignkit.sampling.distribution import distribution, entropy
from alignkit.sampling.settings import check_sampling
from alignkit.terminal import printable

_BAR_WIDTH = 24


def run(job: NextJob, *, runs: Sequence[str], prompt: str, response: str | None, png: Path | None) -> None:
    """Show the distribution after a prompt, or at each token of a response; in the terminal and as a picture.

    Raises:
        ConfigError, DataError, ModelError: the user's mistake.
    """
    _check(job, runs, prompt, png)
    with outputs(png=png):
        with run_log(ASIDE), explain_out_of_memory("take model.dtype=bfloat16, or a shorter text"):
            views = [view for name in runs for view in _views(job, replace(job.model, name=name), prompt, response)]
        console = SafeConsole()
        shown = [(_next_table if response is None else _walk_table)(view) for view in views]
        console.print(Columns(shown, padding=(1, 4)))  # side by side where the terminal is wide enough
        if png is not None:
            with writing(png) as aside:
                (plot_next if response is None else plot_walk)(views, aside)
            console.print(f"picture: {png}", markup=False, highlight=False)


def _views(job: NextJob, model: ModelConfig, prompt: str, response: str | None) -> Iterator[NextTokens]:
    policy = ServedModel.of(model, job.template)
    (ids,) = policy.encode(read_prompts([prompt], None, format="auto", columns={}))
    response_ids: list[int] = []
    if response is not None:
        text = policy.template.response_lead + response
        response_ids = [*policy.tokenizer(text, add_special_tokens=False)["input_ids"], policy.template.end_id]
    policy.load(seed=0)
    longest = num_positions(policy.weights.config)
    if longest is not None and len(ids) + len(response_ids) > longest:
        raise DataError(
            f"--prompt: {len(ids) + len(response_ids)} tokens are more than the model's {longest} positions"
        )
    with torch.inference_mode():
        everything = torch.tensor([[*ids, *response_ids]], device=policy.weights.device)
        logits_TV = policy.weights(input_ids=everything, use_cache=False).logits[0, len(ids) - 1 :].float().cpu()
    temperatures = job.temperatures or [job.sampling.temperature]
    for temperature in temperatures:
        sampling = replace(job.sampling, temperature=temperature)
        label = model.name if temperature is None else f"{model.name}, temperature {temperature:g}"
        whole_TV, left_TV = _before_and_after(logits_TV, sampling, [*ids, *response_ids], len(ids))
        if response is None:
            chosen = whole_TV[0].argsort(descending=True, stable=True)[: job.num_tokens].tolist()
            tokens = [_token(policy, token, whole_TV[0], left_TV[0]) for token in chosen]
        else:
            tokens = [_token(policy, token, whole_TV[t], left_TV[t]) for t, token in enumerate(response_ids)]
        entropies = (entropy(whole_TV[0]).item(), entropy(left_TV[0]).item())
        yield NextTokens(label, tokens, int((left_TV[0] > 0).sum()), whole_TV.shape[-1], entropies)


def _before_and_after(
    logits_TV: Tensor, sampling: SamplingConfig, ids: Sequence[int], num_prompt: int
) -> tuple[Tensor, Tensor]:
    """Compute the distributions `[T, V]` at each position of a response, before and after truncation."""
    untruncated = replace(sampling, do_sample=True, top_k=None, top_p=None, min_p=None)
    whole, left = [], []
    for t, logits_V in enumerate(logits_TV):
        previous = torch.tensor(ids[: num_prompt + t])
        whole.append(distribution(logits_V, untruncated, previous))
        left.append(distribution(logits_V, sampling, previous))
    return torch.stack(whole), torch.stack(left)


def _token(policy: ServedModel, token: int, whole_V: Tensor, left_V: Tensor) -> Token:
    before = whole_V[token]
    rank = int((whole_V > before).sum() + (whole_V[:token] == before).sum()) + 1
    return Token(_shown(policy, token), rank, before.item(), left_V[token].item(), entropy(whole_V).item())


def _shown(policy: ServedModel, token: int) -> str:
    text = policy.decode([token])
    if "�" in text:  # part of a character
        return printable(str(policy.tokenizer.convert_ids_to_tokens(token)))
    return repr(text)[1:-1].replace(" ", "·")


def _next_table(view: NextTokens) -> Group:
    before, after = view.entropies
    kept = f"; truncation keeps {view.num_kept}, entropy {after:.3f}" if view.num_kept < view.num_tokens else ""
    summary = Text(f"{view.num_tokens} tokens, entropy {before:.3f} nats{kept}")
    table = Table(box=None, pad_edge=False, show_edge=False)
    for heading in ("rank", "before", "after"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("token", no_wrap=True)
    most = max(max(token.before, token.after) for token in view.tokens)
    for token in view.tokens:
        share = token.after if token.after else token.before
        bar = Text(("█" if token.after else "░") * max(round(_BAR_WIDTH * share / most), 1))
        bar.stylize("green" if token.after else "dim")
        after_text = f"{token.after:.4f}" if token.after else "·"
        table.add_row(str(token.rank), f"{token.before:.4f}", after_text, bar, Text(token.text))
    return Group(Text(view.label, style="bold"), summary, table)


def _walk_table(view: NextTokens) -> Group:
    table = Table(box=None, pad_edge=False, show_edge=False)
    for heading in ("rank", "before", "after", "entropy"):
        table.add_column(heading, justify="right")
    table.add_column("token", no_wrap=True)
    for token in view.tokens:
        after = f"{token.after:.4f}" if token.after else "·"
        table.add_row(str(token.rank), f"{token.before:.4f}", after, f"{token.entropy:.3f}", Text(token.text))
    logprob = torch.tensor([token.before for token in view.tokens]).log().sum().item()
    impossible = sum(token.after == 0 for token in view.tokens)
    note = f"; truncation rules {impossible} of them out" if impossible else ""
    summary = Text(f"log-probability {logprob:.3f} nats over {len(view.tokens)} tokens, end included{note}")
    return Group(Text(view.label, style="bold"), table, summary)


def _check(job: NextJob, runs: Sequence[str], prompt: str, png: Path | None) -> None:
    problems = check_sampling(job.sampling)
    if not prompt.strip():
        problems.append("--prompt is empty")
    for item in dataclasses.fields(SamplingConfig):
        if item.name in ("max_new_tokens", "min_new_tokens", "stop"):
            default = item.default if item.default is not dataclasses.MISSING else []
            if getattr(job.sampling, item.name) != default:
                problems.append(f"sampling.{item.name} has no effect on a single token: remove it")
    problems += [f"temperatures holds {t}: it must be above 0" for t in job.temperatures if not t > 0]
    if job.temperatures and job.sampling.temperature not in (None, 1.0):
        problems.append("temperatures and sampling.temperature both set the temperature: give one of them")
    if png is not None and png.suffix != ".png":
        problems.append(f"--png {png}: the name of a picture ends in .png")
    problems += check_models(runs, job.model)
    if problems:
        raise ConfigError(*problems)

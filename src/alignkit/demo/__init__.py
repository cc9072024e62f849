"""`alignkit demo`: train a tiny model from random weights through SFT, a reward model, PPO and DPO, offline."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignkit.data.files.shipped import shipped_file
from alignkit.launch import compose_job
from alignkit.runs.console import SafeConsole
from alignkit.terminal import one_line

# Who answers in the end: the name, and what `alignkit generate` is given for it.
_POLICIES = {
    "base": ["model=tiny_gpt2", "template=instruction"],
    "SFT": ["model.name={folder}/sft"],
    "PPO": ["model.name={folder}/ppo"],
    "DPO": ["model.name={folder}/dpo"],
}
_SHOWN_ROWS = 3
_SHOWN_ANSWERS = 5
_SHOWN = 24  # characters of one
_TOGETHER = 100  # answers at once


@dataclass(frozen=True)
class PolicyResult:
    """The answers of a policy to the held-out prompts, and their figures.

    Attributes:
        answers: one sampled for each pair's prompt.
        scores: the reward model's, one for each of those.
        preferred: the share of answers that begin as the chosen ones do.
        right: the share of the other tasks that greedy decoding answers exactly.
    """

    answers: list[str]
    scores: list[float]
    preferred: float
    right: float


def show(folder: Path, *, seed: int = 0) -> tuple[dict[str, Any], dict[str, PolicyResult]]:
    """Show what the loss sees; train a policy, a reward model and two better policies; compare their held-out answers.

    Args:
        folder: the runs `sft`, `reward`, `ppo` and `dpo` are written here, over those of a former demo.
        seed: of every random draw.

    Returns:
        The reward model's report card, and what each policy says in the end.
    """
    from alignkit.commands.inspect import run as inspect
    from alignkit.stages.sft.data import view as view_rows

    console = SafeConsole()
    recipe = f"config={_recipe('sft')}"
    _title(console, "1  What the loss sees", f"alignkit inspect sft {recipe}")
    view = view_rows(compose_job("sft", [recipe]))
    inspect(view, num_rows=_SHOWN_ROWS, html=None, as_json=False, golden=None)
    reward, start = folder / "reward", [f"model.name={folder / 'sft'}"]
    _train(console, "2  A random model learns small tasks on words", "sft", folder, seed)
    _train(console, "3  A reward model learns which answer is better", "reward", folder, seed, start)
    paid = f"reward=[{{model: {reward}}}]"
    _train(console, "4  What the reward model pays is made likelier", "ppo", folder, seed, [*start, paid])
    _train(console, "5  Or the better answers themselves are, without it", "dpo", folder, seed, start)
    pairs = _read("heldout_pairs.jsonl")
    runs = " ".join(str(folder / stage) for stage in ("sft", "ppo", "dpo"))
    options = f"--reward {reward} --prompts {shipped_file('heldout_pairs.jsonl')}"
    _title(console, "6  Words that none of them has seen", f"alignkit compare {runs} {options} sampling=nucleus")
    policies = {
        name: _ask([*(word.format(folder=folder) for word in words), f"seed={seed}"], pairs, reward)
        for name, words in _POLICIES.items()
    }
    for table in _tables(pairs, policies):
        console.print(table, "")
    next_ = f"alignkit generate {shlex.quote(str(folder / 'ppo'))} --prompt {shlex.quote(pairs[0]['prompt'])}"
    console.print(f"next: {next_}", markup=False, highlight=False)
    card = json.loads((reward / "report_card.json").read_text(encoding="utf-8"))["eval"]
    return card, policies


def _train(console: Console, title: str, stage: str, folder: Path, seed: int, words: Sequence[str] = ()) -> None:
    words = [f"config={_recipe(stage)}", *words]
    _title(console, title, f"alignkit {stage} {shlex.join(words)}")
    import_module(f"alignkit.stages.{stage}.run").run(compose_job(stage, [*words, f"seed={seed}"]), folder / stage)


def _ask(words: Sequence[str], pairs: Sequence[dict[str, str]], reward: Path) -> PolicyResult:
    from alignkit.evaluate.prompts import read_prompts
    from alignkit.evaluate.rewards import load_reward, score_answers
    from alignkit.rewards.reply import Reply

    words = [*words, "sampling.max_new_tokens=32"]
    job = compose_job("generate", [*words, "sampling=nucleus"])
    prompts = read_prompts([pair["prompt"] for pair in pairs], None, format="auto", columns={})
    answers = _answers(job, prompts)
    scores = score_answers(
        load_reward(str(reward), job.model, batch_size=_TOGETHER), prompts, [Reply(text) for text in answers]
    )
    preferred = [_manner(answer) == _manner(pair["chosen"]) for answer, pair in zip(answers, pairs, strict=True)]
    others = read_prompts([], shipped_file("heldout.jsonl"), format="auto", columns={})
    result = _answers(compose_job("generate", [*words, "sampling=greedy"]), others)
    right = [answer == row["output"] for answer, row in zip(result, _read("heldout.jsonl"), strict=True)]
    return PolicyResult(answers, scores, fmean(preferred), fmean(right))


def _answers(job: Any, prompts: list[Any]) -> list[str]:
    from alignkit.evaluate.served_model import ServedModel

    policy = ServedModel.of(job.model, job.template).load(seed=job.seed)
    done = policy.complete(policy.encode(prompts), job.sampling, seed=job.seed, batch_size=_TOGETHER)
    return [policy.text(completion, job.sampling) for completion in done]


def _manner(answer: str) -> str:
    """Return what an answer says before the requested word: `Gladly!` or `Must I?`."""
    return answer.rpartition(" ")[0]


def _tables(pairs: Sequence[dict[str, str]], policies: Mapping[str, PolicyResult]) -> Iterator[Table]:
    """The first prompts with each policy's answer, and the figures of all of them."""
    yield _table(
        ["prompt", "policy", "answer", "reward"],
        [
            [
                "" if index else pair["prompt"],
                name,
                escape(one_line(result.answers[i], _SHOWN)),
                f"{result.scores[i]:+.1f}",
            ]
            for i, pair in enumerate(pairs[:_SHOWN_ANSWERS])
            for index, (name, result) in enumerate(policies.items())
        ],
    )
    yield _table(
        [f"{len(pairs)} prompts", "answered politely", "mean reward", "right in other tasks"],
        [
            [name, f"{result.preferred:.0%}", f"{fmean(result.scores):+.1f}", f"{result.right:.0%}"]
            for name, result in policies.items()
        ],
    )


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=True, max_width=_SHOWN)
    for row in rows:
        table.add_row(*row)
    return table


def _recipe(stage: str) -> Path:
    return Path(str(resources.files("alignkit.demo").joinpath("recipes", f"{stage}.yaml")))


def _read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in shipped_file(name).read_text(encoding="utf-8").splitlines()]


def _title(console: Console, title: str, command: str) -> None:
    console.print(f"\n[bold]{title}[/bold]   [dim]{command}[/dim]\n", highlight=False)

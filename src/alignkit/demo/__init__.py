"""`alignkit demo`: a tiny model learns small tasks on words, in front of your eyes and without a download."""

from __future__ import annotations

import json
from importlib import import_module, resources
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignkit.launch import compose_job

_SHOWN_ROWS = 3
_SHOWN_ANSWERS = 5


def show(run_dir: Path) -> dict[str, float]:
    """Show rows and mask, train, and compare the held-out answers before and after.

    Args:
        run_dir: the run is written here, over a former demo.

    Returns:
        `before` and `after`: shares of held-out prompts answered to the letter.
    """
    recipe = resources.files("alignkit.demo").joinpath("demo.yaml")
    job = compose_job("sft", [f"config={recipe}"])
    inspection, stage = import_module("alignkit.data.inspect"), import_module("alignkit.stages.sft")
    console = Console(soft_wrap=True)
    _title(console, "1  What the loss sees", f"alignkit inspect sft config={recipe}")
    inspection.inspect(stage.view(job), num_rows=_SHOWN_ROWS, html=None, as_json=False, golden=None)
    _title(console, "2  Training a random model on it", f"alignkit sft config={recipe}")
    stage.run(job, run_dir)
    _title(console, "3  Words it has never seen, before and after", f"{run_dir / 'samples.jsonl'}")
    samples = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("prompt", "wanted", "before", "after"):
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=40 if name == "prompt" else 20)
    for sample in samples[:_SHOWN_ANSWERS]:
        table.add_row(*(_printable(sample[name]) for name in ("prompt", "wanted", "before", "after")))
    console.print(table)
    exact = {when: sum(s[when] == s["wanted"] for s in samples) / len(samples) for when in ("before", "after")}
    console.print(
        f"\nright to the letter: {exact['before']:.0%} → {exact['after']:.0%} of {len(samples)} held-out prompts"
    )
    console.print(f'next: alignkit generate {run_dir} --prompt "{samples[0]["prompt"]}"', markup=False, highlight=False)
    return exact


def _title(console: Console, title: str, command: str) -> None:
    console.print(f"\n[bold]{title}[/bold]   [dim]{command}[/dim]\n", highlight=False)


def _printable(text: str) -> str:
    """One line without markup: a random model says anything."""
    return "".join(c if c.isprintable() and c not in "[]" else "·" for c in text)

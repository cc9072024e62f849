"""What the benches share: a random Llama and its tokenizer, a stopwatch on the trainer, turns, and the table.

Every variant trains in a process of its own, and the variants take turns, so that a busy machine slows all of them
alike: each ratio is the median of the ratios within a round. Time runs from the end of the first step to the end of the
last: starting, loading, encoding and saving are left out. Ratios are only printed when all variants did the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

# 16,000 words make the head 30 % of this model's weights (of a 1 B Llama's it is 21 %); more of them would flatter us.
WORDS = ["".join(chr(97 + number // 26**place % 26) for place in range(4)) for number in range(16_000)]
TEMPLATE = """{{ bos }}{% for message in messages -%}
{% if message.role != "assistant" %}{{ message.content }}
{%- else %}{% generation %}{{ message.content + end }}{% endgeneration %}{% endif %}
{%- endfor %}"""

CHANCE = 0.05  # of the larger one

Result = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What one step was worth.

    Attributes:
        units: what the rate counts (supervised tokens, pairs, completions).
        check: numbers whose sums over the run every variant must share.
        positions: of the model's input, padding included.
        chance: numbers that chance decides: their sums may be `CHANCE` apart.
    """

    units: int
    check: Mapping[str, int]
    positions: int
    chance: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What a variant tells that its trainer's batches do not.

    Attributes:
        works: of each step.
        figures: columns of the table.
    """

    works: Sequence[Work]
    figures: Mapping[str, float]


def write_model(folder: Path, *, layers: int = 8, hidden: int = 384) -> None:
    """A random Llama, and a tokenizer in which every one of `WORDS` is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    tokens = ["<pad>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"Ġ{word}" for word in WORDS)]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[], ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    set_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": hidden // 64}
    sizes |= {"intermediate_size": round(hidden / 24) * 64}  # 8/3 of it
    config = LlamaConfig(vocab_size=len(tokens), tie_word_embeddings=True, **special, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)


def place_model(folder: Path, options: argparse.Namespace) -> None:
    """The model that was asked for."""
    if options.model:
        folder.symlink_to(options.model.resolve())
    else:
        write_model(folder, layers=options.layers, hidden=options.hidden)


Train = Callable[[str, argparse.Namespace], Done | None]


def measured(train: Callable[[], Done | None], work_of: Callable[[Mapping[str, Any]], Work] | None) -> Result:
    """What `train` did and what it took, watched from the trainer class both sides are built on."""
    import torch
    from transformers import Trainer, TrainerCallback, trainer

    clocks, batches, memory = [], [], []
    on_gpu = torch.cuda.is_available()

    class Stopwatch(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            else:
                Path("/proc/self/clear_refs").write_text("5")  # loading may have needed more than is loaded
            memory.append(torch.cuda.memory_allocated() if on_gpu else of_process("VmRSS"))

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            clocks.append((time.perf_counter(), time.process_time()))
            memory.append(torch.cuda.max_memory_allocated() if on_gpu else of_process("VmHWM"))

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if work_of is not None:
            batches.append(work_of(inputs))
        return upstream_step(self, model, inputs, *args, **kwargs)

    upstream_step, Trainer.training_step = Trainer.training_step, training_step
    trainer.DEFAULT_CALLBACKS.append(Stopwatch)
    done = train() or Done(batches, {})
    units = [work.units for work in done.works]
    wall, cpu = (ended - begun for begun, ended in zip(clocks[0], clocks[-1], strict=True))
    return {
        "work": {"steps": len(clocks), "units": sum(units), **_sums(work.check for work in done.works)},
        "chance": _sums(work.chance for work in done.works),
        "units": units,
        "positions": sum(work.positions for work in done.works),
        "wall": sum(units[1:]) / wall,
        "cpu": sum(units[1:]) / cpu,
        "peak": memory[-1] / 1e9,
        "training": (memory[-1] - memory[0]) / 1e9,
        "figures": dict(done.figures),
    }


def _sums(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def of_process(field: str) -> int:
    """Bytes, from Linux' own account of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def take_turns(
    doc: str,
    variants: Mapping[str, str],
    baselines: Sequence[str],
    unit: str,
    prepare: Callable[[Path, argparse.Namespace], None],
    train: Train,
    work_of: Callable[[Mapping[str, Any]], Work] | None,
    *,
    settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    python: Callable[[str, argparse.Namespace], str | Path] = lambda variant, options: sys.executable,
) -> None:
    """The command line of a bench.

    Args:
        doc: of the bench's module.
        variants: name to what it is.
        baselines: those to give ratios against.
        unit: what the rate counts.
        prepare: writes what all variants read into a folder, and may add to the options.
        train: (variant, options), run in that folder; options have the number of the `round` too.
        work_of: a batch of any variant's trainer; None where `train` returns what it did.
        settings: more of the command line, or other defaults of it: name to argparse's keywords.
        python: the interpreter of a variant.
    """
    options = _parser(doc, variants, settings).parse_args()
    if options.child:
        vars(options).update(json.loads(Path("options.json").read_text()))
        result = measured(lambda: train(options.child, options), work_of)
        Path("result.json").write_text(json.dumps(result))
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    rounds: list[dict[str, Result]] = []
    pythons = {name: python(name, options) for name in options.only}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options)
        for number in range(options.rounds):
            options.round, results = number, {}
            for name in options.only if number % 2 == 0 else reversed(options.only):
                results[name] = result = _run(name, pythons[name], Path(folder), options)
                print(f"round {number + 1}: {name}, {result['wall']:,.1f} {unit} a second; {result['units']}")
                sys.stdout.flush()
            rounds.append({name: results[name] for name in options.only})
            if difference := _difference(rounds[-1]):
                sys.exit(f"the variants did different work, so there is no ratio to give: {difference}")
            if options.json:
                options.json.write_text(json.dumps({"options": vars(options), "rounds": rounds}, default=str, indent=1))
    _report(rounds, variants, baselines, unit)


def _parser(
    doc: str, variants: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"steps": 8, "batch-size": 8, "rounds": 3, "threads": 1}
    known: dict[str, dict[str, Any]] = {name: {"type": int, "default": value} for name, value in numbers.items()}
    known["model"] = {"type": Path, "help": "folder; without it a random Llama is made"}
    known["layers"] = {"type": int, "default": 8, "help": "of the random Llama"}
    known["hidden"] = {"type": int, "default": 384, "help": "numbers in a state of the random Llama"}
    known["rows"] = {"help": "data file; without it rows are made"}
    known["only"] = {"nargs": "+", "choices": variants, "default": list(variants), "help": "leave the others out"}
    known["json"] = {"type": Path, "help": "write every measurement here"}
    for name, given in settings.items():
        known[name] = known.get(name, {}) | given
    for name, keywords in known.items():
        about = [keywords.get("help"), f"default {keywords['default']}" if "default" in keywords else None]
        words = "; ".join(filter(None, about)) if name != "only" else keywords["help"]
        parser.add_argument(f"--{name}", **keywords | {"help": words})
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def _difference(results: Mapping[str, Result]) -> str | None:
    """What the variants of a round did not do alike."""
    done = {name: result["work"] for name, result in results.items()}
    if any(work != next(iter(done.values())) for work in done.values()):
        return str(done)
    drawn = {name: result["chance"] for name, result in results.items()}
    for key in next(iter(drawn.values())):
        if min(draws[key] for draws in drawn.values()) < (1 - CHANCE) * max(draws[key] for draws in drawn.values()):
            return str(drawn)
    return None


def _run(variant: str, python: str | Path, work: Path, options: argparse.Namespace) -> Result:
    given = {key: value for key, value in vars(options).items() if key != "child"}
    (work / "options.json").write_text(json.dumps(given, default=str))
    command = [python, Path(sys.argv[0]).resolve(), "--child", variant]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{variant}: {done.stderr[-3000:]}")
    return dict(json.loads((work / "result.json").read_text()))


def _report(rounds: list[dict[str, Result]], variants: Mapping[str, str], baselines: Sequence[str], unit: str) -> None:
    """The table: medians over the rounds; ratios by wall clock, and in brackets by processor time."""
    against = [name for name in baselines if name in rounds[0]]
    figures = list(next(iter(rounds[0].values()))["figures"])
    columns = [f"{unit}/s", "per CPU s", *(f"x {name}" for name in against), "peak GB", "training GB", *figures]
    print(f"\n{'':46}" + "".join(f"{column:>15}" for column in columns))
    for name in rounds[0]:
        cells = [f"{median(r[name][clock] for r in rounds):,.3g}" for clock in ("wall", "cpu")]
        for base in against:
            wall, cpu = (median(r[name][clock] / r[base][clock] for r in rounds) for clock in ("wall", "cpu"))
            cells.append(f"{wall:.2f} ({cpu:.2f})")
        cells += [f"{median(r[name][part] for r in rounds):.2f}" for part in ("peak", "training")]
        cells += [f"{median(r[name]['figures'][figure] for r in rounds):,.3g}" for figure in figures]
        print(f"{variants[name]:46}" + "".join(f"{cell:>15}" for cell in cells))

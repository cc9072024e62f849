"""Supervised tokens per second and peak memory of `alignkit sft`, against plain TRL scripts on the same rows.

    python scripts/bench/sft.py                                   # a random Llama of 20 M weights, rows made here
    python scripts/bench/sft.py --model FOLDER --rows FILE --json out.json

Every variant trains one epoch in a process of its own, and the variants take turns, so that a busy machine slows all of
them alike: each ratio is the median of the ratios within a round. Time runs from the end of the first step to the end
of the last: starting, loading, encoding and saving are left out. Ratios are only printed when all variants have taken
the same number of steps over the very same supervised tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

VARIANTS = {
    "trl": "TRL: its defaults (bf16 where native)",
    "trl-float32": "TRL: its defaults, in float32",
    "trl-tuned": "TRL by hand: packed, bf16, no checkpointing",
    "trl-padded": "TRL by hand: float32, no checkpointing",
    "padded": "alignkit padded, float32",
    "float32": "alignkit in float32",
    "auto": "alignkit: its defaults (bf16 where native)",
}
SETTINGS = {"padded": ["data.batching=padded", "model.dtype=float32"], "float32": ["model.dtype=float32"], "auto": []}
BASELINES = ("trl", "trl-float32", "trl-tuned", "trl-padded")
LONGEST = 1024  # tokens; TRL cuts rows there by default
LLAMA = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
# 16,000 words make the head 30 % of this model's weights (of a 1 B Llama's it is 21 %); more of them would flatter us.
WORDS = ["".join(chr(97 + number // 26**place % 26) for place in range(4)) for number in range(16_000)]
TEMPLATE = """{{ bos }}{% for message in messages -%}
{% if message.role != "assistant" %}{{ message.content }}
{%- else %}{% generation %}{{ message.content + end }}{% endgeneration %}{% endif %}
{%- endfor %}"""

Result = dict[str, Any]


def write_model(folder: Path) -> None:
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
    config = LlamaConfig(vocab_size=len(tokens), tie_word_embeddings=True, **special, **LLAMA)
    LlamaForCausalLM(config).save_pretrained(folder)


def made_rows() -> Iterator[dict[str, str]]:
    """Lengths spread like those of instruction data: more than half of a padded batch of 8 is padding."""
    draw = random.Random(0)
    while True:
        lengths = draw.lognormvariate(3.7, 0.6), draw.lognormvariate(4.4, 1.0)
        prompt, completion = ("".join(f" {word}" for word in draw.choices(WORDS, k=1 + int(n))) for n in lengths)
        yield {"prompt": prompt, "completion": completion}


def read_rows(path: str, tokenizer: Any) -> Iterator[dict[str, str]]:
    """The rows of a data file in which one question has one answer, as the text that is trained on."""
    from alignkit.config import TemplateConfig
    from alignkit.data import formats, sources
    from alignkit.data.templates import load_template

    template = load_template(TemplateConfig(), tokenizer)
    (source,) = sources.parse_sources(path, setting="--rows", format="auto", columns={}, split=None)
    rows = [row.row for row in sources.read_rows(source, limit=None)]
    format_ = formats.detect_format(rows[0].keys(), rows[0])
    for row in rows:
        *asked, said = template.render(formats.to_conversation(row, format_, {}).messages)
        if all(segment.message is None for segment in asked):
            prompt = "".join(segment.text for segment in asked).removeprefix(tokenizer.bos_token or "")
            yield {"prompt": prompt, "completion": said.text.removesuffix(template.end_token)}


def prepare(work: Path, options: argparse.Namespace) -> None:
    """Write the model, the rows, our template, and the line length at which TRL packs one line for each step."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.data_utils import pack_dataset

    (work / "model").symlink_to(options.model.resolve()) if options.model else write_model(work / "model")
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    rows, ids = [], []
    for row in read_rows(options.rows, tokenizer) if options.rows else made_rows():
        prompt, whole = (tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"]))
        if len(whole) < LONGEST and whole[: len(prompt)] == prompt:  # where a token spans the two, each cuts otherwise
            rows.append(json.dumps(row) + "\n")
            ids.append([*whole, tokenizer.eos_token_id])
        if len(rows) == options.steps * options.batch_size:
            break
    else:
        sys.exit(f"{options.rows}: {len(rows)} rows fit, {options.steps * options.batch_size} are needed")
    lengths = [len(row) for row in ids]
    line = max(*lengths, sum(lengths) // options.steps)
    while len(pack_dataset(Dataset.from_dict({"input_ids": ids}), line)) > options.steps:
        line += 8
    (work / "rows.jsonl").write_text("".join(rows))
    (work / "template.jinja").write_text(TEMPLATE)
    (work / "line").write_text(str(line))


def train_with_trl(variant: str, batch_size: int) -> None:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from alignkit.models.load import default_dtype

    native = default_dtype() is torch.bfloat16
    padded = {"per_device_train_batch_size": batch_size, "train_sampling_strategy": "sequential"}
    packed = {"per_device_train_batch_size": 1, "packing": True, "max_length": int(Path("line").read_text())}
    chosen = {
        "trl": {**padded, "bf16": native},
        "trl-float32": {**padded, "bf16": False},
        "trl-tuned": {**packed, "bf16": native, "gradient_checkpointing": False},
        "trl-padded": {**padded, "bf16": False, "gradient_checkpointing": False},
    }[variant]
    args = SFTConfig("trl", num_train_epochs=1, save_strategy="no", use_cpu=not torch.cuda.is_available(), **chosen)
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    SFTTrainer(model="model", args=args, train_dataset=Dataset.from_list(rows)).train()


def train_with_alignkit(variant: str, batch_size: int) -> None:
    from alignkit.cli import app

    same = ["model.name=model", "data.path=rows.jsonl", "data.shuffle=false", "template.file=template.jinja"]
    same += ["train.num_train_epochs=1", "train.save_strategy='no'", f"train.per_device_train_batch_size={batch_size}"]
    app(["sft", *same, "samples=0", "overwrite=true", *SETTINGS[variant]], standalone_mode=False)


def measured(train: Callable[[], None]) -> Result:
    """What `train` did and what it took, watched from the trainer class both sides are built on."""
    import torch
    from transformers import Trainer, TrainerCallback, trainer

    clocks, batches, memory = [], [], []
    on_gpu = torch.cuda.is_available()

    class Stopwatch(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            memory.append(torch.cuda.memory_allocated() if on_gpu else of_process("VmRSS"))

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            clocks.append((time.perf_counter(), time.process_time()))
            memory.append(torch.cuda.max_memory_allocated() if on_gpu else of_process("VmHWM"))

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs["labels"][:, 1:]
        supervised = labels[labels != -100]
        batches.append((len(supervised), int(supervised.sum()), labels.numel()))
        return upstream_step(self, model, inputs, *args, **kwargs)

    upstream_step, Trainer.training_step = Trainer.training_step, training_step
    trainer.DEFAULT_CALLBACKS.append(Stopwatch)
    train()
    counts, sums, positions = zip(*batches, strict=True)
    wall, cpu = (ended - begun for begun, ended in zip(clocks[0], clocks[-1], strict=True))
    return {
        "work": {"steps": len(clocks), "supervised tokens": sum(counts), "sum of their ids": sum(sums)},
        "supervised": counts,
        "positions": sum(positions),
        "wall": sum(counts[1:]) / wall,
        "cpu": sum(counts[1:]) / cpu,
        "peak": memory[-1] / 1e9,
        "training": (memory[-1] - memory[0]) / 1e9,
    }


def of_process(field: str) -> int:
    """Bytes, from Linux' own account of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def run(variant: str, work: Path, options: argparse.Namespace) -> Result:
    command = [sys.executable, Path(__file__).resolve(), "--child", variant, "--batch-size", str(options.batch_size)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{variant}: {done.stderr[-3000:]}")
    return dict(json.loads((work / "result.json").read_text()))


def report(rounds: list[dict[str, Result]]) -> None:
    """The table: medians over the rounds; ratios by wall clock, and in brackets by processor time."""
    against = [name for name in BASELINES if name in rounds[0]]
    columns = ["tokens/s", "per CPU s", *(f"x {name}" for name in against), "peak GB", "training GB"]
    print(f"\n{'supervised':46}" + "".join(f"{column:>15}" for column in columns))
    for name in rounds[0]:
        cells = [f"{median(r[name][clock] for r in rounds):,.0f}" for clock in ("wall", "cpu")]
        for base in against:
            wall, cpu = (median(r[name][clock] / r[base][clock] for r in rounds) for clock in ("wall", "cpu"))
            cells.append(f"{wall:.2f} ({cpu:.2f})")
        cells += [f"{median(r[name][part] for r in rounds):.2f}" for part in ("peak", "training")]
        print(f"{VARIANTS[name]:46}" + "".join(f"{cell:>15}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"steps": 8, "batch-size": 8, "rounds": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--model", type=Path, help="folder; without it a random Llama is made")
    parser.add_argument("--rows", help="data file; without it rows are made")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="leave the others out")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        train = train_with_trl if options.child in BASELINES else train_with_alignkit
        result = measured(lambda: train(options.child, options.batch_size))
        Path("result.json").write_text(json.dumps(result))
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    rounds: list[dict[str, Result]] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options)
        for number in range(options.rounds):
            results = {}
            for name in options.only if number % 2 == 0 else reversed(options.only):
                results[name] = result = run(name, Path(folder), options)
                print(f"round {number + 1}: {name}, {result['wall']:,.0f} a second; supervised: {result['supervised']}")
            rounds.append({name: results[name] for name in options.only})
            done = [result["work"] for result in rounds[-1].values()]
            if any(other != done[0] for other in done):
                sys.exit(f"the variants did different work, so there is no ratio to give: {done}")
            if options.json:
                options.json.write_text(json.dumps({"options": vars(options), "rounds": rounds}, default=str, indent=1))
    report(rounds)


if __name__ == "__main__":
    main()

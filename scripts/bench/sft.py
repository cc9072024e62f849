"""Supervised tokens per second and peak memory of `alignkit sft`, against plain TRL scripts on the same rows.

    python scripts/bench/sft.py                                   # a random Llama of 20 M weights, rows made here
    python scripts/bench/sft.py --model FOLDER --rows FILE --json out.json

Every variant trains one epoch in a process of its own, and the variants take turns, so that a busy machine slows all of
them alike: each ratio is the median of the ratios within a round. Time runs from the end of the first step to the end
of the last; starting, loading, encoding and saving are left out. A ratio is only printed when all variants have taken
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

VARIANTS: dict[str, str] = {
    "trl": "TRL, its defaults",
    "trl tuned": "TRL by hand: packed, bf16, no checkpointing",
    "trl padded": "TRL by hand: padded, float32, no checkpointing",
    "padded": "alignkit padded, float32",
    "float32": "alignkit, float32",
    "auto": "alignkit, its defaults",
}
WORDS = {"padded": ["data.batching=padded", "model.dtype=float32"], "float32": ["model.dtype=float32"], "auto": []}
BASELINES = {"trl": "defaults", "trl tuned": "tuned", "trl padded": "padded"}
LONGEST = 1024  # TRL cuts rows there by default
LLAMA = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
NUM_WORDS = 16_000  # the head is 30 % of such a model's work; of a 1 B Llama's it is 21 %
TEMPLATE = """
{{- bos -}}
{%- for message in messages -%}
    {%- if message.role == "assistant" -%}
        {%- generation -%}{{ message.content + end }}{%- endgeneration -%}
    {%- else -%}
        {{- message.content -}}
    {%- endif -%}
{%- endfor -%}
"""

Row = dict[str, str]


# What is trained


def write_model(folder: Path) -> None:
    """A random Llama, and a tokenizer in which every word of `made_rows` is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    tokens = ["<pad>", "<end>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"Ġ{word}" for word in words())]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[], ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    set_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = LlamaConfig(vocab_size=len(tokens), tie_word_embeddings=True, **special, **LLAMA)
    LlamaForCausalLM(config).save_pretrained(folder)


def words() -> list[str]:
    return ["".join(chr(97 + number // 26**place % 26) for place in range(4)) for number in range(NUM_WORDS)]


def made_rows() -> Iterator[Row]:
    """Lengths like those of instruction data: batches of 8 would be padding for more than half."""
    draw, known = random.Random(0), words()
    while True:
        lengths = draw.lognormvariate(3.7, 0.6), draw.lognormvariate(4.4, 1.0)
        prompt, completion = ("".join(f" {word}" for word in draw.choices(known, k=1 + int(n))) for n in lengths)
        yield {"prompt": prompt, "completion": completion}


def read_rows(path: str, tokenizer: Any) -> Iterator[Row]:
    """Rows of any data file alignkit reads that ask once and answer once, as the text that is trained on."""
    from alignkit.config import TemplateConfig
    from alignkit.data.formats import detect_format, to_conversation
    from alignkit.data.sources import parse_sources
    from alignkit.data.sources import read_rows as rows_of
    from alignkit.data.templates import load_template

    template = load_template(TemplateConfig(), tokenizer)
    (source,) = parse_sources(path, setting="--rows", format="auto", columns={}, split=None)
    rows = [row.row for row in rows_of(source, limit=None)]
    format_ = detect_format(rows[0].keys(), rows[0])
    for row in rows:
        *asked, said = template.render(to_conversation(row, format_, {}).messages)
        if not any(segment.message is not None for segment in asked):
            prompt = "".join(segment.text for segment in asked).removeprefix(tokenizer.bos_token or "")
            yield {"prompt": prompt, "completion": said.text.removesuffix(template.end_token)}


def prepare(work: Path, options: argparse.Namespace) -> None:
    """Write the model, the template, the rows, and the line length at which TRL packs them into one line a step."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.data_utils import pack_dataset

    if options.model:
        (work / "model").symlink_to(Path(options.model).resolve())
    else:
        write_model(work / "model")
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    rows, ids = [], []
    for row in read_rows(options.rows, tokenizer) if options.rows else made_rows():
        prompt, whole = (tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"]))
        if len(whole) < LONGEST and whole[: len(prompt)] == prompt:  # else the two would cut the row differently
            rows.append(json.dumps(row) + "\n")
            ids.append([*whole, tokenizer.eos_token_id])
        if len(rows) == options.steps * options.batch_size:
            break
    else:
        sys.exit(f"{options.rows} has {len(rows)} rows that fit, {options.steps * options.batch_size} are needed")
    (work / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    (work / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    line, table = max(map(len, ids)), Dataset.from_dict({"input_ids": ids})
    line = max(line, -(-sum(map(len, ids)) // options.steps))
    while len(pack_dataset(table, line)) > options.steps:
        line += 8
    (work / "options.json").write_text(json.dumps({"line": line, "batch_size": options.batch_size}))


# One variant, in a process of its own


def train_with_trl(work: Path, **chosen: Any) -> None:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(work / "trl"),
        num_train_epochs=1,
        save_strategy="no",
        use_cpu=not torch.accelerator.is_available(),
        **chosen,
    )
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    SFTTrainer(model=str(work / "model"), args=args, train_dataset=Dataset.from_list(rows)).train()


def train_with_alignkit(work: Path, batch_size: int, chosen: list[str]) -> None:
    from alignkit.cli import main

    files = [f"model.name={work / 'model'}", f"data.path={work / 'rows.jsonl'}", f"template.file={work}/template.jinja"]
    steps = ["train.num_train_epochs=1", "train.save_strategy='no'", f"train.per_device_train_batch_size={batch_size}"]
    sys.argv = ["alignkit", "sft", *files, *steps, "data.shuffle=false", "samples=0", "overwrite=true", *chosen]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


def measured(train: Callable[[], None]) -> dict[str, Any]:
    """What `train` did and what it took, watched from the trainer class both sides are built on."""
    import torch
    from transformers import Trainer, TrainerCallback, trainer

    clocks, batches, start = [], [], {}
    on_gpu = torch.cuda.is_available()

    class Stopwatch(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            start["memory"] = 0 if on_gpu else memory("VmRSS")

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            clocks.append((time.perf_counter(), time.process_time()))

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs["labels"][:, 1:]
        supervised = labels[labels != -100]
        batches.append((len(supervised), int(supervised.sum()), labels.numel()))
        return plain_step(self, model, inputs, *args, **kwargs)

    plain_step, Trainer.training_step = Trainer.training_step, training_step
    trainer.DEFAULT_CALLBACKS.append(Stopwatch)
    train()
    peak = torch.cuda.max_memory_allocated() if on_gpu else memory("VmHWM")
    (begun, cpu_begun), (ended, cpu_ended) = clocks[0], clocks[-1]
    timed = sum(count for count, *_ in batches[1:])
    return {
        "work": {"steps": len(clocks), "tokens": sum(b[0] for b in batches), "label sum": sum(b[1] for b in batches)},
        "supervised": [count for count, *_ in batches],
        "positions": sum(positions for *_, positions in batches),
        "wall": timed / (ended - begun),
        "cpu": timed / (cpu_ended - cpu_begun),
        "peak_gb": peak / 1e9,
        "training_gb": (peak - start["memory"]) / 1e9,
    }


def memory(field: str) -> int:
    """Bytes, from Linux' own account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def child(variant: str, work: Path) -> None:
    from alignkit.models.load import default_dtype

    given = json.loads((work / "options.json").read_text())
    padded = {"per_device_train_batch_size": given["batch_size"], "train_sampling_strategy": "sequential"}
    packed = {"per_device_train_batch_size": 1, "packing": True, "max_length": given["line"]}
    trl = {
        "trl": padded,
        "trl tuned": {**packed, "gradient_checkpointing": False, "bf16": default_dtype().itemsize == 2},
        "trl padded": {**padded, "gradient_checkpointing": False, "bf16": False},
    }
    if variant in trl:
        result = measured(lambda: train_with_trl(work, **trl[variant]))
    else:
        result = measured(lambda: train_with_alignkit(work, given["batch_size"], WORDS[variant]))
    (work / "result.json").write_text(json.dumps(result))


# All of them, in turn


def run(variant: str, work: Path, num_threads: int) -> dict[str, Any]:
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", variant, "--work", str(work)],
        env={**os.environ, **quiet, "OMP_NUM_THREADS": str(num_threads)},
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{variant}: {done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads((work / "result.json").read_text())
    return result


def report(rounds: list[dict[str, dict[str, Any]]]) -> None:
    """The table: medians over the rounds; ratios by wall clock, and in brackets by processor time."""
    names = list(rounds[0])
    against = [name for name in BASELINES if name in names]
    columns = ["tokens/s", "/CPU s", *(f"x {BASELINES[name]}" for name in against), "peak GB", "training", "padding"]
    print(f"\n{'':48}" + "".join(f"{column:>15}" for column in columns))
    real = min(result["positions"] for result in rounds[0].values())
    for name in names:
        mine = [round_[name] for round_ in rounds]
        cells = [f"{median(r[clock] for r in mine):,.0f}" for clock in ("wall", "cpu")]
        for base in against:
            wall, cpu = (median(r[name][clock] / r[base][clock] for r in rounds) for clock in ("wall", "cpu"))
            cells.append(f"{wall:.2f} ({cpu:.2f})")
        cells += [f"{median(r[key] for r in mine):.2f}" for key in ("peak_gb", "training_gb")]
        cells.append(f"{1 - real / mine[0]['positions']:.0%}")
        print(f"{VARIANTS[name]:48}" + "".join(f"{cell:>15}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8, help="rows a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", help="folder; without it a random Llama is made")
    parser.add_argument("--rows", help="data file; without it rows are made")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.work)
        return
    rounds: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options)
        for number in range(options.rounds):
            rounds.append({})
            for name in options.only if number % 2 == 0 else reversed(options.only):
                result = rounds[-1][name] = run(name, Path(folder), options.threads)
                print(f"round {number + 1}, {name}: {result['wall']:.0f} tokens/s; supervised {result['supervised']}")
                if result["work"] != rounds[0][options.only[0]]["work"]:
                    sys.exit(f"{name} did other work than {options.only[0]}: {result['work']}; there is no ratio to give")
            rounds[-1] = {name: rounds[-1][name] for name in options.only}
            if options.json:
                options.json.write_text(json.dumps({"options": vars(options), "rounds": rounds}, default=str, indent=1))
    report(rounds)


if __name__ == "__main__":
    main()

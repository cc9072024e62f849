"""Generated tokens per second of `alignkit generate`, against transformers' text-generation pipeline, same prompts.

    python scripts/bench/generate.py                              # a random Llama of 20 M weights, prompts made here
    python scripts/bench/generate.py --model FOLDER --num-prompts 256 --batch-size 64 --json out.json

All variants answer the same prompts by plain sampling, take turns in one process after a warm-up, and count the tokens
up to the end of each response; a ratio is the median of those within a round. A random model ends nothing by itself:
every fiftieth token of the vocabulary ends a response for all variants, so that lengths are mixed as those of a real
model are.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from side_by_side import WORDS, write_model

END_EVERY = 50
VARIANTS = {
    "pipeline": "text-generation pipeline, as it comes (one prompt at a time)",
    "pipeline-batched": "text-generation pipeline, batch_size set",
    "alignkit": "alignkit",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder; default: a random one")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="leave the others out")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            write_model(Path(folder))
        found = measure(args.model or folder, args)
    for name, rates in found.items():
        ratios = [
            f"{median(rate / other for rate, other in zip(rates, found[base], strict=True)):5.2f} × {base}"
            for base in ("pipeline", "pipeline-batched")
            if base in found
        ]
        print(f"{median(rates):10,.0f} tokens/s  {'  '.join(ratios)}  {VARIANTS[name]}")
    if args.json is not None:
        args.json.write_text(json.dumps({"settings": {**vars(args), "json": None}, "rates": found}, indent=1) + "\n")


def measure(model_name: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens per second of each variant in each round."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
    from transformers.utils import logging

    from alignkit.config import SamplingConfig
    from alignkit.models.load import default_dtype
    from alignkit.sampling.generate import generate

    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = default_dtype() if device.type == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(model_name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype).to(device).eval()
    ends = list(range(1, model.config.vocab_size, END_EVERY))
    draw = random.Random(0)
    texts = ["".join(f" {word}" for word in draw.choices(WORDS, k=round(draw.lognormvariate(3.7, 0.8)) + 1))
             for _ in range(args.num_prompts)]  # fmt: skip
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, device=device)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings = {**sampling, "max_new_tokens": args.max_new_tokens, "eos_token_id": ends, "pad_token_id": 0}

    def piped(texts: list[str], batch_size: int) -> int:
        outputs = pipe(texts, batch_size=batch_size, return_tensors=True, **settings)
        total = 0
        for at, (output,) in enumerate(outputs):
            first = at - at % batch_size
            width = max(len(prompt) for prompt in prompts[first : first + batch_size])
            said = output["generated_token_ids"][width:]
            total += next((place for place, token in enumerate(said, start=1) if token in end_set), len(said))
        return total

    def ours(texts: list[str], batch_size: int) -> int:
        plain = SamplingConfig(do_sample=True, max_new_tokens=args.max_new_tokens)
        rows = prompts[: len(texts)]
        completions = generate(model, rows, plain, eos_ids=ends, pad_id=0, seed=0, batch_size=batch_size)
        return sum(len(done.token_logprobs) for done in completions)

    end_set = set(ends)
    runs: dict[str, Callable[[list[str]], int]] = {
        "pipeline": lambda some: piped(some, 1),
        "pipeline-batched": lambda some: piped(some, args.batch_size),
        "alignkit": lambda some: ours(some, args.batch_size),
    }
    found: dict[str, list[Any]] = {name: [] for name in args.only}
    for name in found:
        runs[name](texts[: args.batch_size])  # warms up
    for _ in range(args.rounds):
        for name, rates in found.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            num_tokens = runs[name](texts)
            rates.append(num_tokens / (time.perf_counter() - started))
            print(f"{name}: {num_tokens:,} tokens, {rates[-1]:,.1f} a second", flush=True)
    return found


if __name__ == "__main__":
    main()

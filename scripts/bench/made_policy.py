"""A policy whose answers are as long as the bench says, and a reward run that likes some of its words."""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from side_by_side import TEMPLATE, place_model

# the dimensions of the hidden states that `_shape` takes for itself
ONE, TASTE, ASKED, REACHED = range(4)
REWARD_STEPS, REWARD_PAIRS = 16, 8  # of these a step


def prepare(work: Path, options: argparse.Namespace, *, reward_run: bool = True) -> None:
    """Write model, template, prompts and, if asked to, reward run; add the model's size and liked ids to options."""
    from safetensors import safe_open
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    place_model(work / "model", options)
    vocabulary = AutoTokenizer.from_pretrained(work / "model").get_vocab()
    words = sorted(token for token in vocabulary if re.fullmatch("Ġ[a-z]{2,}", token))
    unending = 2 * options.tokens  # an answer asked to be so long does not end by itself
    asks, words = words[:unending], words[unending:]  # the word at index n - 1 asks for n tokens
    options.liked = [vocabulary[word] for word in words if _is_liked(word)]
    if not options.model:
        _shape(work / "model", [vocabulary[word] for word in asks], options)
    liked, others = ([word for word in words if _is_liked(word) is taste] for taste in (True, False))
    draw = random.Random(0)

    def text(length: int, share: float) -> str:
        """Draw so many words, of which about this share is liked."""
        drawn = (draw.choice(liked if draw.random() < share else others) for _ in range(length))
        return "".join(f" {word[1:]}" for word in drawn)

    def prompt() -> str:
        length = unending
        if options.lengths == "mixed":
            length = min(options.tokens, 1 + int(options.tokens / 3 * draw.lognormvariate(0.0, 0.8)))
        return f" {asks[length - 1][1:]}" + text(options.prompt_tokens - 1, 0.5)

    prompts = [{"prompt": prompt()} for _ in range(options.completions * options.steps)]
    shares = {"prompt": 0.5, "chosen": 0.8, "rejected": 0.2}
    pairs = [
        {column: text(draw.randrange(4, 24), share) for column, share in shares.items()}
        for _ in range(REWARD_STEPS * REWARD_PAIRS)
    ]
    for name, rows in (("prompts", prompts), ("pairs", pairs)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (work / "template.jinja").write_text(TEMPLATE)
    if reward_run:
        _train_reward(work)
    with safe_open(work / "model" / "model.safetensors", "pt") as file:
        options.backbone = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def _is_liked(word: str) -> bool:
    """The reward likes the words of the first half of the alphabet."""
    return "a" <= word[1] <= "m"


def _shape(folder: Path, asking: list[int], options: argparse.Namespace) -> None:
    """Give the random model what SFT gives: words that differ, and answers that end when they should.

    If chance ended them, the two sides would draw answers of other lengths, and do other work. So the first word of a
    prompt asks for a length n. One attention head takes the mean of `ASKED` over the t tokens so far, which is 0 but at
    that word, and writes a = (prompt + n) / t. The end's embedding, which is its row of the head too, makes of it

        logit(end) − logsumexp(all others) = (1 − a) · most / 2     (most: the most tokens of prompt and answer)

    which passes 0 after n tokens and grows by half a nat or more with the next: answers are within a few tokens of n.

    Args:
        folder: of the model.
        asking: ids of the words that ask for 1, 2, 3, … tokens; they are almost never drawn.
        options: for the number of tokens of prompts and answers.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows_VH = model.get_input_embeddings().weight.data  # of the head too
    never, end = [tokenizer.pad_token_id, *asking], tokenizer.eos_token_id
    is_liked = [_is_liked(f"{token} ") for token in tokenizer.convert_ids_to_tokens(range(len(rows_VH)))]
    rows_VH[:, ONE] = 1.0
    rows_VH[:, TASTE] = torch.tensor(is_liked).float() / 5 - 0.1
    rows_VH[:, [ASKED, REACHED]] = 0.0
    for layer in model.model.layers:
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.data[[ONE, ASKED, REACHED]] = 0.0  # none but the head below writes there
    lengths_A = options.prompt_tokens + torch.arange(1.0, len(asking) + 1)
    unit = 0.5 * rows_VH.shape[1] ** 0.5 / lengths_A.max()  # RMSNorm lets no number above √H
    attention = model.model.layers[0].self_attn
    for projection in (attention.q_proj, attention.v_proj):
        projection.weight.data[: attention.head_dim] = 0.0  # a query of 0 looks at all tokens alike
    attention.v_proj.weight.data[0, ASKED] = 1.0
    attention.o_proj.weight.data[REACHED, 0] = 1.0 / unit
    with torch.no_grad():
        ids = torch.randint(2, len(rows_VH), (8, 64), generator=torch.Generator().manual_seed(0))
        output = model(ids, output_hidden_states=True)
    one, others = output.hidden_states[-1][..., ONE].mean(), output.logits.logsumexp(-1).mean()

    rows_VH[[*never, end]] = 0.0
    rows_VH[never, ONE] = -1.0
    share_A = unit * lengths_A / rows_VH.shape[1] ** 0.5
    rows_VH[asking, ASKED] = share_A / (1 - share_A.square()).sqrt()  # which RMSNorm turns into unit · length
    most = options.prompt_tokens + options.tokens
    rows_VH[end, ONE], rows_VH[end, REACHED] = (others + most / 2) / one, -most / 2 / one
    model.save_pretrained(folder)


def _train_reward(work: Path) -> None:
    """A LoRA run of `alignkit reward` on the same model."""
    words = [f"model.name={work}/model", f"template.file={work}/template.jinja", f"data.path={work}/pairs.jsonl"]
    words += ["lora=ppo", "model.dtype=float32", "train.learning_rate=3e-3", f"train.max_steps={REWARD_STEPS}"]
    words += [f"train.per_device_train_batch_size={REWARD_PAIRS}", "train.save_strategy='no'", "train.report_to=none"]
    command = [sys.executable, "-m", "alignkit", "reward", *words, f"hydra.run.dir={work}/reward"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"alignkit reward: {done.stderr[-3000:]}")

"""A tiny GPT-2 in training, and a server that trains it in processes of their own, which tests can kill.

`python tiny.py` reads one JSON object a line, {"run_dir": …, "num_processes": …, …}, forks that many processes which
train, and answers with their exit codes. Forking costs nothing of the seconds that imports take.
"""

import gc
import hashlib
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from alignkit.errors import AlignkitError
from alignkit.training import checkpoints
from alignkit.training.durable import DurableTrainer
from alignkit.training.metrics import MetricsFile
from alignkit.training.session import train

NUM_ROWS, LENGTH, VOCABULARY = 40, 12, 64


def rows(num: int = NUM_ROWS) -> Dataset:
    """Rows of random tokens below 60, the first half of each a prompt."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(60, (num, LENGTH), generator=generator).tolist()
    labels = [[-100] * 6 + row[6:] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels, "row_index": list(range(num))})


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels", "row_index")}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def tiny_model(dropout: float = 0.1) -> GPT2LMHeadModel:
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2}
    rates = {"attn_pdrop": dropout, "embd_pdrop": dropout, "resid_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(**sizes, **rates, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False))


def tiny_trainer(
    run_dir: Path, *, train_rows: Dataset | None = None, dropout: float = 0.1, **settings: Any
) -> DurableTrainer:
    """Twenty steps of four rows; a checkpoint every five, a log every three."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 3,
        "save_steps": 5,
        "seed": 7,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return DurableTrainer(
        model=tiny_model(dropout),
        args=TrainingArguments(str(run_dir / "checkpoints"), **{**defaults, **settings}),
        train_dataset=rows() if train_rows is None else train_rows,
        eval_dataset=rows(8),
        data_collator=collate,
        callbacks=[MetricsFile(run_dir / "metrics.jsonl")],
        row_sources=[f"train.jsonl:{number + 1}" for number in range(NUM_ROWS)],
    )


class At(TrainerCallback):
    """Does something as the given step begins."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.act()


def weights_hash(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train_in_process(
    run_dir: Path,
    *,
    resume: bool = False,
    kill_at: int = 0,
    kill_in_save: int = 0,
    kill_after_save: int = 0,
    signal_at: int = 0,
    signal_number: int = signal.SIGTERM,
    limit_at: int = 0,
    poison_at: int = 0,
    **settings: Any,
) -> None:
    """Train; what happens on the way happens at these steps, to the process of the highest rank."""
    trainer = tiny_trainer(run_dir, **settings)
    model, last = trainer.model, trainer.args.process_index == trainer.args.world_size - 1

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    def poison() -> None:
        model.transformer.wte.weight.data[:] = float("nan")

    for step, act in (
        (kill_at, lambda: os.kill(os.getpid(), signal.SIGKILL)),
        (signal_at, lambda: os.kill(os.getpid(), signal_number)),
        (limit_at, limit),
        (poison_at, poison),
    ):
        if last and step:
            trainer.add_callback(At(step, act))
    if kill_in_save or kill_after_save:
        seal = checkpoints.seal

        def kill_or_seal(partial: Path, **rest: Any) -> None:
            step = checkpoints.step_of(partial)
            if step == kill_in_save:
                os.kill(os.getpid(), signal.SIGKILL)
            seal(partial, **rest)
            if step == kill_after_save:
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoints.seal = kill_or_seal
    try:
        train(trainer, resume=resume)
    except AlignkitError as error:
        sys.exit(f"{type(error).__name__} {error.exit_status}: {error}")
    if trainer.is_world_process_zero():
        (run_dir / "weights").write_text(weights_hash(trainer.model))


def start(rank: int, num_processes: int, run_dir: Path, words: dict[str, Any]) -> int:
    """Fork one process; what it says goes to `said-RANK.txt`."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        said = os.open(run_dir / f"said-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if num_processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(10000 + os.getppid() % 20000)}
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        disable_progress_bar()
        torch.set_num_threads(1)
        train_in_process(run_dir, **words)
        status = 0
    except SystemExit as done:
        os.write(2, f"{done}\n".encode())
        status = 1
    except BaseException:
        logging.exception("a bug")
    finally:
        os._exit(status)


def serve() -> None:
    gc.freeze()  # no process that is forked looks through what was imported
    for line in sys.stdin:
        words = json.loads(line)
        run_dir, num_processes = Path(words.pop("run_dir")), words.pop("num_processes", 1)
        run_dir.mkdir(parents=True, exist_ok=True)
        processes = [start(rank, num_processes, run_dir, words) for rank in range(num_processes)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()

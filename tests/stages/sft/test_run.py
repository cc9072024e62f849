"""`alignkit sft` on a tiny random model, with the real trainer."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.errors import AlignkitError, ConfigError, DataError, RunError, TrainingError
from alignkit.jobs import SftJob
from alignkit.stages.sft.data import view
from alignkit.stages.sft.run import run


def weights(run_dir: str, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(Path(run_dir) / file)


def bits(run_dir: str, file: str = "model.safetensors") -> str:
    return hashlib.sha256((Path(run_dir) / file).read_bytes()).hexdigest()


def largest_difference(one: str, other: str) -> float:
    a, b = weights(one), weights(other)
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.mark.usefixtures("drawn")
def test_a_run_directory_holds_everything_and_loads_with_plain_transformers(job, tmp_path, monkeypatch):
    run(job("data.eval_fraction=0.2", "samples=2", "sampling.max_new_tokens=5", "template=chatml"), Path("out"))
    out = Path("out").resolve()
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    ledger = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert ledger[0] == {"source": "rows.jsonl:1", "fate": "kept", "reason": "", "set": ledger[0]["set"]}
    assert len(ledger) == 36
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in metrics if "eval_loss" in line] == [0, 4]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    assert samples[0].keys() == {"prompt", "wanted", "before", "after"}
    assert "step" in (out / "log.txt").read_text()
    assert not list(out.rglob("*.bin"))

    monkeypatch.chdir("/")
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id


def test_a_sample_that_does_not_fit_ends_no_training(job, capsys):
    run(job("samples=2", "sampling.max_new_tokens=500", "train.max_steps=1"), Path("out"))
    assert json.loads(Path("out/run.json").read_text())["status"] == "finished"
    assert not Path("out/samples.jsonl").exists()
    assert (
        "2 of 2 samples are left out: with sampling.max_new_tokens=500 their prompts do not fit"
        in capsys.readouterr().out
    )


def test_a_lora_run_loads_with_plain_peft_from_anywhere(job, monkeypatch):
    run(job("lora=default"), Path("out"))
    out = Path("out").resolve()
    assert not (out / "model.safetensors").exists()
    monkeypatch.chdir("/")
    model = AutoPeftModelForCausalLM.from_pretrained(out)
    trained = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert trained
    assert all("attn" in name for name in trained)


def test_an_adapter_run_trains_further_and_takes_no_second_adapter(job):
    run(job("lora=default"), Path("first"))
    words = ["model.init=pretrained", "model.name=first"]
    plain = job("lora=none", *words)
    plain.model.config = {}
    run(plain, Path("second"))
    assert bits("first", "adapter_model.safetensors") != bits("second", "adapter_model.safetensors")
    assert json.loads(Path("second/run.json").read_text())["parents"][0]["path"] == "../first"
    again = job("lora=default", *words)
    again.model.config = {}
    with pytest.raises(ConfigError, match=r"^lora: first is an adapter already"):
        run(again, Path("third"))


def test_the_same_seed_gives_the_same_bits(job):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(job(f"seed={seed}"), Path(name))
    assert bits("a") == bits("b") != bits("c")


def test_the_shape_of_a_batch_changes_nothing_but_rounding(job):
    shapes = {
        "padded": ["data.batching=padded"],
        "packed": ["data.batching=packed"],
        "accumulated": ["train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=2"],
    }
    for name, words in shapes.items():
        run(job("train.per_device_train_batch_size=8", *words), Path(name))
    assert largest_difference("padded", "packed") < 2e-5
    assert largest_difference("packed", "accumulated") < 2e-5


def test_the_held_out_loss_does_not_depend_on_the_batch(job):
    losses = []
    for size in (1, 5):
        run(job("data.eval_fraction=0.3", f"train.per_device_eval_batch_size={size}"), Path(str(size)))
        losses.append(json.loads((Path(str(size)) / "run.json").read_text())["result"]["eval_loss"]["last"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_masking_can_be_turned_off(job):
    masked, everything = (view(job(f"data.train_on={what}")) for what in ("assistant", "everything"))
    (row, *_), (whole, *_) = list(masked.rows()), list(everything.rows())
    assert row.as_json(masked.tokenizer)["supervised_text"] == "one, one<|eos|>"
    # The first token is predicted by nothing, so that it carries no loss even here.
    assert whole.as_json(everything.tokenizer)["supervised_text"] == row.as_json(masked.tokenizer)["text"][1:]
    assert whole.input_ids == row.input_ids


def test_early_stopping_keeps_the_best_checkpoint(job):
    words = ["data.eval_fraction=0.3", "early_stopping=1", "train.eval_strategy=steps", "train.eval_steps=1"]
    run(job(*words, "train.max_steps=6", "train.learning_rate=0.3"), Path("out"))
    figures = json.loads(Path("out/run.json").read_text())["result"]
    history = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in history) < 6
    best = min(line["eval_loss"] for line in history if line.get("step") and "eval_loss" in line)
    (checkpoint,) = [
        path
        for path in Path("out/checkpoints").glob("checkpoint-*")
        if bits("out") == hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    ]
    (step,) = [line["step"] for line in history if line.get("eval_loss") == best]
    assert checkpoint.name == f"checkpoint-{step}"
    assert figures["eval_loss"]["last"] == best


def test_several_held_out_sets_are_scored_by_name(job, write_rows):
    write_rows([{"instruction": "Say one.", "output": "one"}], "near.jsonl")
    write_rows([{"instruction": "What else?", "output": "nothing"}], "far.jsonl")
    run(job("data.eval_path={near: near.jsonl, far: far.jsonl}"), Path("out"))
    assert json.loads(Path("out/run.json").read_text())["result"].keys() == {
        "train_loss",
        "eval_near_loss",
        "eval_far_loss",
        "kept_step",
    }


def test_a_run_directory_is_guarded(job):
    run(job(), Path("out"))
    before = bits("out")
    with pytest.raises(
        RunError, match=r"^out is a finished run: choose another name, or overwrite=true to replace it\n"
    ):
        run(job(), Path("out"))
    run(job("resume=true"), Path("out"))
    assert bits("out") == before
    run(job("overwrite=true", "seed=1"), Path("out"))
    assert bits("out") != before
    with pytest.raises(
        RunError, match=r"^resume=true: there is no run in new; leave resume out, or resume=auto, to start one$"
    ):
        run(job("resume=true"), Path("new"))
    assert not Path("new").exists()


def test_a_refused_overwrite_leaves_the_finished_run(job):
    run(job(), Path("out"))
    before = bits("out")
    Path("bad.jsonl").write_text('{"instruction": "a", "output": 3}\n')
    with pytest.raises(DataError):
        run(job("overwrite=true", "data.path=bad.jsonl"), Path("out"))
    assert bits("out") == before


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(job):
    with pytest.raises(
        TrainingError, match=r"^step \d+: the (loss|gradient) is not finite, at .*rows\.jsonl:\d+"
    ) as caught:
        run(job("train.learning_rate=1e30", "train.max_grad_norm=0"), Path("out"))
    assert caught.value.exit_status == 1
    assert not Path("out/model.safetensors").exists()
    assert json.loads(Path("out/run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.path=gone.jsonl"], r"^data\.path: .*gone\.jsonl"),
        (["model.init=pretrained", "model.name=nowhere"], r"^model\."),
        (["train.eval_strategy=steps"], r"^train\.eval_strategy needs held-out rows: data\.eval_path or"),
        (["early_stopping=2"], r"^early_stopping needs held-out rows"),
        (["data.eval_fraction=0.1", "data.eval_path=rows.jsonl"], r"both name held-out rows: give one of them"),
        (["samples=0", "sampling=nucleus"], r"(?m)^sampling\.top_p has no effect with samples=0: leave it out, or ask"),
        (
            ["samples=1", "sampling.do_sample=false", "sampling.temperature=2"],
            r"^sampling\.temperature=2 has no effect",
        ),
        (["data.max_length=600"], r"^data\.max_length is 600, and the model has 512 positions$"),
        (["data.max_length=9"], r"too_long"),
        (["lora=default", "lora.target_modules=[q_proj]"], r"c_attn"),
        (["template.file=gone.jinja"], r"gone\.jinja"),
        (["template=native"], r"native"),
        (["data.format=chat"], r"format"),
        (["data.columns={output: answer}"], r"answer"),
        (["train.lr_scheduler_type=wobbly"], r"^train: trl\.SFTConfig refuses these settings"),
        (["model.quantization=nf4"], r"^model\.quantization: "),
        (["model.attn_implementation=spda"], r"sdpa"),
    ],
)
def test_a_mistake_is_told_before_the_model_is_loaded(job, words, line, monkeypatch):
    def unreachable(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    if not words[0].startswith("train.lr_scheduler"):
        monkeypatch.setattr("alignkit.stages.sft.run.load_model", unreachable)
    with pytest.raises(AlignkitError, match=line):
        run(job(*words), Path("out"))
    assert not Path("out").exists()


def test_mistakes_of_several_kinds_come_together(job):
    with pytest.raises(ConfigError) as caught:
        run(
            job(
                "data.path=gone.jsonl", "early_stopping=1", "template.file=gone.jinja", "model.attn_implementation=spda"
            ),
            Path("out"),
        )
    assert len(caught.value.problems) == 3


WAY_OUT = "; fix the row, or leave it out with data.malformed=drop"


@pytest.mark.parametrize(
    ("rows", "problems"),
    [
        (['{"instruction": "a", "output": null}'], ["bad.jsonl:1: 'output' is null" + WAY_OUT]),
        (['{"instruction": "a", "output": 3}'], ["bad.jsonl:1: 'output' is a number where text belongs" + WAY_OUT]),
        (['{"instruction": "a", "output": ""}'], ["bad.jsonl:1: 'output' is empty" + WAY_OUT]),
        (
            ['{"instruction": "a", "output": "b"}', "[1]", '{"instruction": "a"}'],
            [
                "2 malformed rows: fix them, or leave them out with data.malformed=drop",
                "bad.jsonl:2: not an object",
                "bad.jsonl:3: no field 'output'",
            ],
        ),
    ],
)
def test_malformed_rows_are_named_together(job, rows, problems):
    Path("bad.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError) as caught:
        run(job("data.path=bad.jsonl"), Path("out"))
    assert list(caught.value.problems) == problems


def test_a_job_needs_no_hydra(job, write_rows):
    """A notebook hands the stage a plain dataclass."""
    plain = SftJob()
    plain.model, plain.data.path, plain.template.name = job().model, "rows.jsonl", "user_bot"
    plain.train, plain.samples = {"max_steps": 1, "report_to": "none"}, 0
    run(plain, Path("out"))
    assert Path("out/model.safetensors").exists()

"""Tasks of lm-eval, asked in the template of training; the harness is an extra."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, RwkvConfig

from alignkit.commands.tasks import check_tasks, run
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import ConfigError
from alignkit.evaluate.likelihood import Row, token_logprobs
from alignkit.evaluate.served_model import ServedModel
from alignkit.launch import compose_job
from alignkit.models.tiny import byte_tokenizer

KNOWN = {"Say hello.": "hello there", "Up?": "down", "A Greek word": "λόγος"}


def write_task(folder: Path, name: str, **settings: Any) -> Path:
    """A task on the rows that the tiny runs know by heart."""
    rows = [
        {"question": question, "answer": answer, "choices": [answer, "never"]} for question, answer in KNOWN.items()
    ]
    data = folder / "rows.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        **settings,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return path


@pytest.fixture
def choice(tmp_path: Path) -> Path:
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    target = {"doc_to_choice": "choices", "doc_to_target": 0}
    return write_task(tmp_path, "choose", output_type="multiple_choice", metric_list=metrics, **target)


@pytest.fixture
def exact(tmp_path: Path) -> Path:
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    stop = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    target = {"doc_to_target": "{{answer}}", "generation_kwargs": stop}
    return write_task(tmp_path, "say", output_type="generate_until", metric_list=metrics, **target)


@pytest.fixture
def measure(tmp_path: Path) -> Callable[..., dict[str, dict[str, dict[str, Any]]]]:
    """Run to run, task to task, task to its metric."""

    def measure(tasks: list[Path], *runs: Path, words: tuple[str, ...] = ()) -> dict[str, dict[str, dict[str, Any]]]:
        job = compose_job("tasks", ["model.dtype=float32", *words], model={"name": str(runs[0])})
        out = tmp_path / "tasks.json"
        run(job, runs=[str(one) for one in runs], tasks=[str(task) for task in tasks], out=out)
        found = json.loads(out.read_text(encoding="utf-8"))["runs"]
        return {one["name"]: {metric["task"]: metric for metric in one["tasks"]} for one in found}

    return measure


needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra eval")


@needs_harness
def test_what_a_run_knows_is_found_in_its_own_template(
    measure: Callable[..., Any],
    choice: Path,
    exact: Path,
    run_dir: Path,
    adapter_dir: Path,
    other_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = measure([choice, exact], run_dir, adapter_dir, other_dir)
    assert found[str(run_dir)]["choose"]["value"] == 1.0
    assert found[str(run_dir)]["say"]["value"] == 1.0, "the response ends where training ended it"
    assert found[str(adapter_dir)]["say"]["value"] == 1.0
    assert found[str(other_dir)]["say"]["value"] == 0.0
    assert found[str(run_dir)]["say"] | {"value": 0} == {
        "task": "say",
        "name": "exact_match",
        "value": 0,
        "standard_error": 0.0,
        "num_rows": 3,
        "num_fewshot": 0,
    }
    shown = capsys.readouterr().out
    assert "say exact_match" in shown
    assert "1.0000 ± 0.0000" in shown


@needs_harness
def test_prompts_that_are_too_long_are_counted(
    measure: Callable[..., Any], tmp_path: Path, run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scored = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": 0}
    said = {"output_type": "generate_until", "doc_to_target": "{{answer}}", "generation_kwargs": {"max_gen_toks": 4}}
    for name, settings in (("scored", scored), ("said", said)):
        task = write_task(tmp_path, name, **{"doc_to_text": "{{question * 2000}}", **settings})
        measure([task], run_dir)
        (tmp_path / "tasks.json").unlink()
        num = {"scored": 6, "said": 3}[name]
        assert f"{run_dir}: {num} prompts are longer than its " in capfd.readouterr().err
    task = write_task(tmp_path, "long", **{**said, "generation_kwargs": {"max_gen_toks": 10**6}})
    with pytest.raises(ConfigError, match=f"--tasks: lm-eval cannot run on {run_dir}: .*1000000"):
        measure([task], run_dir)


@needs_harness
def test_an_answer_is_the_same_whatever_shares_its_batch(tmp_path: Path) -> None:
    """RWKV sees what stands in front of a prompt, masked or not."""
    from lm_eval.api.instance import Instance

    from alignkit.evaluate.harness import TrainedModel

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32}
    config = RwkvConfig(vocab_size=len(tokenizer), context_length=64, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # else it repeats a single token
    model.save_pretrained(tmp_path / "rwkv")
    tokenizer.save_pretrained(tmp_path / "rwkv")
    job = compose_job("tasks", ["model.dtype=float32", "template=instruction"], model={"name": str(tmp_path / "rwkv")})
    policy = ServedModel.of(job.model, job.template).load(seed=0)
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False}
    asked = [
        Instance("generate_until", {}, (text, dict(settings)), at) for at, text in enumerate(["a", "a longer one"])
    ]
    alone, together = (TrainedModel(policy, batch_size=size).generate_until(asked, True) for size in (1, 2))
    assert together == alone


@needs_harness
def test_a_limit_takes_the_first_rows(measure: Callable[..., Any], choice: Path, other_dir: Path) -> None:
    assert measure([choice], other_dir, words=("limit=2",))[str(other_dir)]["choose"]["num_rows"] == 2


@needs_harness
@pytest.mark.parametrize("folder", ["run_dir", "adapter_dir"])
def test_the_harness_sees_the_tokens_and_probabilities_of_training(folder: str, request: pytest.FixtureRequest) -> None:
    from lm_eval.api.instance import Instance

    from alignkit.evaluate.harness import TrainedModel

    job = compose_job("tasks", ["model.dtype=float32"], model={"name": str(request.getfixturevalue(folder))})
    policy = ServedModel.of(job.model, job.template).load(seed=0)
    model = TrainedModel(policy, batch_size=2)
    asked = [("this", Conversation((Message("user", "Up?"),)))]
    (prompt,) = policy.encode(asked)
    context = model.apply_chat_template([{"role": "user", "content": "Up?"}])
    answer = policy.tokenizer(policy.template.response_lead + "down", add_special_tokens=False)["input_ids"]
    assert model._encode_pair(context, "down") == (prompt, answer)
    assert model.tok_encode(context) == prompt
    request_ = Instance("loglikelihood", {}, (context, "down"), 0, task_name="t", doc_id=0, repeats=1)
    ((logprob, is_greedy),) = model.loglikelihood([request_], disable_tqdm=True)
    (expected,) = token_logprobs(policy.weights, [Row.answered(prompt, answer)], pad_id=policy.pad_id, batch_size=1)
    assert logprob == pytest.approx(expected.sum().item(), abs=1e-4)
    assert is_greedy
    assert model.eot_token_id == policy.template.end_id
    assert torch.isfinite(expected).all()


@needs_harness
def test_solved_rows_are_turns_of_the_conversation(
    choice: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit.evaluate.harness import TrainedModel

    assert check_tasks([str(choice)], num_fewshot=1) == []
    asked: list[str] = []
    whole = TrainedModel.generate_until

    def overheard(self: TrainedModel, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        asked.extend(one.args[0] for one in requests)
        return whole(self, requests, disable_tqdm)

    monkeypatch.setattr(TrainedModel, "generate_until", overheard)
    shots = {"output_type": "generate_until", "doc_to_target": "{{answer}}", "fewshot_split": "test"}
    task = write_task(tmp_path, "shots", generation_kwargs={"max_gen_toks": 4}, **shots)
    job = compose_job("tasks", ["num_fewshot=1"], model={"name": str(run_dir)})
    run(job, runs=[str(run_dir)], tasks=[str(task)], out=None)
    for text, question in zip(asked, KNOWN, strict=True):
        assert text.count("### Instruction:\n") == text.count("### Response:\n") == 2
        assert text.endswith(f"<|eos|>\n\n### Instruction:\n{question}\n\n### Response:\n")
    zero = write_task(tmp_path, "zero", num_fewshot=0, **shots)
    assert check_tasks([str(zero)], num_fewshot=2) == [
        f"--tasks {zero}: num_fewshot=2 has no effect on zero, which is fixed at 0: leave it out"
    ]


@needs_harness
def test_wrong_tasks_are_told_together_before_a_model_is_loaded(tmp_path: Path, choice: Path) -> None:
    empty, broken = tmp_path / "empty.yaml", tmp_path / "broken.yaml"
    empty.write_text("doc_to_text: x\n", encoding="utf-8")
    broken.write_text("task: [\n", encoding="utf-8")
    problems = check_tasks(["arc_esy", "nowhere.yaml", str(empty), str(broken), str(choice), "zzzzzzzz"])
    assert problems[0] == "--tasks arc_esy: lm-eval has no such task; did you mean 'arc_easy'?"
    assert problems[1] == "--tasks nowhere.yaml: there is no such file"
    assert problems[2].startswith(f"--tasks {empty}: it cannot be loaded: ")
    assert problems[3].startswith(f"--tasks {broken}: it cannot be loaded: ")
    assert problems[4] == "--tasks zzzzzzzz: lm-eval has no such task; a task of your own is a file.yaml"
    assert all("\n" not in problem for problem in problems)
    assert check_tasks([]) == ["--tasks names none: give names that lm-eval has, or YAML files"]
    assert check_tasks([str(choice), str(choice)]) == [f"--tasks {choice} is named twice"]
    job = compose_job("tasks", [], model={"name": "nowhere"})
    with pytest.raises(ConfigError, match="arc_easy") as caught:
        run(job, runs=["nowhere", "nowhere"], tasks=["arc_esy"], out=choice)
    assert len(caught.value.problems) == 4  # named twice, no such model, --out exists, no such task


def test_without_the_harness_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as Python remembers a module that is not there
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert check_tasks(["arc_easy"]) == ["--tasks: lm-eval is not installed: pip install 'alignkit[eval]'"]


def test_flags_of_held_out_rows_are_refused_with_tasks(alignkit: Callable[..., Any]) -> None:
    done = alignkit("evaluate", "runs/x", "--tasks", "arc_easy", "--reward", "r.py:f", "--pairs", "p.jsonl")
    assert done.returncode == 2
    assert done.stderr == (
        "alignkit: --reward is about held-out rows, and --tasks brings its own: give one of them\n"
        "alignkit: --pairs is about held-out rows, and --tasks brings its own: give one of them\n"
    )
    done = alignkit("evaluate", "runs/x", "--tasks", "arc_easy", "num_prompts=3")
    assert done.returncode == 2
    assert "num_prompts" in done.stderr

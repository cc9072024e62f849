"""alignkit from Python: a job from words, its run, and what of one's own may take part in it."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from trl.trainer import base_trainer

from alignkit.api import job, run
from alignkit.errors import ConfigError, RewardError, RunError
from alignkit.jobs import PpoJob, SftJob
from alignkit.ppo.trainer import PpoTrainer
from alignkit.training.sft import SftTrainer

SMALL = ["model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
TINY = ["model=tiny_gpt2", *SMALL, "data=demo", "data.limit=16", "samples=0", "train.per_device_train_batch_size=4"]
QUICK = [*TINY, "train.max_steps=2", "train.logging_steps=1"]
PAIRS = ["data=demo_pairs", "template=instruction"]
PPO = ["config=smoke/ppo", "ppo.num_updates=1", "samples=0", "sampling.max_new_tokens=4"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(folder: str) -> dict[str, Any]:
    content = json.loads((Path(folder) / "run.json").read_text())
    assert isinstance(content, dict)
    return content


def test_a_notebook_shows_the_lines_of_a_mistake_alone() -> None:
    with pytest.raises(ConfigError) as caught:
        job("sft", "model=tiny_gpt", "data=demo", "train.lerning_rate=1e-4")
    first, second = caught.value._render_traceback_()  # as IPython asks for it
    assert first.startswith("ConfigError: no option 'tiny_gpt' in the group 'model'")
    assert second.startswith("ConfigError: unknown key 'lerning_rate'")


class Steps(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(state.global_step)


@pytest.mark.parametrize(("stage", "words"), [("sft", []), ("reward", PAIRS), ("dpo", PAIRS), ("ppo", PPO)])
def test_every_stage_runs_with_callbacks_and_gives_folder_and_figures(stage: Any, words: list[str]) -> None:
    steps = Steps()
    given = words if stage == "ppo" else [word for word in QUICK if stage != "reward" or word != "samples=0"] + words
    result = run(job(stage, *given), "runs/nb", callbacks=[steps])
    assert steps.seen == ([1] if stage == "ppo" else [1, 2])
    assert result.folder == Path("runs/nb")
    assert result.figures == record("runs/nb")["result"]
    assert {"first", "last"} <= result.figures["eval_score" if stage == "ppo" else "eval_loss"].keys()


def test_a_job_is_that_of_the_command_line_and_can_be_changed() -> None:
    sft = job("sft", *QUICK, "train.learning_rate=1e-3")
    assert isinstance(sft, SftJob)
    assert (sft.model.name, sft.train["max_steps"], sft.train["learning_rate"]) == ("tiny_gpt2", 2, 1e-3)
    sft.train["max_steps"] = 1
    steps = Steps()
    run(sft, "nb", callbacks=[steps])
    assert steps.seen == [1]
    with pytest.raises(RunError, match="nb is a finished run: choose another name, or overwrite=true"):
        run(sft, "nb")
    run(replace(sft, overwrite=True), "nb")


def test_all_mistakes_are_in_one_exception() -> None:
    with pytest.raises(ConfigError) as error:
        job("sft", "model=tiny_gpt", "config=smoke/stf", "train.lerning_rate=1")
    assert [line.partition(";")[0] for line in error.value.problems] == [
        "config=smoke/stf: there is no such file, and no recipe of this name",
        "no option 'tiny_gpt' in the group 'model', which has gpt2, llama32_1b, qwen3_0_6b, run, smollm2_135m, "
        "tiny_gpt2, tiny_llama",
        "unknown key 'lerning_rate' in 'train': it is no argument of trl.SFTConfig",
    ]
    assert str(error.value) == "\n".join(error.value.problems)


def test_a_wrong_stage_is_a_mistake() -> None:
    stage: Any = "ftt"
    with pytest.raises(ConfigError, match="there is no stage 'ftt', only sft, reward, dpo, ppo; did you mean 'sft'"):
        job(stage)


def test_what_is_set_on_a_job_and_is_no_setting_is_refused_before_anything_is_written() -> None:
    sft: Any = job("sft", *QUICK)
    sft.sample, sft.data.limt, sft.samples = 3, 5, -1
    with pytest.raises(ConfigError) as error:
        run(sft, "nb")
    assert sorted(error.value.problems) == [
        "samples is -1: it must be at least 0",
        "unknown key 'data.limt'; did you mean 'limit'?",
        "unknown key 'sample'; did you mean 'samples'?",
    ]
    assert not Path("nb").exists()


def test_no_environment_variable_is_left_and_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *args, **kwargs: sent.append(args))
    before = dict(os.environ)
    run(job("sft", *QUICK, "train.report_to=tensorboard"), "nb")
    assert {name for name in before | os.environ if os.environ.get(name) != before.get(name)} - {
        "TORCHINDUCTOR_CACHE_DIR"  # by torch itself
    } == set()
    assert sent == []
    assert len(list(Path("nb/tensorboard").iterdir())) == 1


# A reward of Python's


def paid_by(letter: str, log: str | None = None) -> Callable[..., list[float]]:
    def reward(prompts: list[str], completions: list[str], output: list[str]) -> list[float]:
        if log is not None:
            with Path(log).open("a") as lines:
                lines.writelines(f"{json.dumps(word)}\n" for word in output)
        return [float(text.count(letter)) for text in completions]

    return reward


def test_a_closure_rewards_as_the_same_function_in_a_file_does() -> None:
    Path("mine.py").write_text("def a(prompts, completions):\n    return [float(t.count('a')) for t in completions]\n")
    named = job("ppo", *PPO, "reward=[{function: mine.py:a}]")
    closed = job("ppo", *PPO)
    closed.reward = [{"function": paid_by("a", "log.jsonl")}]
    scores = [run(one, folder).figures["eval_score"] for one, folder in ((named, "named"), (closed, "closed"))]
    assert scores[0] == scores[1]
    assert all(isinstance(json.loads(word), str) for word in Path("log.jsonl").read_text().splitlines())
    assert record("closed")["job"]["reward"] == [{"function": f"{__name__}:paid_by.<locals>.reward"}]


def test_a_run_goes_on_with_the_function_that_it_began_with_alone() -> None:
    def unlike(prompts: list[str], completions: list[str]) -> list[float]:
        return [1.0 if "b" in text else 0.0 for text in completions]

    first = job("ppo", *PPO)
    first.reward = [{"function": paid_by("a")}]
    run(first, "nb")
    content = record("nb")
    (Path("nb") / "run.json").write_text(json.dumps({**content, "status": "interrupted"}))
    again: PpoJob = replace(first, resume=True, reward=[{"function": unlike}])
    with pytest.raises(RunError, match=r"resume=true: reward was .*paid_by.* and is .*unlike"):
        run(again, "nb")
    (name,) = content["inputs"]["functions"]
    changed = {**content["inputs"], "functions": {name: "0" * 64}}
    (Path("nb") / "run.json").write_text(json.dumps({**content, "status": "interrupted", "inputs": changed}))
    with pytest.raises(RunError, match=r"the function reward\[0\] .*paid_by.* has changed since nb began"):
        run(replace(first, resume=True), "nb")


@pytest.mark.parametrize(
    ("reward", "line"),
    [
        ([{"function": lambda texts: [0.0]}], r"reward\[0\]: <lambda>\(texts\) has the wrong signature: it is called"),
        ([inspect.getsource], r"^reward\[0\] is the function inspect:getsource: give it as {'function': getsource}$"),
        ([lambda prompts, completions: []], r"^reward\[0\] is the function .*<lambda>: give it as {'function': …}$"),
        ([{"function": 3}], r"reward\[0\].function is 3: it must be a name"),
        ([{"function": lambda prompts, texts, colour: texts}], r"asks for 'colour', which is no column of the prompts"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused(reward: list[Any], line: str) -> None:
    ppo = job("ppo", *PPO)
    ppo.reward = reward
    with pytest.raises((ConfigError, RewardError), match=line):
        run(ppo, "nb")


# A trainer of one's own


def gradients(folder: str) -> list[float]:
    lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [line["grad_norm"] for line in lines if "grad_norm" in line]


class PlainSft(SftTrainer):
    """The cross entropy again, as docs/python.md says that a loss is written."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs["labels"][:, 1:]
        supervised = labels != -100
        outputs = model(**{name: inputs[name] for name in inputs if name != "labels"}, use_cache=False)
        nll = cross_entropy(outputs.logits[:, :-1][supervised].float(), labels[supervised], reduction="none")
        loss = nll.sum() / (num_items_in_batch or supervised.sum())
        return (loss, outputs) if return_outputs else loss


def test_a_loss_written_again_trains_the_same_model() -> None:
    words = [*QUICK, "train.gradient_accumulation_steps=2", "train.learning_rate=1e-2"]
    ours = run(job("sft", *words), "ours").figures
    theirs = run(job("sft", *words), "theirs", trainer_class=PlainSft).figures
    for figure, values in ours.items():
        assert theirs[figure] == pytest.approx(values, abs=1e-5)
    assert gradients("ours") == pytest.approx(gradients("theirs"), rel=1e-4)
    assert list(record("ours")["inputs"]["functions"]) == []
    assert list(record("theirs")["inputs"]["functions"]) == [f"trainer_class {__name__}:PlainSft"]


def test_a_ppo_trainer_of_ones_own_trains() -> None:
    class Halved(PpoTrainer):
        def score_rollouts(self, model: Any, rows: Any, scores: Any, update: Any, **more: Any) -> Any:
            halved.extend(scores)
            return super().score_rollouts(model, rows, [score / 2 for score in scores], update, **more)

    halved: list[float] = []
    run(job("ppo", *PPO), "nb", trainer_class=Halved)
    assert len(halved) == 32


def test_the_signature_of_the_ppo_trainer_names_every_piece() -> None:
    parameters = list(inspect.signature(PpoTrainer.__init__).parameters.values())[1:]
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    described = re.findall(r"^ {8}(\w+): ", str(PpoTrainer.__doc__), re.MULTILINE)
    assert described == [parameter.name for parameter in parameters]


# The functions alone


def test_every_function_that_the_page_lists_is_there() -> None:
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `(alignkit\.[\w.]+)` \|", page, re.MULTILINE)
    assert len(names) > 10
    for name in names:
        module, _, function = name.rpartition(".")
        assert callable(getattr(import_module(module), function))


def test_a_job_that_only_is_composed_loads_no_torch() -> None:
    program = "import sys\nfrom alignkit.api import job\njob('sft', 'model=tiny_gpt2', 'data=demo')\n"
    program += "assert not {'torch', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)

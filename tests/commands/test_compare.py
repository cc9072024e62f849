"""Models side by side: what they say, who wins, and a page that can be read."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.choices import Dtype
from alignkit.commands.compare import run
from alignkit.config import ModelConfig
from alignkit.errors import AlignkitError
from alignkit.evaluate.compare_page import write_page
from alignkit.evaluate.comparison import Answer, Column, Comparison
from alignkit.evaluate.statistics import win_rate
from alignkit.jobs import CompareJob
from alignkit.launch import compose_job
from alignkit.models.load import load_model, load_tokenizer
from alignkit.models.reward import load_reward, reward_tokenizer, scores_of
from alignkit.runs.result import seal_result
from alignkit.stages.reward import run as reward

LENGTHS = "def longer(prompts, completions):\n    return [len(text) for text in completions]\n"

Compare = Callable[..., dict[str, Any]]


@pytest.fixture
def job(run_dir: Path) -> Callable[..., CompareJob]:
    def job(*words: str) -> CompareJob:
        basis = ["sampling.max_new_tokens=16", "model.dtype=float32"]
        return compose_job("compare", [*basis, *words], model={"name": str(run_dir)})

    return job


@pytest.fixture
def compare(job: Callable[..., CompareJob], run_dir: Path, other_dir: Path, tmp_path: Path) -> Compare:
    """What `--out` holds."""

    def compare(*words: str, **given: Any) -> dict[str, Any]:
        (tmp_path / "my_rewards.py").write_text(LENGTHS)
        asked = {
            "runs": [str(run_dir), str(other_dir)],
            "prompts": ["Say hello.", "Up?"],
            "prompts_path": None,
            "reward": None,
            "html": None,
            "out": tmp_path / "out.json",
        }
        run(job(*words), **asked | given)
        found: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
        return found

    return compare


def test_answers_rewards_and_wins(
    compare: Compare, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compare(reward=f"{tmp_path}/my_rewards.py:longer", html=tmp_path / "pages" / "page.html")
    assert found["prompts"] == ["Say hello.", "Up?"]
    first, other = found["columns"]
    assert [answer["text"] for answer in first["answers"]] == ["hello there", "down"]
    assert [answer["reward"] for answer in first["answers"]] == [11, 4]
    assert [answer["finish_reason"] for answer in first["answers"]] == ["stop", "stop"]
    assert first["wins"] is None
    scores = [[answer["reward"] for answer in column["answers"]] for column in (other, first)]
    wins = win_rate(*scores)
    assert other["wins"]["wins"] == wins.wins
    assert other["wins"]["rate"]["value"] == wins.rate.value
    out = capsys.readouterr().out
    assert f"{run_dir}: hello there  reward 11.000" in out
    assert "win/tie/loss" in out
    assert "hello there" in (tmp_path / "pages" / "page.html").read_text()


def test_how_the_logprobs_of_the_first_response_change(compare: Compare, run_dir: Path, other_dir: Path) -> None:
    found = compare("logprobs=true")
    assert found["tokens"][0] == [*"hello there", "<|eos|>"]
    rendered = "### Instruction:\nSay hello.\n\n### Response:\n"
    ids = [*rendered.encode(), *b"hello there", 258]
    for folder, column in zip((run_dir, other_dir), found["columns"], strict=True):
        config = ModelConfig(str(folder))
        model = load_model(config, tokenizer=load_tokenizer(config), seed=0)
        with torch.inference_mode():
            plain = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [plain[t - 1, ids[t]].item() for t in range(len(rendered), len(ids))]
        assert column["token_logprobs"][0] == pytest.approx(expected, abs=1e-4)


def refusal(job: CompareJob, runs: list[str], **given: Any) -> list[str]:
    asked: dict[str, Any] = {"prompts": ["a"], "prompts_path": None, "reward": None, "html": None, "out": None} | given
    with pytest.raises(AlignkitError) as caught:
        run(job, runs=runs, **asked)
    assert caught.value.exit_status == 2
    return list(caught.value.problems)


def test_mistakes_are_told_together(job: Callable[..., CompareJob], run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def one(prompts):\n    return []\n")
    name = str(run_dir)
    assert refusal(job(), [name], prompts=[], reward="nowhere.py:f") == [
        "there is nothing to answer: give --prompt TEXT or --prompts FILE",
        "there is nothing to compare: name two models or more",
        "--reward: nowhere.py:f: there is no file nowhere.py",
    ]
    twice = refusal(job(), [name, name, "gone"], prompts=[" "], reward=f"{tmp_path}/r.py:one")
    assert twice[:3] == ["--prompt 1 is empty", f"{name} is named twice", twice[2]]
    assert twice[2].startswith("model.name: there is no folder 'gone'")
    assert twice[3].startswith("--reward: one(prompts) has the wrong signature: it is called (prompts, completions, ")
    (line,) = refusal(job(), [name, name + "/"], reward=name)
    assert line == f"--reward: {name} is a language model where a reward model belongs"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[1.0]", "returned 1 scores for 2 completions"),
        ("[1.0, float('nan')]", "gave nan for --prompt 2"),
        ("1 / 0", "raised ZeroDivisionError"),
        ("['a', 'b']", "gave 'a' for --prompt 1, prompt 'Say hello.', completion 'hello there': a score must be a"),
    ],
)
def test_a_reward_that_gives_no_numbers_is_told(compare: Compare, tmp_path: Path, body: str, words: str) -> None:
    (tmp_path / "wrong.py").write_text(f"def f(prompts, completions):\n    return {body}\n")
    with pytest.raises(AlignkitError, match=words) as caught:
        compare(reward=f"{tmp_path}/wrong.py:f")
    assert caught.value.exit_status == 2


def test_a_file_that_is_there_is_not_written_over(compare: Compare) -> None:
    compare()
    with pytest.raises(AlignkitError, match=r"out\.json exists already: name another file or remove it"):
        compare()


def test_a_reward_run_scores_what_was_said(
    compare: Compare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    quiet = ["train.report_to=none", "train.save_strategy='no'", "train.max_steps=1"]
    folder = tmp_path / "judge"
    reward.run(compose_job("reward", ["model=tiny_gpt2", "template=chatml", f"data.path={pairs}", *quiet]), folder)
    capsys.readouterr()
    found = compare(reward=str(folder))
    said = capsys.readouterr().err
    assert f"--reward: {folder} was trained with another template than " in said
    for column in found["columns"]:
        num_cut = sum(answer["finish_reason"] == "length" for answer in column["answers"])
        line = f"scores {num_cut} of 2 responses of {column['name']} as if they had ended, where sampling."
        assert (line in said) == (num_cut > 0)
    assert "as if they had ended" in said
    answers = [answer for column in found["columns"] for answer in column["answers"]]
    assert all(isinstance(answer["reward"], float) for answer in answers)
    config = ModelConfig(str(folder), dtype=Dtype.float32)
    tokenizer = load_tokenizer(config)
    judge = load_reward(config, reward_tokenizer(tokenizer, end_id=260))
    text = "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\nhello there<|im_end|>"
    (score,) = scores_of(judge, [tokenizer(text)["input_ids"]], pad_id=256, batch_size=1)
    assert answers[0]["reward"] == pytest.approx(score, abs=1e-4)


def test_logprobs_of_other_tokens_or_templates_are_refused(
    job: Callable[..., CompareJob], run_dir: Path, train: Callable[..., Path], tmp_path: Path
) -> None:
    chatml = train("chatml", "template=chatml", steps=1)
    (line,) = refusal(job("logprobs=true"), [str(run_dir), str(chatml)])
    assert line.startswith(f"logprobs: {run_dir} and {chatml} were trained with different templates")
    renamed = tmp_path / "renamed"
    shutil.copytree(run_dir, renamed)
    content = json.loads((renamed / "tokenizer.json").read_text())
    content["model"]["vocab"]["a"], content["model"]["vocab"]["b"] = 98, 97
    (renamed / "tokenizer.json").write_text(json.dumps(content))
    seal_result(renamed)
    (line,) = refusal(job("logprobs=true"), [str(run_dir), str(renamed)])
    assert line == (
        f"logprobs: {run_dir} and {renamed} have different tokenizers, so the log-probabilities of their tokens cannot "
        "be compared: leave it out"
    )
    run(job(), runs=[str(run_dir), str(chatml)], prompts=["a"], prompts_path=None, reward=None, html=None, out=None)


def comparison() -> Comparison:
    answers = [[Answer("one <b> two three", "stop", 4, -1.0, 2.0)], [Answer("one four three", "length", 3, -2.0, 2.5)]]
    columns = [
        Column("runs/a", answers[0], None, [[-1.0, -2.0]]),
        Column("runs/b", answers[1], win_rate([2.5], [2.0]), [[-0.5, -5.0]]),
    ]
    return Comparison(["p.txt:1"], ["Is 1 < 2?"], columns, [["one", "<|eos|>"]])


def test_the_page_by_its_words(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", comparison())
    page = (tmp_path / "page.html").read_text()
    assert "<pre>Is 1 &lt; 2?</pre>" in page
    assert "<pre>one &lt;b&gt; two three</pre>" in page
    assert "<pre>one <mark>four</mark> three</pre>" in page
    assert "4 tokens · ended · reward 2.000</p>" in page
    assert "3 tokens · cut off · <b>reward 2.500 ▲</b></p>" in page
    assert 'title="-1.00 → -0.50">one</span>' in page
    assert f"the first response here: {-2.5:+.2f} nats" in page
    assert math.isclose(0.6 * 0.5 / 3, 0.1)
    assert "rgb(var(--up) / 0.10)" in page
    assert "rgb(var(--down) / 0.60)" in page
    assert "://" not in page

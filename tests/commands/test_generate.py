"""Answers of a run: the prompt as it was trained, only the response, the same whatever shares the batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.commands.generate import run
from alignkit.errors import AlignkitError
from alignkit.jobs import GenerateJob
from alignkit.launch import compose_job

KNOWN = {
    "Say hello.": "hello there",
    "Count to five, please, and take your time.": "1 2 3 4 5",
    "Up?": "down",
    "A Greek word": "λόγος",
}  # what the run of conftest.py has learnt by heart

Answer = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def job(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., GenerateJob]:
    monkeypatch.chdir(tmp_path)

    def job(*words: str) -> GenerateJob:
        return compose_job("generate", ["sampling.max_new_tokens=20", *words], model={"name": str(run_dir)})

    return job


@pytest.fixture
def answer(job: Callable[..., GenerateJob], tmp_path: Path) -> Answer:
    """What `--out` holds."""
    numbers = iter(range(100))

    def answer(*words: str, prompts: Any = (), prompts_path: Path | None = None) -> list[dict[str, Any]]:
        out = tmp_path / "answers" / f"{next(numbers)}.jsonl"
        run(job(*words), prompts=list(prompts), prompts_path=prompts_path, out=out)
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    return answer


def test_the_response_is_only_the_response(answer: Answer) -> None:
    rows = answer(prompts=KNOWN)
    assert [row["response"] for row in rows] == list(KNOWN.values())
    logprobs = [row.pop("logprob") for row in rows]
    assert rows[0] == {
        "source": "--prompt 1",
        "sample": 0,
        "prompt": "### Instruction:\nSay hello.\n\n### Response:\n",
        "response": "hello there",
        "finish_reason": "stop",
        "num_prompt_tokens": 43,
        "num_tokens": 11,  # bytes; the end token is not counted
    }
    assert all(-1 < logprob < 0 for logprob in logprobs)


@pytest.mark.parametrize("sampling", [[], ["sampling=nucleus", "sampling.temperature=1.5"]])
def test_what_shares_the_batch_changes_no_answer(answer: Answer, sampling: list[str]) -> None:
    prompts = [*KNOWN, "Something else entirely, and rather long at that", "x"]
    # in bfloat16, which generation takes where the machine has it, three digits are all there is
    words = [*sampling, "num_samples=3", "model.dtype=float32"]
    alone, *together = (answer(*words, f"batch_size={size}", prompts=prompts) for size in (1, 4, 16))
    for rows in together:
        assert [row["response"] for row in rows] == [row["response"] for row in alone]
        assert [row["logprob"] for row in rows] == pytest.approx([row["logprob"] for row in alone], abs=1e-4)


def test_draws_are_a_function_of_the_seed_and_not_of_the_batch(answer: Answer) -> None:
    prompts = ["What is this?", "And that, over there?", "x"]
    hot = ["sampling.temperature=2"]
    texts = [
        [row["response"] for row in answer(*hot, "model.dtype=float32", *words, prompts=prompts)]
        for words in (["seed=1", "batch_size=1"], ["seed=1", "batch_size=3"], ["seed=2"])
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] != [row["response"] for row in answer(prompts=prompts)]  # the default takes the likeliest


def test_several_samples_begin_with_the_one_and_each_draws_for_itself(answer: Answer) -> None:
    hot, prompts = ["sampling.temperature=2", "model.dtype=float32"], ["What is this?", "x"]
    rows = answer(*hot, "num_samples=3", prompts=prompts)
    assert [(row["source"], row["sample"]) for row in rows] == [
        (f"--prompt {prompt}", sample) for prompt in (1, 2) for sample in (0, 1, 2)
    ]
    assert len({row["response"] for row in rows}) == 6
    assert [row["response"] for row in rows[::3]] == [row["response"] for row in answer(*hot, prompts=prompts)]


def test_a_stop_string_ends_a_response_and_is_cut_off(answer: Answer) -> None:
    stopped, other = answer("sampling.stop=['o t', '1 2 3']", prompts=["Say hello.", "Up?"])
    assert (stopped["response"], stopped["finish_reason"], stopped["num_tokens"]) == ("hell", "stop_string", 7)
    assert (other["response"], other["finish_reason"]) == ("down", "stop")


def test_deterministic_rows_are_the_same_bits_whatever_the_batch_size(answer: Answer) -> None:
    words = ["sampling.temperature=1.5", "deterministic_rows=true"]
    rows = [answer(*words, f"batch_size={size}", prompts=[*KNOWN, "x"]) for size in (1, 4, 16)]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0][1] == {**answer(*words, prompts=list(KNOWN))[1]}  # nor who else is asked


def test_an_interrupted_file_goes_on_where_it_stopped(
    job: Callable[..., GenerateJob], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("Up?\nSay hello.\nWhat is this?\nx\n")
    out = tmp_path / "out.jsonl"
    words = ["sampling.temperature=1", "num_samples=2", "model.dtype=float32"]

    def go(*more: str) -> str:
        run(job(*words, *more), prompts=[], prompts_path=Path("p.txt"), out=out)
        return out.read_text()

    whole = go()
    assert "8 responses in" in capsys.readouterr().err
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:20])
    continued = go("batch_size=3")
    for was, now in zip(lines, continued.splitlines(), strict=True):
        assert json.loads(now) == pytest.approx(json.loads(was), abs=1e-4)
    assert continued.startswith("".join(lines[:3]))
    capsys.readouterr()
    assert go() == continued
    assert capsys.readouterr().err == f"{out} is complete: it has all 8 responses\n"
    with pytest.raises(AlignkitError) as caught:
        go("seed=4", "sampling.max_new_tokens=7")
    assert caught.value.problems == (
        f"--out {out} belongs to other settings: sampling.max_new_tokens was 20 there and is 7 now",
        f"--out {out} belongs to other settings: seed was 0 there and is 4 now",
        f"name another file, or remove {out}",
    )
    (tmp_path / "p.txt").write_text("Up?\n")
    with pytest.raises(AlignkitError, match="prompts was"):
        go()
    assert out.read_text() == continued


@pytest.mark.parametrize(
    ("ended_by", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "16 responses are in {}: the same command continues it"),
        (
            MemoryError(),
            1,
            "out of memory: lower batch_size or sampling.max_new_tokens; 16 responses are in {}: the same command "
            "continues it with another batch_size",
        ),
    ],
)
def test_what_ends_it_keeps_what_was_answered(
    job: Callable[..., GenerateJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ended_by: BaseException,
    status: int,
    said: str,
) -> None:
    from alignkit.evaluate.served_model import ServedModel

    real, calls = ServedModel.complete, iter([False, True])

    def answer(*args: Any, **kwargs: Any) -> Any:
        if next(calls):
            raise ended_by
        return real(*args, **kwargs)

    monkeypatch.setattr(ServedModel, "complete", answer)
    out = tmp_path / "out.jsonl"
    with pytest.raises(AlignkitError) as caught:
        run(job("batch_size=1"), prompts=["x"] * 20, prompts_path=None, out=out)
    assert (caught.value.exit_status, len(out.read_text().splitlines())) == (status, 16)
    assert str(caught.value) == said.format(out)


def test_sampling_settings_reach_the_model(answer: Answer) -> None:
    (short,) = answer("sampling.max_new_tokens=3", prompts=["Say hello."])
    assert (short["response"], short["finish_reason"], short["num_tokens"]) == ("hel", "length", 3)
    (long,) = answer("sampling.min_new_tokens=15", prompts=["Up?"])
    assert long["response"].startswith("down")
    assert long["num_tokens"] >= 15
    (only,) = answer("sampling.temperature=5", "sampling.top_k=1", prompts=["Say hello."])
    assert only["response"] == "hello there"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", '{"prompt": "Up?"}\n{"prompt": "Say hello."}\n'),
        ("p.json", '[{"instruction": "Up?", "output": 3}, {"instruction": "Say hello."}]'),
        ("p.csv", "instruction,output\nUp?,left off\nSay hello.,\n"),
        (
            "chats.jsonl",
            '{"messages": [{"role": "user", "content": "Up?"}, {"role": "assistant", "content": "left off"}]}\n'
            '{"messages": [{"role": "user", "content": "Say hello."}]}\n',
        ),
    ],
)
def test_prompts_of_a_file_whose_responses_are_left_off(
    answer: Answer, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    rows = answer(prompts_path=Path(name))
    assert [row["response"] for row in rows] == ["down", "hello there"]
    assert [row["source"].partition(":")[0] for row in rows] == [name, name]


def test_a_text_file_holds_a_prompt_a_line(answer: Answer, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Up?\n\nA Greek word\n", encoding="utf-8")
    rows = answer(prompts=["Say hello."], prompts_path=Path("p.txt"))
    assert [(row["source"], row["response"]) for row in rows] == [
        ("--prompt 1", "hello there"),
        ("p.txt:1", "down"),
        ("p.txt:3", "λόγος"),
    ]


def test_columns_of_a_prompt_file_can_be_named(answer: Answer, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"q": {"text": "Up?"}, "output": "x"}\n')
    (row,) = answer("columns={prompt: q.text}", prompts_path=Path("p.jsonl"))
    assert (row["source"], row["response"]) == ("p.jsonl:1", "down")


def test_control_tokens_in_a_prompt_are_plain_characters(answer: Answer) -> None:
    (row,) = answer("sampling.max_new_tokens=1", prompts=["a<|eos|>b"])
    assert row["prompt"] == "### Instruction:\na<|eos|>b\n\n### Response:\n"


def test_the_terminal_shows_prompt_and_response_and_the_progress_stays_on_stderr(
    job: Callable[..., GenerateJob], capsys: pytest.CaptureFixture[str]
) -> None:
    run(job("sampling.max_new_tokens=5"), prompts=["Up?", "Say hello."], prompts_path=None, out=None)
    heard = capsys.readouterr()
    assert heard.out == (
        "### Instruction:\nUp?\n\n### Response:\ndown\n--\n"
        "### Instruction:\nSay hello.\n\n### Response:\nhello\n-- (cut off after 5 tokens)\n"
    )
    assert "generating" in heard.err
    assert "2/2" in heard.err


def test_a_line_as_wide_as_it_is_long_is_not_folded(
    job: Callable[..., GenerateJob], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    prompt = "word " * 20
    run(job("sampling.max_new_tokens=1"), prompts=[prompt], prompts_path=None, out=None)
    assert f"\n{prompt}\n" in capsys.readouterr().out


def refusal(job: GenerateJob, **what: Any) -> list[str]:
    with pytest.raises(AlignkitError) as caught:
        run(job, **{"prompts": [], "prompts_path": None, "out": None, **what})
    assert caught.value.exit_status == 2
    return list(caught.value.problems)


def test_mistakes_are_told_together_before_the_model_is_loaded(
    job: Callable[..., GenerateJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("alignkit.evaluate.served_model.load_model", unreachable)
    (tmp_path / "taken.jsonl").write_text("mine")
    assert refusal(job()) == ["there is nothing to answer: give --prompt TEXT or --prompts FILE"]
    nowhere = job("sampling.do_sample=false", "sampling.top_k=5")
    nowhere.model.name = "nowhere"
    assert refusal(
        nowhere,
        prompts=["a", " "],
        prompts_path=Path("nowhere/p.jsonl"),
        out=Path("taken.jsonl"),
    ) == [
        "sampling.top_k=5 has no effect with sampling.do_sample=false: remove it, or set sampling.do_sample=true",
        "--out taken.jsonl exists already: name another file or remove it",
        "model.name: there is no folder 'nowhere', and the hub cannot be reached to look there",
        "--prompt 2 is empty",
        "--prompts: nowhere/p.jsonl: there is no folder nowhere",
    ]
    assert (tmp_path / "taken.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "problems"),
    [
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"prompt": 3}\n{"question": "b"}\n{"prompt": ""}\n{"prompt',
            [
                "p.jsonl:2: 'prompt' is a number where text belongs",
                "p.jsonl:3: no field 'prompt'",
                "p.jsonl:4: 'prompt' is empty",
                "p.jsonl:5: ",
            ],
        ),
        ("p.jsonl", b'{"question": "b"}\n', ["format: no format fits the columns question (text)"]),
        ("p.txt", b"\n \n", ["--prompts p.txt: it holds no prompts"]),
        ("p.txt", b"caf\xe9\n", ["--prompts p.txt: "]),
        ("p.json", b"", ["--prompts: p.json: "]),
        ("p.json", b"[]", ["--prompts"]),
    ],
)
def test_prompts_that_cannot_be_read_are_named_together(
    job: Callable[..., GenerateJob], tmp_path: Path, name: str, content: bytes, problems: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    found = refusal(job(), prompts_path=Path(name), out=Path("out.jsonl"))
    assert len(found) == len(problems)
    assert all(line.startswith(start) for line, start in zip(found, problems, strict=True)), found
    assert not (tmp_path / "out.jsonl").exists()


def test_prompts_that_are_too_long_for_the_model_are_named_together(
    job: Callable[..., GenerateJob], tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text(f"{'long ' * 120}\nUp?\n{'x' * 500}\n")
    assert refusal(job(), prompts_path=Path("p.txt")) == [
        f"p.txt:{line}: {num} tokens, which with sampling.max_new_tokens=20 is more than the model's 512 positions: "
        "shorten the one or the other"
        for line, num in ((1, 633), (3, 533))
    ]


@pytest.mark.parametrize("out", ["taken/answers.jsonl", "folder"])
def test_a_place_that_cannot_be_written_is_told_before_the_model_answers(
    job: Callable[..., GenerateJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("alignkit.evaluate.served_model.generate", lambda *args, **rest: pytest.fail("it answered"))
    (line,) = refusal(job(), prompts=["Up?"], out=Path(out))
    assert line.startswith(f"--out {out} ")

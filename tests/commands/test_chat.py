"""Talking: the template of the training, a history each, settings changed on the way, only what is said is shown."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from alignkit.commands.chat import Chat, Stream, run
from alignkit.config import ModelConfig, SamplingConfig, TemplateConfig
from alignkit.data.encode.replies import Piece, ReplyReader
from alignkit.data.rows.conversation import Message
from alignkit.errors import AlignkitError
from alignkit.evaluate.served_model import ServedModel
from alignkit.launch import compose_job
from alignkit.sampling.generate import Completion

Talk = Callable[..., str]


@pytest.fixture(scope="module")
def policy(run_dir: Path) -> ServedModel:
    return ServedModel.of(ModelConfig(str(run_dir)), TemplateConfig("native")).load(seed=0)


@pytest.fixture
def talk(run_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    monkeypatch.chdir(tmp_path)

    def talk(*lines: str, runs: list[Path] | None = None, words: tuple[str, ...] = ()) -> str:
        job = compose_job("chat", ["sampling=greedy", "sampling.max_new_tokens=20", *words], model={"name": "x"})
        capsys.readouterr()
        run(job, runs=[str(folder) for folder in runs or [run_dir]], lines=[f"{line}\n" for line in lines])
        return capsys.readouterr().out

    return talk


def test_an_answer_is_what_generate_would_say(talk: Talk) -> None:
    assert talk("Say hello.", "", "/reset", "Up?", "/quit", "A Greek word") == "hello there\na new conversation\ndown\n"


def test_the_history_is_seen_and_kept(talk: Talk, tmp_path: Path) -> None:
    talk("Say hello.", "Up?", "/save talks/one.jsonl")
    (row,) = map(json.loads, (tmp_path / "talks" / "one.jsonl").read_text().splitlines())
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
    assert row["messages"][1]["content"] == "hello there"
    assert row["sampling"]["max_new_tokens"] == 20
    assert "cannot be written: File exists" in talk("/save talks/one.jsonl")


def test_several_models_answer_side_by_side_each_with_its_own_history(
    talk: Talk, run_dir: Path, other_dir: Path, tmp_path: Path
) -> None:
    out = talk("Say hello.", "/save both.jsonl", runs=[run_dir, other_dir])
    assert out.startswith(f"{run_dir}\nhello there\n{other_dir}\n")
    first, other = map(json.loads, (tmp_path / "both.jsonl").read_text().splitlines())
    assert first["messages"][0] == other["messages"][0]
    assert first["messages"][1] != other["messages"][1]


def test_commands_answer_in_a_line(policy: ServedModel) -> None:
    chat = Chat([policy], SamplingConfig(max_new_tokens=9))
    assert chat.begin("Be brief.") == ""
    said = {
        "/temperature 0.7": "temperature is 0.7",
        "/temperature -1": "temperature is -1: it must be above 0",
        "/temperature": "temperature is 0.7",
        "/temperature none": "temperature is None",
        "/temperature hot": "temperature is 'hot': it must be a number, or {start: …, end: …} for one that moves",
        "/top_k 0": "top_k is 0: it must be at least 1",
        "/top_p 1.5": "top_p is 1.5: it must be above 0 and at most 1",
        "/max_new_tokens many": "max_new_tokens is 'many': it must be a whole number",
        "/max_new_tokens none": "max_new_tokens needs a number; it is 9",
        "/min_new_tokens 10": "min_new_tokens=10 is more than max_new_tokens=9: lower the first or raise the second",
        "/tempratur 1": "there is no /tempratur; did you mean 'temperature'?",
        "/xyz": "there is no /xyz: /help has them all",
        "/save": "/save FILE: name the file",
        "/system Be long.": "a new conversation with this system prompt",
        "/reset": "a new conversation",
    }
    assert {line: chat.command(line) for line in said} == said
    assert chat.sampling == SamplingConfig(max_new_tokens=9)
    assert [message.content for message in chat.histories[0]] == ["Be long."]
    assert chat.command("/system") == "a new conversation without system prompt"
    assert chat.histories == [[]]
    assert "/save FILE" in chat.command("/help")


def test_a_schedule_means_nothing_in_a_conversation(policy: ServedModel) -> None:
    chat = Chat([policy], SamplingConfig())
    assert "which only alignkit ppo can follow" in chat.command('/temperature {"start": 1, "end": 2}')


def test_a_conversation_that_grows_too_long_is_told(policy: ServedModel) -> None:
    chat, heard = Chat([policy], SamplingConfig(max_new_tokens=5)), io.StringIO()
    chat.begin()
    chat.say("x" * 600, Console(file=heard, width=500))
    assert "more than the model's 512 positions" in heard.getvalue()
    assert chat.histories == [[]]


def test_a_character_is_shown_whole_and_a_stop_string_never(policy: ServedModel) -> None:
    heard: list[Piece] = []
    sampling = SamplingConfig(stop=["END"])
    stream = Stream(policy, sampling, ReplyReader(None, ""), heard.append)
    text = "aλE, b ENDc"
    for token in text.encode():
        stream.add(token)
    done = Completion(list(text.encode()), "stop_string", 0.0)
    assert stream.finish(done) == Message("assistant", "aλE, b ")
    assert "".join(piece.text for piece in heard) == "aλE, b "


def test_mistakes_are_told_before_anything_is_loaded(talk: Talk, run_dir: Path) -> None:
    with pytest.raises(AlignkitError) as caught:
        talk("hello", runs=[Path("gone")], words=("sampling.top_k=3",))
    assert list(caught.value.problems) == [
        "sampling.top_k=3 has no effect with sampling.do_sample=false: remove it, or set sampling.do_sample=true",
        "model.name: there is no folder 'gone', and the hub cannot be reached to look there",
    ]

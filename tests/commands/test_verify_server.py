"""A server that renders, stops and scores as trained passes; each way to serve something else is told apart."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.commands.verify import run
from alignkit.config import ModelConfig
from alignkit.errors import AlignkitError
from alignkit.jobs import VerifyJob
from serving import Serve


@dataclass
class Serving:
    """A folder behind the protocol, through transformers alone, and what it may do otherwise than it should.

    Attributes:
        folder: of the model.
        adapter: load the adapter that is in the folder.
        names: of the models that it lists.
        template: in place of the folder's own.
        stop: id at which it stops.
        skip_special: leave special tokens out of a text.
        without: paths that it does not know.
        tells: log-probabilities.
    """

    folder: Path
    adapter: bool = False
    names: tuple[str, ...] = ("served",)
    template: str | None = None
    stop: int = 258
    skip_special: bool = True
    without: tuple[str, ...] = ()
    tells: bool = True
    paths: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        auto: Any = AutoPeftModelForCausalLM if self.adapter else AutoModelForCausalLM
        self.model = auto.from_pretrained(self.folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """What is answered to a request; None is a page that is not found."""
        self.paths.append(path)
        if path in self.without:
            return None
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": name, "object": "model"} for name in self.names]}
        if body["model"] not in self.names:
            return None
        if path == "/tokenize":
            return {"tokens": self.prompt(body["messages"])}
        if path == "/v1/chat/completions":
            return self.chat(self.prompt(body["messages"]), body["max_tokens"])
        return {"choices": [{"logprobs": {"token_logprobs": [None, *self.scores(body["prompt"])]}}]}

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        template = self.template or self.tokenizer.chat_template
        return list(
            self.tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, return_dict=False
            )
        )

    def scores(self, ids: list[int]) -> list[float]:
        """The log-probabilities of all tokens but the first."""
        with torch.inference_mode():
            logprobs = self.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return [float(logprobs[at, token]) for at, token in enumerate(ids[1:])]

    def chat(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        ids = list(prompt)
        while len(ids) < len(prompt) + max_tokens and (ids == prompt or ids[-1] != self.stop):
            with torch.inference_mode():
                ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
        ended = ids[-1] == self.stop
        said = ids[len(prompt) : len(ids) - ended]
        choice: dict[str, Any] = {
            "message": {"role": "assistant", "content": self.tokenizer.decode(said, self.skip_special)},
            "finish_reason": "stop" if ended else "length",
        }
        if self.tells:
            scored = self.scores(ids)[len(prompt) - 1 :]
            choice["logprobs"] = {"content": [{"token": "", "logprob": value} for value in scored]}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids) - len(prompt)}
        return {"choices": [choice], "usage": usage}


@pytest.fixture
def known_dir(run_dir: Path, tmp_path: Path) -> Path:
    """The run that knows four answers by heart, with those as its samples."""
    folder = tmp_path / "known"
    shutil.copytree(run_dir, folder)
    rows = [{"prompt": "Say hello.", "wanted": "hello there"}, {"prompt": "Up?", "wanted": "down"}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def verify(folder: Path, url: str, **given: Any) -> str:
    run(VerifyJob(ModelConfig(str(folder)), max_difference=given.pop("max_difference", None)), server=url, **given)
    return ""


def failures(folder: Path, url: str, **given: Any) -> list[str]:
    with pytest.raises(AlignkitError) as caught:
        verify(folder, url, **given)
    assert caught.value.exit_status == 2
    return list(caught.value.problems)


def test_a_server_that_loads_the_folder_passes(
    known_dir: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = Serving(known_dir)
    url = serve(serving)
    verify(known_dir, f"{url}/v1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"-    model      served of {url}/v1, trained with instruction on tiny_gpt2"
    assert lines[1] == "ok   renders    6 prompts have the tokens of the training"
    assert lines[2].startswith("ok   stops      ")
    assert "answers end as the run ends them, with <|eos|>" in lines[2]
    assert lines[3].startswith("ok   scores     log-probabilities of ")
    assert set(serving.paths) == {"/v1/models", "/tokenize", "/v1/chat/completions", "/v1/completions"}


def test_a_server_that_only_chats_is_told_by_counts_and_by_its_answers(
    known_dir: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = Serving(known_dir, without=("/tokenize", "/v1/completions"))
    verify(known_dir, serve(chats))
    out = capsys.readouterr().out
    assert "ok   renders    6 prompts have as many tokens as in training; the server does not say which\n" in out
    assert "tokens of answers that both give differ by" in out
    chats.tells = False
    verify(known_dir, serve(chats))
    assert "-    scores     the server tells no log-probabilities\n" in capsys.readouterr().out


def test_an_adapter_is_told_from_its_base(adapter_dir: Path, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    verify(adapter_dir, serve(Serving(adapter_dir, adapter=True)))
    assert capsys.readouterr().out.count("ok ") == 3
    bare = Serving(adapter_dir / "base", names=("base",))
    (problem,) = (line for line in failures(adapter_dir, serve(bare)) if line.startswith("scores"))
    assert problem.endswith("the server has the base without the adapter")


def test_each_way_to_serve_something_else_is_told(known_dir: Path, other_dir: Path, serve: Serve) -> None:
    serving = Serving(known_dir)
    url = serve(serving)
    own = serving.tokenizer.chat_template
    serving.template = own.replace("### Instruction:", "### Question:")
    assert "inference feeds '### Question:" in next(
        line for line in failures(known_dir, url) if line.startswith("renders: from character 4 on")
    )
    serving.template = own.replace('"\\n\\n" if messages', '"\\n" if messages')
    serving.without = ("/tokenize",)
    assert any("tokens in training and" in line for line in failures(known_dir, url) if line.startswith("renders"))
    serving.template, serving.without, serving.stop = None, (), 256
    (stops,) = failures(known_dir, url)
    assert stops.startswith("stops: it goes on where the run ends ")
    serving.skip_special = False
    (stops,) = failures(known_dir, url)
    assert stops.startswith("stops: <|eos|>")
    assert " is in the text of an answer: " in stops
    others = Serving(other_dir)
    (scores,) = failures(known_dir, serve(others))
    assert scores.startswith("scores: log-probabilities of ")
    verify(known_dir, serve(others), max_difference=100.0)


def test_an_address_without_the_protocol_or_the_model_is_refused(known_dir: Path, serve: Serve) -> None:
    assert failures(known_dir, "localhost:8000") == [
        "--server localhost:8000: give an address such as http://localhost:8000"
    ]
    (nobody,) = failures(known_dir, "http://127.0.0.1:9")
    assert nobody == "--server http://127.0.0.1:9 does not answer: [Errno 111] Connection refused; is it running?"
    serving = Serving(known_dir, names=("first", "second"))
    url = serve(serving)
    assert failures(known_dir, url) == [f"--server {url} serves first, second: say which with --model NAME"]
    assert failures(known_dir, url, name="sekond") == [
        f"--model sekond: {url} serves first, second; did you mean 'second'?"
    ]
    serving.names = ("first", "known")
    verify(known_dir, url)  # one that is called as the folder is
    serving.without = ("/v1/models",)
    assert failures(known_dir, url) == [
        f"--server {url} is no OpenAI-compatible server: GET /v1/models: HTTP 404: there is no such thing"
    ]
    serving.without, serving.names = (), ()
    assert failures(known_dir, url) == [f"--server {url} is no OpenAI-compatible server: GET /v1/models lists no model"]


def test_a_run_that_is_unfinished_is_compared_with_no_server(known_dir: Path, serve: Serve) -> None:
    record = json.loads((known_dir / "run.json").read_text())
    (known_dir / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    assert failures(known_dir, "http://127.0.0.1:9") == [
        f"{known_dir} is an unfinished run (interrupted): go on with resume=true"
    ]


def test_what_is_about_a_server_alone_is_refused_without_one(known_dir: Path) -> None:
    with pytest.raises(AlignkitError) as caught:
        run(VerifyJob(ModelConfig(str(known_dir)), max_difference=0.1), name="known")
    assert caught.value.problems == (
        "--model has no effect without --server",
        "max_difference has no effect without --server",
    )

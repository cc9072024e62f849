"""What a person is shown of prompts is what the policy is fed."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignkit.choices import ControlTokens
from alignkit.commands.inspect import run, show
from alignkit.config import PromptDataConfig, PromptLength, TemplateConfig
from alignkit.data.encode.templates import load_template
from alignkit.data.sets.prompts import load_prompts
from alignkit.data.views.prompts import PromptRowView, PromptView
from alignkit.data.views.view import Span
from alignkit.errors import DataError

Make = Callable[..., PromptView]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path], byte: Any) -> Make:
    """The view of prompts that are written to `rows.jsonl`, with one held out."""
    monkeypatch.chdir(tmp_path)

    def make(rows: list[dict[str, Any]], held: dict[str, Any], **settings: Any) -> PromptView:
        write_rows(rows)
        write_rows([held], "held.jsonl")
        section = PromptDataConfig(path="rows.jsonl", eval_path="held.jsonl", max_dropped=0.5, **settings)
        template = load_template(TemplateConfig(name="user_bot"), byte)
        data = load_prompts(section, template, byte, max_length=40, seed=0)
        sets = {"train": data.train, "eval": data.held_out}
        return PromptView("ppo <test>", sets, data.ledger, byte, ["template user_bot & co"])

    return make


@pytest.fixture
def asked(make: Make) -> PromptView:
    """Two conversations, of which one is too long, and one held out."""
    return make([{"prompt": "Hi", "completion": "Yo"}, {"prompt": "w" * 40}], {"prompt": "Held"})


@pytest.fixture
def texts(make: Make) -> PromptView:
    """Three texts, of which the last is shorter than a prompt may be, and one held out."""
    rows = [{"text": "ab c"}, {"text": "<|eos|>"}, {"text": "x"}]
    return make(
        rows,
        {"text": "held out"},
        prompt_length=PromptLength(3, 3),
        control_tokens=ControlTokens.neutralise,
    )


def as_json(view: PromptView, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    run(view, num_rows=1, html=None, as_json=True, golden=None)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_rows_by_value(asked: PromptView, texts: PromptView, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(asked, capsys) == [
        {
            "source": f"{name}.jsonl:1",
            "prompt_ids": [*f"### User:\n{words}\n\n### Bot:\n".encode()],
            "prompt_text": f"### User:\n{words}\n\n### Bot:\n",
            "asked": words,
            "part": 1,
            "num_parts": 1,
            "template_kwargs": {},
            "cuts": {},
            "set": set_,
        }
        for name, words, set_ in (("rows", "Hi", "train"), ("held", "Held", "eval"))
    ]
    assert [(row["source"], row["prompt_text"]) for row in as_json(texts, capsys)] == [
        ("rows.jsonl:1", "ab "),
        ("rows.jsonl:2", "<|e"),
        ("held.jsonl:1", "hel"),
    ]


def test_the_terminal_shows_where_the_answer_begins(texts: PromptView) -> None:
    stream = io.StringIO()
    show(texts, list(texts.rows(num_rows=1)), Console(file=stream, force_terminal=True, soft_wrap=True))
    answer = "\x1b[1;30;42m…\x1b[0m"
    lines = stream.getvalue().splitlines()
    assert lines[1] == f"the policy is asked this, and answers from here on: {answer}; \x1b[35m⟨special⟩\x1b[0m"
    assert lines[3:5] == ["\x1b[1mrows.jsonl:1: 3 tokens\x1b[0m", f"ab {answer}"]


def test_the_terminal_ends_with_what_became_of_every_row(texts: PromptView, capsys: pytest.CaptureFixture[str]) -> None:
    run(texts, num_rows=0, html=None, as_json=False, golden=None)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[lines.index(["train", "eval"]) + 1 :] == [
        ["kept", "2", "1"],
        ["dropped:", "too_short", "1", "0", "rows.jsonl:3"],
        ["all", "rows", "3", "1"],
        ["columns", "used:", "text"],
        ["template", "user_bot", "&", "co"],
        ["0.0%", "of", "the", "kept", "rows", "truncated"],
        ["3-3", "tokens", "3", "█" * 40],
    ]


def test_special_tokens_are_shown_by_name(byte: Any) -> None:
    row = PromptRowView("x:1", [257, *b"a"], "a")
    ((_, spans),) = row.parts(byte)
    assert spans == [Span("<|bos|>", False, True), Span("a", False, False), Span("…", True, False)]


def test_the_page_shows_the_prompts(asked: PromptView, tmp_path: Path) -> None:
    run(asked, num_rows=2, html=tmp_path / "prompts.html", as_json=False, golden=None)
    page = re.sub(r"(?<=>)\n+(?=<)", "", (tmp_path / "prompts.html").read_text(encoding="utf-8"))
    assert (
        "<section><h2>rows.jsonl:1 <small>23 tokens</small></h2>"
        "<pre>### User:\nHi\n\n### Bot:\n<mark>…</mark></pre></section>"
    ) in page
    assert '<p>the policy is asked this, and answers from here on: <mark>…</mark>; <span class="special">' in page
    assert "dropped: too_long" in page


def test_prompts_are_held_to_a_file(
    make: Make, asked: PromptView, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = tmp_path / "golden.jsonl"
    golden.write_text("".join(json.dumps(row) + "\n" for row in as_json(asked, capsys)))
    run(asked, num_rows=1, html=None, as_json=False, golden=golden)
    assert capsys.readouterr().out == f"2 rows are the same as in {golden}\n"
    with pytest.raises(DataError) as caught:
        run(make([{"prompt": "Ho"}], {"prompt": "Held"}), num_rows=1, html=None, as_json=False, golden=golden)
    assert list(caught.value.problems) == [
        "rows.jsonl:1: its prompt changed: was '### User:\\nHi\\n\\n### Bot:\\n', is '### User:\\nHo\\n\\n### Bot:\\n'"
    ]

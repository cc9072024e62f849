"""A row that is cut shows where: in the terminal, on the page, in JSON."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignkit.choices import Overlength
from alignkit.commands.inspect import run
from alignkit.config import DataConfig, PromptDataConfig, TemplateConfig
from alignkit.data.batches.batching import Collator
from alignkit.data.batches.pair_batching import PairCollator
from alignkit.data.encode.templates import load_template
from alignkit.data.sets.pairs import load_pairs
from alignkit.data.sets.prompts import load_prompts
from alignkit.data.sets.sft import load_sft
from alignkit.data.views.prompts import PromptView
from alignkit.data.views.supervised import PairView, SftView
from alignkit.data.views.view import CUT_HERE, Span, View, spans_of
from alignkit.models.tiny import byte_tokenizer
from families import family_tokenizer

BYTE = byte_tokenizer()
SYSTEM = {"role": "system", "content": "Rhyme."}
TURNS = [
    {"role": role, "content": f"{role[0]}{number} {'x' * 8}"} for number in (1, 2, 3) for role in ("user", "assistant")
]
SHORT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
# As Qwen3 does: a thought stays in the last answer alone, so that each answer is a part of its own.
REWRITING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% if loop.last %}<t></t>{% endif %}"
    "{% generation %}{{ m.content + end }}{% endgeneration %}"
    "{% else %}<{{ m.role[0] }}>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a><t></t>{% endif %}"
)


@dataclass
class Loaded:
    """The view of rows in a template; `max_length` is of the very row."""

    template: TemplateConfig
    rows: list[dict[str, Any]]

    def view(self, kind: str, max_length: int, policy: Overlength, **layout: bool) -> View:
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        section = (PromptDataConfig if kind == "prompts" else DataConfig)("rows.jsonl", overlength=policy)
        load: Callable[..., Any] = {"sft": load_sft, "pairs": load_pairs, "prompts": load_prompts}[kind]
        data = load(section, load_template(self.template, BYTE), BYTE, max_length=max_length, seed=0)
        if kind == "prompts":
            return PromptView("ppo it", {"train": data.train}, data.ledger, BYTE, [])
        if kind == "sft":
            return SftView("sft it", data.sets, data.ledger, BYTE, [], Collator(0, **layout), 4)
        collator = PairCollator(0, **layout)
        return PairView("dpo it", data.sets, data.ledger, BYTE, [], collator, 4, lint=data.lint)

    def shown(self, kind: str, max_length: int, policy: Overlength, **layout: bool) -> list[list[str]]:
        """The text of each part of each row, the mark as `✂`."""
        view = self.view(kind, max_length, policy, **layout)
        return [
            ["".join("✂" if span == CUT_HERE else span.text for span in spans) for _, spans in row.parts(BYTE)]
            for row in view.rows()
        ]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Loaded]:
    monkeypatch.chdir(tmp_path)
    Path("rewriting.jinja").write_text(REWRITING)

    def loaded(*rows: dict[str, Any], file: str | None = None) -> Loaded:
        return Loaded(TemplateConfig("user_bot", file), list(rows))

    return loaded


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_sft(loaded: Callable[..., Loaded], packed: bool) -> None:
    row = loaded({"messages": [SYSTEM, *TURNS]}, SHORT)
    short = ["### User:\na\n\n### Bot:\nb<|eos|>"]
    last = "u3 xxxxxxxx\n\n### Bot:\na3 xxxxxxxx<|eos|>"
    (whole,) = row.shown("sft", 500, Overlength.keep_end, packed=packed)[0]
    second = f"### User:\nu2 xxxxxxxx\n\n### Bot:\na2 xxxxxxxx<|eos|>\n\n### User:\n{last}"
    for max_length, text in [
        (144, whole),
        (143, f"Rhyme.\n\n✂{second}"),
        (97, f"Rhyme.\n\n✂### User:\n{last}"),
        (50, f"Rhyme.\n\n### User:\n✂{last[2:]}"),
    ]:
        assert row.shown("sft", max_length, Overlength.keep_end, packed=packed) == [[text], short], max_length
    assert row.shown("sft", 45, Overlength.keep_start, packed=packed) == [[whole[:45] + "✂"], short]


def test_each_part_has_its_own_cut(loaded: Callable[..., Loaded]) -> None:
    row = loaded({"messages": TURNS}, file="rewriting.jinja")
    texts = row.shown("sft", 80, Overlength.keep_end)
    assert [text.find("✂") for (text,) in texts] == [-1, -1, 0]
    assert texts[2][0].startswith("✂<u>u2 ")


@pytest.mark.parametrize("shared_prompt", [False, True])
def test_pairs(loaded: Callable[..., Loaded], shared_prompt: bool) -> None:
    row = loaded({"prompt": [SYSTEM, *TURNS[:3]], "chosen": "yes, so it is", "rejected": "no"})

    def shown(max_length: int, policy: Overlength) -> list[str]:
        return row.shown("pairs", max_length, policy, shared_prompt=shared_prompt)[0]

    responses = ["yes, so it is<|eos|>", "no<|eos|>"]
    asked = "u2 xxxxxxxx\n\n### Bot:\n"
    assert shown(90, Overlength.keep_end) == [f"Rhyme.\n\n✂### User:\n{asked}", *responses]
    assert shown(50, Overlength.keep_end) == [f"Rhyme.\n\n### User:\n✂{asked[4:]}", *responses]
    (prompt, *_) = shown(500, Overlength.keep_end)
    num_prompt = len(prompt.replace("<|eos|>", "$"))
    assert shown(num_prompt + 3, Overlength.keep_start) == [prompt, "yes✂", "no<|eos|>"]  # this one just fits
    assert shown(num_prompt + 2, Overlength.keep_start) == [prompt, "ye✂", "no✂"]


def test_prompts(loaded: Callable[..., Loaded]) -> None:
    row = loaded({"messages": [SYSTEM, *TURNS[:5]]})
    asked = "u3 xxxxxxxx\n\n### Bot:\n"
    assert row.shown("prompts", 90, Overlength.keep_end) == [[f"Rhyme.\n\n✂### User:\n{TURNS_2}{asked}…"]]
    assert row.shown("prompts", 50, Overlength.keep_end) == [[f"Rhyme.\n\n✂### User:\n{asked}…"]]
    assert row.shown("prompts", 20, Overlength.keep_end) == [[f"✂{asked[-20:]}…"]]
    assert "✂" not in row.shown("prompts", 500, Overlength.keep_end)[0][0]


TURNS_2 = "u2 xxxxxxxx\n\n### Bot:\na2 xxxxxxxx<|eos|>\n\n### User:\n"


def test_json_and_the_page_have_it(loaded: Callable[..., Loaded], capsys: pytest.CaptureFixture[str]) -> None:
    row = loaded({"messages": [SYSTEM, *TURNS]}, SHORT)
    view = row.view("sft", 97, Overlength.keep_end)
    run(view, num_rows=2, html=Path("rows.html"), as_json=True, golden=None)
    assert [json.loads(line)["cuts"] for line in capsys.readouterr().out.splitlines()] == [{"input_ids": 8}, {}]
    page = Path("rows.html").read_text(encoding="utf-8")
    assert 'Rhyme.\n\n<span class="special">⟨✂ cut here⟩</span>### User:\nu3 ' in page
    run(view, num_rows=2, html=None, as_json=False, golden=None)
    assert re.search("Rhyme.\n\n⟨✂ cut here⟩### User:\nu3 ", capsys.readouterr().out)


def test_the_mark_stands_between_tokens() -> None:
    def spans(cut: int | None) -> list[Span]:
        return spans_of([*b"abc"], [False, False, True], BYTE, cut)

    a, b, ab, c = (Span(text, text == "c", False) for text in ("a", "b", "ab", "c"))
    assert spans(None) == [ab, c]
    assert spans(0) == [CUT_HERE, ab, c]
    assert spans(1) == [a, CUT_HERE, b, c]
    assert spans(2) == [ab, CUT_HERE, c]
    assert spans(3) == [ab, c, CUT_HERE]


@pytest.mark.parametrize(
    ("family", "heading"),
    [
        ("qwen2_5", "<|im_start|>user\n"),
        ("qwen3", "<|im_start|>user\n"),
        ("llama3", "<|start_header_id|>user<|end_header_id|>\n\n"),
        ("gemma3", "<start_of_turn>user\n"),
        ("gptoss", ""),  # an answer ends otherwise once a question follows: the cut is marked behind the heading
    ],
)
def test_where_a_turn_of_the_user_begins(family: str, heading: str) -> None:
    assert load_template(TemplateConfig("native"), family_tokenizer(family)).user_heading == heading

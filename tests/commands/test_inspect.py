"""What a person is shown is what comes back from the batches that train."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignkit.choices import ControlTokens, Overlength, TrainOn
from alignkit.commands.inspect import check_golden, histogram, run, show
from alignkit.config import DataConfig, TemplateConfig
from alignkit.data.batches.batching import Collator
from alignkit.data.encode.templates import load_template
from alignkit.data.sets.sft import load_sft
from alignkit.data.views.supervised import SftRowView, SftView
from alignkit.data.views.view import Span
from alignkit.errors import DataError
from alignkit.stages.sft.data import parts_cost
from families import family_tokenizer

EOS = 258  # of the byte tokenizer; ids below 256 are bytes
ROWS = [
    {"instruction": "Hi", "output": "Yo"},
    {"instruction": "Show <b>&amp; https://x.org/a.js", "output": "a <i> é"},
    {"instruction": "w" * 60, "output": "cut"},
    {"instruction": "Um?", "output": "ok"},
]
PROMPT = b"### Instruction:\nHi\n\n### Response:\n"

Make = Callable[..., SftView]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path], byte: Any) -> Make:
    """The view of a training on `ROWS` with one held-out row; the third row is cut."""
    monkeypatch.chdir(tmp_path)
    write_rows(ROWS)
    write_rows([{"instruction": "Held", "output": "out"}], "held.jsonl")

    def make(*, packed: bool = False, batch_size: int = 3, template: str = "instruction", **rest: Any) -> SftView:
        section = DataConfig(path="rows.jsonl", eval_path="held.jsonl", overlength=Overlength.keep_end, **rest)
        bound = load_template(TemplateConfig(name=template), byte)
        data = load_sft(section, bound, byte, max_length=75, seed=0)
        return SftView(
            title="sft <test>",
            sets=data.sets,
            ledger=data.ledger,
            collator=Collator(byte.pad_token_id, packed=packed),
            batch_size=batch_size,
            tokenizer=byte,
            facts=["template instruction & co"],
        )

    return make


def as_json(view: SftView, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    run(view, num_rows=1, html=None, as_json=True, golden=None)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def on_terminal(view: SftView, num_rows: int = 4) -> str:
    stream = io.StringIO()
    show(view, list(view.rows(num_rows=num_rows)), Console(file=stream, force_terminal=True, soft_wrap=True))
    return stream.getvalue()


def test_json_rows_by_value(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(make(), capsys)
    assert rows[0] == {
        "source": "rows.jsonl:1",
        "input_ids": [*PROMPT, *b"Yo", EOS],
        "labels": [-100] * len(PROMPT) + [*b"Yo", EOS],
        "text": "### Instruction:\nHi\n\n### Response:\nYo<|eos|>",
        "supervised_text": "Yo<|eos|>",
        "part": 1,
        "num_parts": 1,
        "template_kwargs": {},
        "cuts": {},
        "set": "train",
    }
    assert [(row["set"], row["source"]) for row in rows] == [
        ("train", "rows.jsonl:1"),
        ("train", "rows.jsonl:2"),
        ("train", "rows.jsonl:3"),
        ("train", "rows.jsonl:4"),
        ("eval", "held.jsonl:1"),
    ]
    assert [row["supervised_text"] for row in rows[1:]] == ["a <i> é<|eos|>", "cut<|eos|>", "ok<|eos|>", "out<|eos|>"]
    assert len(rows[2]["input_ids"]) == 75


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_layout_of_the_batches_changes_no_row(
    make: Make, capsys: pytest.CaptureFixture[str], packed: bool, batch_size: int
) -> None:
    plain = as_json(make(batch_size=1), capsys)
    assert as_json(make(packed=packed, batch_size=batch_size), capsys) == plain


def test_rows_are_read_back_from_batches_not_from_the_data(make: Make) -> None:
    view = make()

    def spoilt(rows: Any) -> Any:
        batch = view.collator(rows)
        return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == ord("o"), -100)}

    (row, *_) = SftView(**{**vars(view), "collator": spoilt}).rows()
    assert row.as_json(view.tokenizer)["supervised_text"] == "Y<|eos|>"


def test_only_as_many_batches_as_are_shown_are_made(make: Make) -> None:
    view, batches = make(batch_size=2), []

    def counting(rows: Any) -> Any:
        batches.append(len(rows))
        return view.collator(rows)

    counted = SftView(**{**vars(view), "collator": counting})
    assert [row.source for row in counted.rows(num_rows=3)] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    assert batches == [2, 1]


def test_spans_are_cut_where_supervision_changes_and_around_special_tokens(byte: Any) -> None:
    ids = [257, *b"a", 0xC3, 0xA9, *b"b", EOS, EOS]
    labels = [-100, -100, -100, -100, ord("b"), EOS, -100]
    assert SftRowView("x:1", ids, labels).parts(byte)[0][1] == [
        Span("<|bos|>", False, True),
        Span("aé", False, False),  # the bytes of one character are decoded together
        Span("b", True, False),
        Span("<|eos|>", True, True),
        Span("<|eos|>", False, True),
    ]


def test_the_terminal_colours_what_the_loss_sees(make: Make) -> None:
    text = on_terminal(make())
    green, off = "\x1b[1;30;42m", "\x1b[0m"
    assert f"### Instruction:\nHi\n\n### Response:\n{green}Yo{off}{green}⟨<|eos|>⟩{off}\n" in text
    assert f"### Response:\n{green}a <i> é{off}" in text  # text is no markup
    assert "\x1b[1mrows.jsonl:1: 38 tokens, 3 supervised\x1b[0m" in text.replace("\x1b[1m\n", "\n\x1b[1m")
    assert f"⟨special⟩{off}" in text


def test_special_tokens_without_loss_are_seen_too(make: Make) -> None:
    text = on_terminal(make(template="chatml"), num_rows=1)
    assert "\x1b[35m⟨<|im_start|>⟩\x1b[0muser\nHi\x1b[35m⟨<|im_end|>⟩\x1b[0m" in text
    assert "\x1b[1;30;42m⟨<|im_end|>⟩\x1b[0m" in text


def test_the_terminal_ends_with_the_figures(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run(make(), num_rows=2, html=None, as_json=False, golden=None)
    lines = capsys.readouterr().out.splitlines()
    table = lines.index(next(line for line in lines if line.split() == ["train", "eval"]))
    assert [line.split() for line in lines[table + 1 :]] == [
        ["kept", "3", "1"],
        ["truncated:", "cut_start", "1", "0", "rows.jsonl:3"],
        ["all", "rows", "4", "1"],
        ["columns", "used:", "instruction", "(prompt),", "output", "(response)"],
        ["template", "instruction", "&", "co"],
        # of 38 + 74 + 75 + 39 + 41 tokens 3 + 9 + 4 + 3 + 4 carry loss
        ["8.6%", "of", "the", "tokens", "supervised,", "20.0%", "of", "the", "kept", "rows", "truncated"],
        ["38-42", "tokens", "3", "█" * 40],
        *[[f"{low}-{low + 4}", "tokens", "0"] for low in range(43, 73, 5)],
        ["73-77", "tokens", "2", "█" * 27],
    ]
    assert sum("supervised" in line and line.startswith("rows.jsonl:") for line in lines) == 2


def test_a_histogram_by_value() -> None:
    assert histogram([]) == []
    assert histogram([3, 3, 0]) == [("0-0", 1), ("1-1", 0), ("2-2", 0), ("3-3", 2)]
    assert histogram([7, 8, 15]) == [("7-8", 2), ("9-10", 0), ("11-12", 0), ("13-14", 0), ("15-16", 1)]
    assert histogram([100, 101, 117]) == [
        ("100-102", 2),
        ("103-105", 0),
        ("106-108", 0),
        ("109-111", 0),
        ("112-114", 0),
        ("115-117", 1),
    ]


class Page(HTMLParser):
    """What a browser would see: marked and plain text, and every attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen, self.rows, self.attributes, self.tags = [], [], [], set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "pre" in self.open:
            (self.seen if "mark" in self.open else self.rows).append(data)


def test_the_page_is_one_file_that_asks_nobody_for_anything(make: Make, tmp_path: Path) -> None:
    run(make(), num_rows=4, html=tmp_path / "new" / "rows.html", as_json=False, golden=None)
    text = (tmp_path / "new" / "rows.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags <= {
        *("html", "meta", "title", "style", "h1", "h2", "p", "mark", "span", "section", "small", "pre"),
        *("ul", "li", "table", "tr", "td", "i", "head", "body", "link"),
    }
    assert {name for name, _ in page.attributes} <= {
        *("lang", "charset", "name", "content", "class", "style", "http-equiv", "rel", "href")
    }
    assert [value for name, value in page.attributes if name == "href"] == ["data:,"]  # no icon is asked for
    assert not [value for _, value in page.attributes if "url" in str(value)]
    assert "url(" not in text
    assert "@import" not in text
    assert text.count("://") == 1  # a row's own words
    assert "".join(page.seen) == "Yo⟨<|eos|>⟩a <i> é⟨<|eos|>⟩cut⟨<|eos|>⟩ok⟨<|eos|>⟩"
    assert "".join(page.rows).startswith(
        "### Instruction:\nHi\n\n### Response:\n### Instruction:\nShow <b>&amp; https://"
    )
    assert "<h1>sft &lt;test&gt;</h1>" in text
    assert "rows.jsonl:2 <small>74 tokens, 9 supervised</small>" in text
    assert "<li>template instruction &amp; co</li>" in text
    assert '<td>38-42</td><td>3</td><td><i style="width:100.0%"></i></td>' in text


def test_nothing_but_json_goes_to_standard_output_and_the_page_is_still_written(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make(), num_rows=1, html=tmp_path / "rows.html", as_json=True, golden=None)
    assert [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()][-1] == "held.jsonl:1"
    assert (tmp_path / "rows.html").read_text(encoding="utf-8").count("<section>") == 3  # one row, ledger, lengths


@pytest.fixture
def golden(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """A file of today's rows, each changed by a function first; None leaves the row out."""

    def golden(change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
        rows = [row for row in map(change, as_json(make(), capsys)) if row]
        path = tmp_path / "golden.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return golden


def test_rows_that_are_as_they_were_pass(
    make: Make, golden: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = golden(lambda row: row)
    run(make(packed=True), num_rows=1, html=None, as_json=False, golden=path)
    assert capsys.readouterr().out == f"5 rows are the same as in {path}\n"
    path = golden(lambda row: row if row["source"] == "rows.jsonl:2" else None)
    run(make(), num_rows=1, html=None, as_json=False, golden=path)
    assert capsys.readouterr().out == f"1 rows are the same as in {path}\n"


def refusal(view: SftView, path: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        run(view, num_rows=1, html=None, as_json=False, golden=path)
    return list(caught.value.problems)


def test_rows_that_differ_are_told_together(make: Make, golden: Callable[..., Path]) -> None:
    path = golden(lambda row: row)
    Path("rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [{"instruction": "Hi", "output": "You"}, *ROWS[1:3]])
    )
    assert refusal(make(), path) == [
        "rows.jsonl:1: its tokens changed: was 'Response:\\nYo<|eos|>', is 'Response:\\nYou<|eos|>'",
        "rows.jsonl:4: it was kept, and no longer is",
    ]


def test_another_mask_over_the_same_tokens_is_told(make: Make, golden: Callable[..., Path]) -> None:
    path = golden(lambda row: row)
    view = make(train_on=TrainOn.everything, max_dropped=0.5)
    problems = refusal(view, path)
    assert len(problems) == 5
    assert problems[0] == ("rows.jsonl:1: its mask changed: was 'Yo<|eos|>', is '## Instruction:\\nHi\\n\\n'")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "--assert golden.jsonl: it is no file of rows saved by --json: "),
        ("[1]\n", "--assert golden.jsonl: it is no file of rows saved by --json: "),
        ('{"input_ids": []}\n', "--assert golden.jsonl: it is no file of rows saved by --json: "),
        ("\n", "--assert golden.jsonl: it holds no rows; make it with alignkit inspect … --json > golden.jsonl"),
    ],
)
def test_a_golden_file_that_is_none(make: Make, content: str | None, line: str) -> None:
    if content is not None:
        Path("golden.jsonl").write_text(content)
    (problem,) = refusal(make(), Path("golden.jsonl"))
    assert problem.startswith(line)


def test_characters_typed_as_control_tokens_are_shown_as_characters(make: Make) -> None:
    Path("rows.jsonl").write_text(json.dumps({"instruction": "Hi", "output": "<|eos|>"}) + "\n")
    view = make(control_tokens=ControlTokens.neutralise)
    (row,) = view.rows()
    assert row.parts(view.tokenizer)[0][1][1:] == [Span("<|eos|>", True, False), Span("<|eos|>", True, True)]
    assert "neutralized control tokens: 1" in on_terminal(view)


def test_every_part_of_a_row_is_compared(tmp_path: Path) -> None:
    parts = [{"source": "a.jsonl:1", "ids": [number], "text": f"part {number}"} for number in (1, 2)]
    path = tmp_path / "golden.jsonl"
    path.write_text("".join(json.dumps(part) + "\n" for part in parts))
    compared = (("ids", "text", "mask"),)
    assert check_golden(path, parts, compared) == 2
    with pytest.raises(DataError, match=r"^a\.jsonl:1: its mask changed: was 'part 1', is 'part 7'$"):
        check_golden(path, [{"source": "a.jsonl:1", "ids": [7], "text": "part 7"}, parts[1]], compared)


@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_over_the_drop_budget_is_shown_and_then_refused(
    make: Make, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    view = make(max_dropped=1.0, control_tokens=ControlTokens.refuse)
    view.ledger.drop("rows.jsonl:9", "too_long")
    with pytest.raises(
        DataError, match=r"^a run stops here: data: 1 of 5 rows were dropped \(20 %\), more than data\.max_"
    ):
        run(replace(view, max_dropped=0.1), num_rows=1, html=None, as_json=as_json, golden=None)
    out = capsys.readouterr().out
    assert ('"source": "rows.jsonl:1"' if as_json else "dropped: too_long") in out


def qwen(data: DataConfig, template: str, **kwargs: Any) -> tuple[SftView, list[str]]:
    """The view of a training in a template of today, and what its parts cost."""
    tokenizer = family_tokenizer(template)
    bound = load_template(TemplateConfig(kwargs=kwargs), tokenizer)
    loaded = load_sft(data, bound, tokenizer, max_length=200, seed=0)
    view = SftView("sft it", loaded.sets, loaded.ledger, tokenizer, [], Collator(0), 2, template_kwargs=kwargs)
    return view, parts_cost(loaded.train, bound)


TURNS = [{"role": role, "content": word} for role, word in (("user", "a"), ("assistant", "b"), ("user", "c"))]
REASONED = {"role": "assistant", "content": "d", "reasoning": "e"}


def test_parts_say_which_they_are_and_what_they_cost(
    tmp_path: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"messages": TURNS[:2], "chat_template_kwargs": {"enable_thinking": False}}
    write_rows([{"messages": [*TURNS, REASONED]}, own])
    view, cost = qwen(DataConfig(path="rows.jsonl"), "qwen3_6", enable_thinking=True)
    rows = as_json(view, capsys)
    assert [(row["source"], row["part"], row["num_parts"]) for row in rows] == [
        ("rows.jsonl:1", 1, 2),
        ("rows.jsonl:1", 2, 2),
        ("rows.jsonl:2", 1, 1),
    ]
    assert [row["template_kwargs"] for row in rows] == [{"enable_thinking": on} for on in (True, True, False)]
    text = on_terminal(view)
    assert "rows.jsonl:1 part 2 of 2: " in text
    assert "⟨</think>⟩" in text  # added to the tokenizer as a plain token
    num_read = sum(len(row["input_ids"]) for row in rows[:2])
    num_trained = sum(label != -100 for row in rows[:2] for label in row["labels"])
    assert cost == [
        "1 row in 2 parts, because the template rewrites earlier turns: "
        f"{num_read / num_trained:.1f} tokens read per token trained; template.kwargs={{preserve_thinking: true}} "
        "keeps history as it was, and a row in one part"
    ]


def test_history_that_is_kept_makes_one_part_and_a_template_without_the_switch_names_none(
    tmp_path: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows([{"messages": [TURNS[0], {**REASONED, "content": "b"}, TURNS[2], REASONED]}])
    data = DataConfig(path="rows.jsonl")
    assert qwen(data, "qwen3_6", preserve_thinking=True)[1] == []
    for template, way_out in ("qwen3", ""), ("nemotron_3_nano", "truncate_history_thinking: false"):
        (cost,) = qwen(data, template)[1]
        assert ("template.kwargs" in cost, way_out in cost) == (bool(way_out), True)


def test_a_row_in_parts_that_is_cut_says_both(
    tmp_path: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows([{"messages": [{**TURNS[0], "content": "long " * 200}, *TURNS[1:], REASONED]}])
    data = DataConfig(path="rows.jsonl", overlength=Overlength.keep_end)
    view, _ = qwen(data, "qwen3_6")
    assert view.ledger.counts() == {"train": {"truncated: cut_start, in 2 parts": 1}}

"""What a person is shown of pairs is what comes back from the batches that train."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignkit.choices import Overlength
from alignkit.commands.inspect import run, show
from alignkit.config import DataConfig, TemplateConfig
from alignkit.data.batches.pair_batching import PairCollator
from alignkit.data.encode.templates import load_template
from alignkit.data.sets.pairs import load_pairs
from alignkit.data.views.supervised import PairRowView, PairView
from alignkit.errors import DataError

EOS = 258  # of the byte tokenizer; ids below 256 are bytes
ROWS = [
    {"prompt": "Hi", "chosen": "Yo <b>", "rejected": "No é"},
    {"prompt": "w" * 40, "chosen": "cut", "rejected": "longer cut"},
    {"prompt": "Hi", "chosen": "No é", "rejected": "Yo <b>"},
]
PROMPT = b"### User:\nHi\n\n### Bot:\n"

Make = Callable[..., PairView]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path], byte: Any) -> Make:
    """The view of a training on `ROWS` with one held-out pair; the second row is cut, the third contradicts."""
    monkeypatch.chdir(tmp_path)
    write_rows(ROWS)
    write_rows([{"prompt": "Held", "chosen": "in", "rejected": "out"}], "held.jsonl")

    def make(*, shared_prompt: bool = False, batch_size: int = 2) -> PairView:
        section = DataConfig(path="rows.jsonl", eval_path="held.jsonl", overlength=Overlength.keep_end)
        data = load_pairs(section, load_template(TemplateConfig(name="user_bot"), byte), byte, max_length=60, seed=0)
        return PairView(
            title="reward <test>",
            sets={"train": data.train, **data.evals},
            ledger=data.ledger,
            lint=data.lint,
            collator=PairCollator(byte.pad_token_id, shared_prompt=shared_prompt),
            batch_size=batch_size,
            tokenizer=byte,
            facts=["template user_bot & co"],
        )

    return make


def as_json(view: PairView, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    run(view, num_rows=1, html=None, as_json=True, golden=None)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_rows_by_value(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(make(), capsys)
    assert rows[0] == {
        "source": "rows.jsonl:1",
        "prompt_ids": [*PROMPT],
        "chosen_ids": [*b"Yo <b>", EOS],
        "rejected_ids": [*"No é".encode(), EOS],
        "chosen_labels": [*b"Yo <b>", EOS],
        "rejected_labels": [*"No é".encode(), EOS],
        "prompt_text": "### User:\nHi\n\n### Bot:\n",
        "chosen_text": "Yo <b><|eos|>",
        "rejected_text": "No é<|eos|>",
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
        ("eval", "held.jsonl:1"),
    ]
    assert len(rows[1]["prompt_ids"]) + len(rows[1]["rejected_ids"]) == 60


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("shared_prompt", [False, True])
def test_the_layout_of_the_batches_changes_no_pair(
    make: Make, capsys: pytest.CaptureFixture[str], shared_prompt: bool, batch_size: int
) -> None:
    plain = as_json(make(batch_size=1), capsys)
    assert as_json(make(shared_prompt=shared_prompt, batch_size=batch_size), capsys) == plain


def test_pairs_are_read_back_from_batches_not_from_the_data(make: Make) -> None:
    view, batches = make(), []

    def spoilt(rows: Any) -> Any:
        batches.append(len(rows))
        batch = PairCollator(0)(rows)
        return {**batch, "input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == ord("Y"), ord("y"))}

    (row,) = replace(view, collator=spoilt).rows(num_rows=1)
    assert bytes(row.chosen[0][:-1]) == b"yo <b>"
    assert batches == [1]


def test_the_terminal_shows_the_prompt_once_and_both_sides_in_colour(make: Make) -> None:
    view, stream = make(), io.StringIO()
    show(view, list(view.rows(num_rows=1)), Console(file=stream, force_terminal=True, soft_wrap=True))
    green, off, bold = "\x1b[1;30;42m", "\x1b[0m", "\x1b[1m"
    assert (
        f"rows.jsonl:1: 23 tokens of prompt, 7 chosen, 6 rejected{off}\n### User:\nHi\n\n### Bot:\n\n"
        f"{bold}chosen:{off}\n{green}Yo <b>{off}{green}⟨<|eos|>⟩{off}\n"
        f"{bold}rejected:{off}\n{green}No é{off}{green}⟨<|eos|>⟩{off}\n"
    ) in stream.getvalue()


def test_the_terminal_ends_with_ledger_facts_lint_and_lengths(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run(make(), num_rows=0, html=None, as_json=False, golden=None)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(next(line for line in lines if line.split() == ["train", "eval"]))
    assert [" ".join(line.split()) for line in lines[start + 1 : start + 16]] == [
        "kept 2 1",
        "truncated: cut_start 1 0 rows.jsonl:2",
        "all rows 3 1",
        "columns used: prompt, chosen, rejected",
        "template user_bot & co",
        # of 23 + 49 + 23 + 25 tokens of prompt and 13 + 15 + 13 + 7 of responses
        "28.6% of the tokens supervised, 25.0% of the kept rows truncated",
        "0 have an empty or missing text",
        "0 have identical sides",
        "0 have a different prompt on each side",
        "0 are made equal by truncation",
        "0 repeat an earlier pair",
        "1 contradict an earlier pair (rows.jsonl:3 against rows.jsonl:1)",
        "length: the longer side is chosen in 25.0% of 4 pairs, so length alone predicts 75.0% of the labels "
        "(AUC of the difference 0.188)",
        "tokens in a prompt",
        "23-26 tokens 3 " + "█" * 40,
    ]
    assert [line for line in lines if line.startswith("tokens in")] == [
        "tokens in a prompt",
        "tokens in a chosen response",
        "tokens in a rejected response",
    ]


def test_the_page_shows_both_sides(make: Make, tmp_path: Path) -> None:
    run(make(), num_rows=2, html=tmp_path / "pairs.html", as_json=False, golden=None)
    page = (tmp_path / "pairs.html").read_text(encoding="utf-8")
    page = re.sub(r"(?<=>)\n+(?=<)", "", page)
    assert "<h1>reward &lt;test&gt;</h1>" in page
    assert (
        "<section><h2>rows.jsonl:1 <small>23 tokens of prompt, 7 chosen, 6 rejected</small></h2>"
        "<pre>### User:\nHi\n\n### Bot:\n</pre>"
        '<h3>chosen</h3><pre><mark>Yo &lt;b&gt;</mark><mark><span class="special">⟨&lt;|eos|&gt;⟩</span></mark></pre>'
        '<h3>rejected</h3><pre><mark>No é</mark><mark><span class="special">⟨&lt;|eos|&gt;⟩</span></mark></pre>'
        "</section>"
    ) in page
    assert "<li>1 contradict an earlier pair (rows.jsonl:3 against rows.jsonl:1)</li>" in page
    assert page.count("<section>") == 2 + 1 + 3  # two pairs, the ledger, three histograms
    assert "://" not in page


def test_golden_pairs_are_held_to_their_prompt_and_both_sides(
    make: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    golden = tmp_path / "golden.jsonl"
    rows = as_json(make(), capsys)
    golden.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run(make(shared_prompt=True), num_rows=1, html=None, as_json=False, golden=golden)
    assert capsys.readouterr().out == f"4 rows are the same as in {golden}\n"
    changed = [ROWS[0] | {"rejected": "Nay"}, ROWS[1] | {"chosen": "cat"}, ROWS[2] | {"prompt": "Ho"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        run(make(), num_rows=1, html=None, as_json=False, golden=golden)
    assert list(caught.value.problems) == [
        "rows.jsonl:1: its rejected side changed: was 'No é<|eos|>', is 'Nay<|eos|>'",
        "rows.jsonl:2: its chosen side changed: was 'cut<|eos|>', is 'cat<|eos|>'",
        "rows.jsonl:3: its prompt changed: was '### User:\\nHi\\n\\n### Bot:\\n', is '### User:\\nHo\\n\\n### Bot:\\n'",
    ]


def test_a_golden_file_of_another_stage_is_refused(make: Make, tmp_path: Path) -> None:
    golden = tmp_path / "golden.jsonl"
    golden.write_text('{"source": "rows.jsonl:1", "input_ids": [1], "labels": [1]}\n')
    with pytest.raises(DataError) as caught:
        run(make(), num_rows=1, html=None, as_json=False, golden=golden)
    assert str(caught.value) == (f"--assert {golden}: it is no file of rows saved by --json: a row has no 'prompt_ids'")


def test_a_side_is_supervised_from_its_first_token_with_loss(byte: Any) -> None:
    row = PairRowView("x:1", [257, *b"a"], ([*b"tb", EOS], [-100, *b"b", EOS]), ([EOS], [EOS]))
    assert [
        (name, [(span.text, span.supervised, span.special) for span in spans]) for name, spans in row.parts(byte)
    ] == [
        ("", [("<|bos|>", False, True), ("a", False, False)]),
        ("chosen", [("t", False, False), ("b", True, False), ("<|eos|>", True, True)]),
        ("rejected", [("<|eos|>", True, True)]),
    ]

"""From files to encoded pairs: what is encoded, where it lands, and that no source row is lost or counted twice."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.choices import Batching, ControlTokens, Malformed, Overlength, TrainOn
from alignkit.config import DataConfig, TemplateConfig
from alignkit.data.encode.masking import EncodeRules, encode, encode_prompt
from alignkit.data.encode.templates import load_template
from alignkit.data.rows.preferences import to_preference
from alignkit.data.sets.loaded import load_on_main_process
from alignkit.data.sets.pairs import PairData, PairSet, check_pair_data, load_pairs
from alignkit.data.sets.sft import load_sft
from alignkit.errors import DataError

FIXTURES = Path(__file__).parents[1] / "fixtures"  # about twenty rows each, in the shapes of well-known data sets
EOS = 258  # of the byte tokenizer; ids below 256 are bytes
HI = b"### Instruction:\nHi\n\n### Response:\n"
MANY = b"### Instruction:\nHi\n\n### Response:\nHo<|eos|>\n\n### Instruction:\nAnd?\n\n### Response:\n"

Load = Callable[..., PairData]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that a source is `rows.jsonl:1`


@pytest.fixture
def load(byte: Any) -> Load:
    """Read a `data` section with the instruction template and the byte tokenizer."""
    template = load_template(TemplateConfig(name="instruction"), byte)

    def load(path: Any = "rows.jsonl", *, max_length: int = 150, seed: int = 0, **rest: Any) -> PairData:
        run = {key: rest.pop(key) for key in ("num_examples", "use_margin") if key in rest}
        return load_pairs(DataConfig(path=path, **rest), template, byte, max_length=max_length, seed=seed, **run)

    return load


def row(prompt: str, chosen: Any, rejected: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def texts(pairs: PairSet, byte: Any) -> list[tuple[str, str, str]]:
    return [tuple(byte.decode(r[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")) for r in pairs.dataset]


def written(data: PairData) -> list[tuple[str, str, str, str]]:
    data.ledger.write(Path("fates.jsonl"))
    lines = [json.loads(line) for line in Path("fates.jsonl").read_text().splitlines()]
    return [(line["source"], line["fate"], line["reason"], line["set"]) for line in lines]


def refusal(load: Load, **rest: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        load(**rest)
    return list(caught.value.problems)


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "And?"}]
YES, NO = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "né"}


@pytest.mark.parametrize(
    ("source", "prompt", "format"),
    [
        (row("Hi", "yes", "né"), HI, "pairs"),
        ({"chosen": [*TURNS, YES], "rejected": [*TURNS, NO], "score_chosen": 1}, MANY, "pairs"),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "yes"},
                "rejected": {"from": "gpt", "value": "né"},
            },
            HI,
            "sharegpt_pairs",
        ),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: And?\n\nAssistant: yes",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: And?\n\nAssistant: né",
            },
            MANY,
            "hh",
        ),
    ],
)
def test_a_pair_of_each_format_by_value(
    load: Load, write_rows: Callable[..., Path], source: dict[str, Any], prompt: bytes, format: str
) -> None:
    write_rows([source])
    data = load()
    before, _, after = prompt.partition(b"<|eos|>")
    ids = [*before, EOS, *after] if after else [*before]
    assert data.train.dataset[:] == {
        "prompt_ids": [ids],
        "chosen_ids": [[*b"yes", EOS]],
        "rejected_ids": [[*b"n\xc3\xa9", EOS]],
        "row_index": [0],
        "source": ["rows.jsonl:1"],
        "template_kwargs": ["{}"],
        "cuts": ["{}"],
    }
    assert {str(f.feature.dtype) for name, f in data.train.dataset.features.items() if name.endswith("_ids")} == {
        "int32"
    }
    assert data.train.sources == ["rows.jsonl:1"]
    assert data.train.side_lengths() == ([len(ids)], [4], [4])
    assert (data.evals, [(read.source.path, read.format) for read in data.read]) == ({}, [("rows.jsonl", format)])


@pytest.mark.parametrize("name", ["instruction", "user_bot", "chatml", "human_assistant"])
def test_each_side_is_what_sft_would_train_on_and_the_prompt_what_inference_feeds(
    tokenizer: Any, write_rows: Callable[..., Path], name: str
) -> None:
    template = load_template(TemplateConfig(name=name), tokenizer)
    source = {"chosen": [*TURNS, YES], "rejected": [*TURNS, NO]}
    write_rows([source])
    (pair,) = load_pairs(DataConfig(path="rows.jsonl"), template, tokenizer, max_length=500, seed=0).train.dataset
    preference = to_preference(source, "pairs", {})
    assert pair["prompt_ids"] == encode_prompt(preference.prompt, template, tokenizer, EncodeRules())
    for side, ids in zip(preference.sides(), (pair["chosen_ids"], pair["rejected_ids"]), strict=True):
        (row,) = encode(side, template, tokenizer, EncodeRules(TrainOn.last_turn))
        (start, end) = row.responses[-1]
        assert pair["prompt_ids"] + ids == row.input_ids[:end]
        assert [label for label in row.labels if label != -100] == ids == row.labels[start:end]


def test_every_source_row_is_in_the_ledger_once_and_in_the_order_of_the_file(
    load: Load, write_rows: Callable[..., Path]
) -> None:
    rows = [
        row("a", "b", "c"),
        row("a", "b", None),
        row("d" * 150, "e", "f"),
        row("a", "same", "same"),
        {"prompt": None, "chosen": [TURNS[0], YES], "rejected": [TURNS[2], NO]},
        row("a", "<|eos|>", "c"),
        row("g", "h", "i"),
    ]
    write_rows(rows)
    data = load(malformed=Malformed.drop, max_dropped=0.9)
    assert written(data) == [
        ("rows.jsonl:1", "kept", "", "train"),
        ("rows.jsonl:2", "dropped", "malformed: 'rejected' is null", "train"),
        ("rows.jsonl:3", "dropped", "too_long", "train"),
        ("rows.jsonl:4", "dropped", "identical", "train"),
        ("rows.jsonl:5", "dropped", "prompts_differ", "train"),
        ("rows.jsonl:6", "dropped", "control_tokens", "train"),
        ("rows.jsonl:7", "kept", "", "train"),
    ]
    assert data.train.sources == ["rows.jsonl:1", "rows.jsonl:7"]


def test_a_null_side_is_a_line_not_a_crash(load: Load, write_rows: Callable[..., Path]) -> None:
    write_rows([row("a", "b", None), row("a", "b", "c"), row("a", "", "c")])
    assert refusal(load) == [
        "2 malformed rows: fix them, or leave them out with data.malformed=drop",
        "rows.jsonl:1: 'rejected' is null",
        "rows.jsonl:3: 'chosen' is empty",
    ]


def test_identical_pairs_are_never_trained_on(load: Load, write_rows: Callable[..., Path]) -> None:
    write_rows([row("a", "b", "b")] * 3)
    assert refusal(load) == [
        "data: no row is left of 3: 3 identical (rows.jsonl:1, rows.jsonl:2, …); give pairs whose sides differ"
    ]
    write_rows([row("a", "b", "b"), row("a", "b", "c")])
    assert refusal(load) == [
        "data: 1 of 2 rows were dropped (50 %), more than data.max_dropped=0.05 allows: 1 identical (rows.jsonl:1); "
        "give pairs whose sides differ, or raise data.max_dropped"
    ]


def test_over_long_pairs_are_counted(load: Load, write_rows: Callable[..., Path]) -> None:
    write_rows([row("a" * 200, "b", "c"), row("a", "b" * 200, "c"), row("a", "b", "c" * 200)])
    assert refusal(load) == [
        "data: no row is left of 3: 3 too_long (rows.jsonl:1, rows.jsonl:2, …); "
        "raise data.max_length, choose data.overlength=keep_end"
    ]
    data = load(overlength=Overlength.keep_end, max_dropped=0.9)
    assert data.ledger.counts() == {"train": {"truncated: cut_start": 1, "dropped: too_long": 2}}
    data = load(overlength=Overlength.keep_start, max_dropped=0.9)
    assert data.ledger.counts() == {"train": {"truncated: cut_end": 2, "dropped: too_long": 1}}


def test_pairs_made_equal_by_the_cut_end_in_words(load: Load, write_rows: Callable[..., Path]) -> None:
    write_rows([row("a", "b" * 200 + "!", "b" * 200 + "?")] * 2)
    assert refusal(load, overlength=Overlength.keep_start) == [
        "data: no row is left of 2: 2 equal_when_cut (rows.jsonl:1, rows.jsonl:2); raise data.max_length"
    ]


def test_keep_end_cuts_one_prompt_for_both_sides(load: Load, write_rows: Callable[..., Path], byte: Any) -> None:
    write_rows([row("0123456789", "yes", "no")])
    data = load(max_length=len(HI) + 4, overlength=Overlength.keep_end)
    assert texts(data.train, byte) == [("### Instruction:\n89\n\n### Response:\n", "yes<|eos|>", "no<|eos|>")]


def test_texts_that_are_one_to_the_tokenizer_are_identical(lowercasing: Any, write_rows: Callable[..., Path]) -> None:
    write_rows([row("a", "yes", "Yes"), row("a", "yes", "no")])
    template = load_template(TemplateConfig(name="user_bot"), lowercasing)
    data = load_pairs(DataConfig(path="rows.jsonl", max_dropped=0.5), template, lowercasing, max_length=99, seed=0)
    assert data.ledger.counts() == {"train": {"dropped: identical": 1, "kept": 1}}


def test_a_prompt_is_never_on_both_sides_of_the_split(load: Load, write_rows: Callable[..., Path], byte: Any) -> None:
    write_rows([row(f"p{i // 4}", f"yes {i}", "no") for i in range(40)])
    data = load(eval_fraction=0.3, num_examples=3)
    train, held_out = ({prompt for prompt, _, _ in texts(pairs, byte)} for pairs in (data.train, data.evals["eval"]))
    assert (len(train), len(held_out)) == (7, 3)
    assert not train & held_out
    assert Counter(len(pairs.sources) for pairs in (data.train, data.evals["eval"])) == {28: 1, 12: 1}
    template = load_template(TemplateConfig(name="instruction"), byte)
    asked = [encode_prompt(example.prompt(), template, byte, EncodeRules()) for example in data.examples]
    assert {byte.decode(ids) for ids in asked} == held_out  # three prompts, each once
    assert load(eval_fraction=0.3).evals["eval"].sources == data.evals["eval"].sources
    assert load(eval_fraction=0.3, seed=1).evals["eval"].sources != data.evals["eval"].sources


def test_sources_weights_and_held_out_sets_are_those_of_sft(load: Load, write_rows: Callable[..., Path]) -> None:
    write_rows([row("a", "b", "c"), row("d", "e", "f")])
    write_rows([{"chosen": "\n\nHuman: q\n\nAssistant: r", "rejected": "\n\nHuman: q\n\nAssistant: s"}], "hh.jsonl")
    write_rows([row("x", "y", "z")], "held.jsonl")
    data = load([{"path": "rows.jsonl", "weight": 2}, "hh.jsonl"], eval_path={"far": "held.jsonl"}, limit=3)
    assert data.train.sources == ["rows.jsonl:1", "rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:2", "hh.jsonl:1"]
    assert data.train.dataset["row_index"][:] == [0, 1, 2, 3, 4]
    assert data.evals["far"].sources == ["held.jsonl:1"]
    assert [read.line() for read in data.read] == [
        "rows.jsonl: 2 rows read as pairs, 2 copies added by weight 2",
        "hh.jsonl: 1 row read as hh",
        "held.jsonl: 1 row read as pairs",
    ]
    assert data.ledger.counts() == {"train": {"kept": 3}, "far": {"kept": 1}}
    assert data.lint.duplicates == []  # a copy by weight repeats nothing


@pytest.mark.slow  # test_sft has its like
def test_several_processes_encode_what_one_does(
    load: Load, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit.data.sets.encode_sets.WORKERS_FROM", 1)
    write_rows([row(f"p{i}", f"yes {i}", "no") for i in range(600)])
    assert load(num_proc=2).train.dataset[:] == load().train.dataset[:]


def test_margins_are_kept_where_every_pair_has_one(load: Load, write_rows: Callable[..., Path]) -> None:
    write_rows([row("a", "b", "c", margin=1), row("d", "e", "f", margin="0.5")])
    data = load()
    assert data.train.dataset["margin"][:] == [1.0, 0.5]
    assert data.train.dataset.features["margin"].dtype == "float32"
    assert "margin" not in load(use_margin=False).train.dataset.column_names
    write_rows([row("x", "y", "z")], "held.jsonl")
    assert refusal(load, eval_path="held.jsonl") == [
        "held.jsonl:1: it has no 'margin', like 1 of 3 rows: give one to every row, or none"
    ]
    assert "margin" not in load(eval_path="held.jsonl", use_margin=False).train.dataset.column_names


def test_rows_of_the_other_kind_are_refused_by_name(load: Load, write_rows: Callable[..., Path], byte: Any) -> None:
    write_rows([{"instruction": "a", "output": "b"}])
    (line,) = refusal(load)
    assert line.startswith("data.path: the columns instruction (text), output (text) are single responses")
    write_rows([row("a", "b", "c")])
    template = load_template(TemplateConfig(name="instruction"), byte)
    with pytest.raises(DataError, match="these are preference pairs"):
        load_sft(DataConfig(path="rows.jsonl"), template, byte, max_length=99, seed=0)


def test_what_is_wrong_with_the_section_is_told_together(write_rows: Callable[..., Path]) -> None:
    write_rows([row("a", "b", "c")])
    columns = {"prompt": "prompt", "chosen": "chosen"}
    assert check_pair_data(DataConfig(path="rows.jsonl", columns=columns, batching=Batching.packed)) == []
    assert check_pair_data(
        DataConfig(path="row.jsonl", train_on=TrainOn.last_turn, train_reasoning=False, streaming=True)
    ) == [
        "data.path: row.jsonl: there is no such file; did you mean 'rows.jsonl'?",
        "data.train_on=last_turn has no effect: of a pair the two responses are scored, and nothing else",
        "data.train_reasoning=false: a reward model scores whole responses; leave it out",
        "data.streaming=true: pairs are not read as training goes; leave it out",
    ]
    assert check_pair_data(DataConfig(path="rows.jsonl", train_reasoning=False), scores_tokens=True) == []
    assert check_pair_data(DataConfig(path="rows.jsonl", format="messages")) == [
        "data.format=messages is for single responses, not pairs; one of auto, pairs, sharegpt_pairs, hh"
    ]


def test_control_tokens_in_a_side_are_neutralised_and_counted_once_a_pair(
    load: Load, write_rows: Callable[..., Path], byte: Any
) -> None:
    write_rows([row("a", "<|eos|>", "c<|eos|>"), row("a", "b", "c")])
    data = load(control_tokens=ControlTokens.neutralise)
    assert data.train.dataset[0]["chosen_ids"] == [*b"<|eos|>", EOS]
    assert data.ledger.notes["neutralized control tokens"] == 1


TWO = """
from pathlib import Path
from alignkit.config import DataConfig, TemplateConfig
from alignkit.data.sets.pairs import PairData, load_pairs
from alignkit.data.sets.loaded import load_on_main_process
from alignkit.data.encode.templates import load_template
from alignkit.models.tiny import byte_tokenizer
import os, sys

def load():
    assert os.environ["RANK"] == "0", "only the main process reads"
    byte = byte_tokenizer()
    data = DataConfig(path="rows.jsonl", eval_fraction=0.5)
    return load_pairs(data, load_template(TemplateConfig("instruction"), byte), byte, max_length=99, seed=0)

data = load_on_main_process(load, Path("encoded"), PairData)
sets = {name: pairs.dataset[:] for name, pairs in data.sets.items()}
Path(f"rank{os.environ['RANK']}.txt").write_text(repr(sets))
"""


@pytest.mark.slow
def test_two_processes_get_the_same_pairs_and_leave_nothing_behind(write_rows: Callable[..., Path]) -> None:
    write_rows([row(f"p{i}", "b", "c", margin=i) for i in range(4)])
    Path("two.py").write_text(TWO)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "two.py"]
    done = subprocess.run(torchrun, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    one, two = (Path(f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert one == two
    assert "'margin'" in one
    assert not Path("encoded").exists()


def test_one_process_shares_nothing_on_disk(load: Load, write_rows: Callable[..., Path]) -> None:
    write_rows([row("a", "b", "c")])
    assert load_on_main_process(load, Path("folder"), PairData).train.sources == ["rows.jsonl:1"]
    assert not Path("folder").exists()


def test_pairs_as_data_sets_have_them(load: Load, byte: Any) -> None:
    file = FIXTURES / "pairs.json"
    data = load(str(file), max_length=100_000, eval_fraction=0.1, num_examples=2)
    counts = data.ledger.counts()
    assert (counts["train"]["kept"], counts["eval"]["kept"]) == (18, 2)
    assert [read.format for read in data.read] == ["sharegpt_pairs"]
    rows = json.loads(file.read_text(encoding="utf-8"))
    by_source = {
        source: text
        for pairs in (data.train, data.evals["eval"])
        for source, text in zip(pairs.sources, texts(pairs, byte), strict=True)
    }
    for number, source in enumerate(rows, 1):
        prompt, chosen, rejected = by_source[f"{file}:{number}"]
        assert prompt.endswith(f"{source['conversations'][-1]['value']}\n\n### Response:\n")
        assert (chosen, rejected) == (f"{source['chosen']['value']}<|eos|>", f"{source['rejected']['value']}<|eos|>")
    assert data.lint.num_pairs == 20
    longer = [(len(r["chosen"]["value"].encode()), len(r["rejected"]["value"].encode())) for r in rows]
    assert data.lint.longer_chosen == sum((a > b) + (a == b) / 2 for a, b in longer) / 20
    assert [example.messages[-1].role for example in data.examples] == ["assistant"] * 2

"""`data.system`: in front of every row that has no system message of its own, and nowhere else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import DataConfig, PromptDataConfig, PromptLength, TemplateConfig
from alignkit.data.encode.templates import load_template
from alignkit.data.sets.pairs import load_pairs
from alignkit.data.sets.prompts import load_prompts
from alignkit.data.sets.section import check_data
from alignkit.data.sets.sft import SftData, load_sft
from alignkit.errors import DataError
from alignkit.models.tiny import byte_tokenizer

BYTE = byte_tokenizer()
# As Qwen2.5 does: a default of its own where the conversation begins without a system message.
DEFAULTING = (
    "{% if messages[0].role != 'system' %}[I am Qwen.]{% endif %}{% for message in messages %}"
    "{% if message.role == 'assistant' %}<a>{% generation %}{{ message.content + end }}{% endgeneration %}"
    "{% else %}<{{ message.role[0] }}>{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SftData]:
    monkeypatch.chdir(tmp_path)
    Path("qwen.jinja").write_text(DEFAULTING)
    template = load_template(TemplateConfig(file="qwen.jinja"), BYTE)

    def load(*rows: dict[str, Any], loader: Callable[..., Any] = load_sft, **settings: Any) -> Any:
        Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        section = (PromptDataConfig if loader is load_prompts else DataConfig)("rows.jsonl", **settings)
        assert check_data(section) == [] or loader is not load_sft
        return loader(section, template, BYTE, max_length=200, seed=0)

    return load


def texts(data: SftData) -> list[str]:
    return [BYTE.decode([i for i in ids if i < 256]) for ids in data.train.dataset["input_ids"]]


def test_it_stands_before_rows_without_one_and_in_the_place_of_the_templates_default(load: Any) -> None:
    own = {"instruction": "b", "output": "c", "system": "Rhyme."}
    assert texts(load({"instruction": "a", "output": "x"}, own)) == ["[I am Qwen.]<u>a<a>x", "<s>Rhyme.<u>b<a>c"]
    data = load(
        {"instruction": "a", "output": "x"}, own, {"text": "plain"} | own, system="Be brief.", format="instruction"
    )
    assert texts(data) == ["<s>Be brief.<u>a<a>x", "<s>Rhyme.<u>b<a>c", "<s>Rhyme.<u>b<a>c"]
    assert "rows given data.system: 1" in data.ledger.table().splitlines()


def test_pairs_and_prompts_have_it_too(load: Any) -> None:
    row = {"prompt": "a", "chosen": "x", "rejected": "y"}
    (ids,) = load(row, loader=load_pairs, system="Be brief.").train.dataset["prompt_ids"]
    (prompt,) = load(row, loader=load_prompts, system="Be brief.").train
    assert BYTE.decode(ids) == BYTE.decode(prompt.ids) == "<s>Be brief.<u>a<a>"


def test_it_splits_no_row_otherwise(load: Any) -> None:
    rows = [{"instruction": f"q{i}", "output": "x"} for i in range(20)]
    held_out = [load(*rows, eval_fraction=0.2, system=system).evals["eval"].sources for system in (None, "Be brief.")]
    assert held_out[0] == held_out[1]


def test_where_it_has_no_effect_it_is_refused(load: Any) -> None:
    for row in ({"text": "plain"}, {"instruction": "b", "output": "c", "system": "Rhyme."}):
        with pytest.raises(
            DataError, match=r"^data\.system has no effect: every row has a system message, or is plain"
        ):
            load(row, system="Be brief.")
    with pytest.raises(DataError, match=r"^data\.system has no effect"):
        load({"text": "plain"}, loader=load_prompts, system="Be brief.", prompt_length=PromptLength(1, 2))
    assert check_data(DataConfig("rows.jsonl", system=" ")) == [
        "data.system is empty: give a system message, or leave it out"
    ]

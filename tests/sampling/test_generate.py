from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignkit.config import SamplingConfig
from alignkit.errors import ModelError
from alignkit.sampling.generate import (
    Completion,
    _warn_alone,
    _warn_choosy,
    _warn_slow,
    _warn_turning,
    cut_at_stop,
    generate,
)
from alignkit.sampling.padding import sees_left_padding
from alignkit.sampling.settings import generation_config

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # takes no position ids
    "mistral": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "sliding_window": 8,
    },  # its cache forgets
    "gemma3_text": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
        "num_key_value_heads": 2, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
    },  # every other layer forgets
    "lfm2": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"],
    },  # keeps a state beside its cache, which takes no rows
}  # fmt: skip
STOP, PAD, NUM_TOKENS = 2, 0, 90
GREEDY = SamplingConfig(max_new_tokens=12)
DRAWN = SamplingConfig(temperature=1.0, max_new_tokens=12)


def tiny(kind: str = "llama", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    # wide weights: a model of the usual ones repeats a single token
    config = AutoConfig.for_model(kind, vocab_size=NUM_TOKENS, initializer_range=0.3, **SIZES[kind] | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model


def prompts(num: int = 9) -> list[list[int]]:
    source = random.Random(0)
    return [[source.randrange(3, NUM_TOKENS) for _ in range(source.randint(1, 20))] for _ in range(num)]


def run(model: PreTrainedModel, sampling: SamplingConfig, batch_size: int = 4, **changes: Any) -> list[Completion]:
    settings = {"prompts": prompts(), "eos_ids": [STOP], "pad_id": PAD, "seed": 0, "batch_size": batch_size} | changes
    return generate(model, sampling=sampling, **settings)


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(repetition_penalty=1.5, max_new_tokens=12)])
def test_greedy_equals_transformers(kind: str, sampling: SamplingConfig) -> None:
    model = tiny(kind).eval()
    # two tokens that come up end a response, so that rows end at different steps
    free = run(model, sampling, eos_ids=[])
    stops = [free[0].token_ids[3], free[1].token_ids[6]]
    config = generation_config(sampling, eos_ids=stops, pad_id=PAD)
    completions = run(model, sampling, eos_ids=stops)
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for prompt, completion in zip(prompts(), completions, strict=True):
        theirs = model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
        stopped = theirs[-1] in stops
        assert completion.token_ids == (theirs[:-1] if stopped else theirs)
        assert completion.finish_reason == ("stop" if stopped else "length")


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(
    "sampling", [DRAWN, SamplingConfig(top_p=0.8, temperature=1.4, repetition_penalty=1.3, max_new_tokens=12)]
)
def test_batch_size_and_padding_change_nothing(kind: str, sampling: SamplingConfig) -> None:
    model = tiny(kind)
    alone = run(model, sampling, batch_size=1, eos_ids=range(10))
    assert len({c.num_tokens for c in alone}) > 2, "rows end at different steps"
    for batch_size in (2, 4, 16):
        together = run(model, sampling, batch_size=batch_size, eos_ids=range(10))
        assert [c.token_ids for c in together] == [c.token_ids for c in alone]
        assert [c.logprob for c in together] == pytest.approx([c.logprob for c in alone], abs=1e-4)


def test_long_responses_equal_transformers_in_a_batch_that_is_always_refilled() -> None:
    model = tiny().eval()
    sampling = SamplingConfig(max_new_tokens=150)
    ends = [run(model, sampling, eos_ids=[])[0].token_ids[100]]
    config = generation_config(sampling, eos_ids=ends, pad_id=PAD)
    completions = run(model, sampling, batch_size=3, eos_ids=ends)
    assert len({c.num_tokens for c in completions}) > 2
    for prompt, completion in zip(prompts(), completions, strict=True):
        theirs = model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
        assert completion.token_ids == [token for token in theirs if token not in ends]


def shapes_of(model: PreTrainedModel, **settings: Any) -> tuple[list[tuple[int, int, int]], list[Completion]]:
    """(rows, new tokens, columns) of every pass through the model, and what came of them."""
    seen = []

    def note(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        seen.append((*inputs["input_ids"].shape, inputs["attention_mask"].shape[1]))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return seen, run(model, **settings)
    finally:
        hook.remove()


def test_the_place_of_a_row_that_ended_goes_to_the_next_prompt() -> None:
    many = prompts(40)
    shapes, done = shapes_of(tiny(), sampling=DRAWN, batch_size=4, prompts=many, eos_ids=range(10))
    assert shapes[0] == (4, 20, 20), "the longest first"
    assert sum(rows for rows, new, _ in shapes if new > 1) == 40, "each prompt is read once"
    steps = [(rows, columns) for rows, new, columns in shapes if new == 1]
    num_drawn = sum(len(c.token_logprobs) for c in done)
    # A row's first token comes of its prompt; its last one may be fed before its place is taken.
    assert num_drawn - 40 <= sum(rows for rows, _ in steps) <= num_drawn
    last = max(at for at, (_, new, _) in enumerate(shapes) if new > 1)
    assert {rows for rows, new, _ in shapes[:last] if new == 1} == {4}, "full as long as prompts wait"
    assert shapes[-1][0] < 4, "then places go"
    longest = max(len(prompt) + len(c.token_logprobs) for prompt, c in zip(many, done, strict=True))
    assert max(columns for _, columns in steps) <= longest, "no wider than a row needs"


def groups(num: int = 5, size: int = 5) -> list[list[int]]:
    """Prompts of which each comes several times; two are of one length, and one is longer than the windows."""
    several = [[token] * 12 for token in (7, 8)] + prompts(num - 2)
    random.Random(1).shuffle(mixed := several * size)
    return mixed


@pytest.mark.parametrize("kind", [*SIZES, "llama in float64"])
def test_a_prompt_of_several_rows_is_read_once_and_draws_as_if_each_read_it(kind: str) -> None:
    model, asked = tiny(kind.split()[0]).to(torch.float64 if "64" in kind else torch.float32), groups()
    alone = [run(model, DRAWN, 1, prompts=[row], keys=[key], eos_ids=range(10))[0] for key, row in enumerate(asked)]
    assert len({c.num_tokens for c in alone}) > 2, "rows end at different steps"
    order = sorted(asked, key=lambda row: (-len(row), asked.index(row)))
    for size in (1, 3, 16, 64):
        num_read, together = prompt_tokens_read(model, prompts=asked, batch_size=size, eos_ids=range(10))
        assert [c.token_ids for c in together] == [c.token_ids for c in alone]
        assert [c.logprob for c in together] == pytest.approx([c.logprob for c in alone], abs=1e-4)
        batches = [order]
        if kind == "lfm2" and size > 1:  # beside new rows, what it keeps of a row cannot be put
            batches = [order[start : start + size] for start in range(0, len(order), size)]
        assert num_read == sum(len(row) for batch in batches for row in {tuple(row) for row in batch})


def prompt_tokens_read(model: PreTrainedModel, **settings: Any) -> tuple[int, list[Completion]]:
    """How many tokens of prompts pass the model, and what comes of them."""
    read: list[int] = []

    def note(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        if inputs["use_cache"] and inputs["input_ids"].shape == inputs["attention_mask"].shape:  # none is cached yet
            read.append(int(inputs["attention_mask"].sum()))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        done = run(model, sampling=DRAWN, **settings)
    finally:
        hook.remove()
    return sum(read), done


def test_places_change_hands_together_where_there_are_many() -> None:
    """One prompt of 16 that wait is not worth a pass of its own; meanwhile the row that ended is fed padding."""
    model = tiny("gpt2", n_positions=32)  # a longer row would have no position
    read: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(int(inputs["attention_mask"][:, -1].sum())), with_kwargs=True
    )
    shapes, done = shapes_of(model, sampling=DRAWN, batch_size=16, prompts=prompts(60), eos_ids=range(4))
    hook.remove()
    assert sum(read) == sum(len(c.token_logprobs) for c in done), "a column is read for every token, and no other"
    assert "length" in {c.finish_reason for c in done}
    assert done == run(model, DRAWN, batch_size=16, prompts=prompts(60), eos_ids=range(4))
    alone = run(model, DRAWN, batch_size=1, prompts=prompts(60), eos_ids=range(4))
    assert [c.token_ids for c in done] == [c.token_ids for c in alone]
    joined = [rows for rows, new, _ in shapes[1:] if new > 1]
    assert joined
    assert min(joined[:-1]) >= 2


def test_a_row_is_reproducible_and_differs_by_seed_and_place() -> None:
    model, same = tiny(), [[5, 6, 7]] * 3
    first = run(model, DRAWN, prompts=same)
    assert len({tuple(c.token_ids) for c in first}) == 3
    assert run(model, DRAWN, prompts=same) == first
    assert [c.token_ids for c in run(model, DRAWN, prompts=same[:2])] == [c.token_ids for c in first[:2]]
    other = run(model, DRAWN, prompts=same, seed=1)
    assert not {tuple(c.token_ids) for c in other} & {tuple(c.token_ids) for c in first}


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingConfig(temperature=0.6, top_k=20, max_new_tokens=12, min_new_tokens=2)]
)
def test_logprob_is_the_plain_models_end_token_included(sampling: SamplingConfig) -> None:
    model = tiny().eval()
    ends = list(range(0, NUM_TOKENS, 7))
    completions = run(model, sampling, eos_ids=ends)
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for prompt, completion in zip(prompts(), completions, strict=True):
        ids = torch.tensor([prompt + completion.token_ids])
        logprobs = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 :]
        response = sum(logprobs[t, token].item() for t, token in enumerate(completion.token_ids))
        if completion.finish_reason == "length":
            assert completion.logprob == pytest.approx(response, abs=1e-4)
        else:
            endings = [response + logprobs[completion.num_tokens, end].item() for end in ends]
            assert min(abs(completion.logprob - ending) for ending in endings) < 1e-4


def test_draws_follow_the_models_distribution() -> None:
    model = tiny().eval()
    sampling = SamplingConfig(temperature=0.8, top_k=5, max_new_tokens=1)
    completions = run(model, sampling, prompts=[[5, 6, 7]] * 4000, eos_ids=[], batch_size=500)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in completions]), minlength=NUM_TOKENS)
    top = (model(torch.tensor([[5, 6, 7]])).logits[0, -1] / 0.8).topk(5)
    expected = top.values.softmax(-1) * 4000
    assert counts.sum() == counts[top.indices].sum()
    assert ((counts[top.indices] - expected).square() / expected).sum() < 18.5  # p = 0.001 at 4 degrees


def test_min_new_tokens_holds_the_end_back() -> None:
    model = tiny()
    everything_ends = range(1, NUM_TOKENS)
    for sampling in (GREEDY, DRAWN):
        sampling = SamplingConfig(temperature=sampling.temperature, min_new_tokens=5, max_new_tokens=12)
        for completion in run(model, sampling, eos_ids=everything_ends):
            assert completion.token_ids == [0] * completion.num_tokens  # the one token that does not end
            assert completion.num_tokens >= 5
    short = SamplingConfig(max_new_tokens=12)
    assert all(c.num_tokens < 12 for c in run(model, short, eos_ids=everything_ends))


def test_the_end_token_is_left_out_and_a_response_may_be_empty() -> None:
    model = tiny()
    completions = run(model, GREEDY, eos_ids=range(NUM_TOKENS))
    assert all((c.token_ids, c.finish_reason, c.num_tokens) == ([], "stop", 0) for c in completions)


def test_a_lora_model_generates_as_its_merged_weights_do() -> None:
    model = tiny()
    base = run(model, GREEDY)
    lora = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with_adapter = run(lora, GREEDY)
    assert [c.token_ids for c in with_adapter] != [c.token_ids for c in base]
    merged = run(lora.merge_and_unload(), GREEDY)
    assert [c.token_ids for c in merged] == [c.token_ids for c in with_adapter]


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(training: bool) -> None:
    model = tiny("gpt2", resid_pdrop=0.5).train(training)
    assert run(model, GREEDY) == run(model, GREEDY)
    assert model.training is training


def test_keys_of_the_caller_decide_the_draws() -> None:
    model, same = tiny(), [[5, 6, 7]] * 3
    plain = [c.token_ids for c in run(model, DRAWN, prompts=same)]
    assert [c.token_ids for c in run(model, DRAWN, prompts=same, keys=[2, 1, 0])] == plain[::-1]
    first, second, third = run(model, DRAWN, prompts=same, keys=["a", "a", 0])
    assert first.token_ids == second.token_ids != third.token_ids == plain[0]


def test_each_token_has_its_logprob_and_the_end_its_own() -> None:
    model = tiny().eval()
    for prompt, completion in zip(prompts(), run(model, DRAWN, eos_ids=range(0, NUM_TOKENS, 7)), strict=True):
        assert (completion.end_id is not None) == (completion.finish_reason == "stop")
        said = completion.token_ids + ([] if completion.end_id is None else [completion.end_id])
        logprobs = model(torch.tensor([prompt + said])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = [logprobs[t, token].item() for t, token in enumerate(said)]
        assert completion.token_logprobs == pytest.approx(expected, abs=1e-4)
        assert completion.logprob == sum(completion.token_logprobs)


def test_a_stop_string_may_lie_across_tokens() -> None:
    letters = "".join(chr(ord("A") + token % 26) for token in range(NUM_TOKENS))

    def decode(ids: list[int]) -> str:
        return "".join(letters[token] for token in ids)

    model = tiny()
    free = run(model, GREEDY, eos_ids=[])
    text = decode(free[0].token_ids)
    stop = SamplingConfig(max_new_tokens=12, stop=[text[4:7]])
    ended = run(model, stop, eos_ids=[], decode=decode)
    at = text.find(text[4:7])
    assert ended[0].token_ids == free[0].token_ids[: at + 3]
    assert (ended[0].finish_reason, ended[0].end_id) == ("stop_string", None)
    assert cut_at_stop(decode(ended[0].token_ids), stop) == text[:at]
    others = [(c, f) for c, f in zip(ended, free, strict=True) if c.finish_reason == "length"]
    assert others
    assert all(c.token_ids == f.token_ids for c, f in others)


def test_tokens_are_told_as_they_are_drawn() -> None:
    heard: dict[int, list[int]] = {}
    completions = run(tiny(), DRAWN, on_token=lambda row, token: heard.setdefault(row, []).append(token))
    assert [heard.get(row, []) for row in range(9)] == [c.token_ids for c in completions]


def test_one_row_at_a_time_is_the_same_bits_in_any_company() -> None:
    model = tiny()
    together = run(model, DRAWN, batch_size=1)
    alone = [run(model, DRAWN, 1, prompts=[prompt], keys=[row])[0] for row, prompt in enumerate(prompts())]
    assert alone == together


def test_progress_is_told() -> None:
    seen: list[int] = []
    completions = run(tiny(), DRAWN, on_progress=seen.append)
    assert seen == sorted(set(seen))
    assert seen[-1] == len(completions) == 9


def test_no_prompts_no_completions() -> None:
    assert run(tiny(), GREEDY, prompts=[]) == []


def test_prompts_that_cannot_be_completed_are_named_together() -> None:
    model = tiny(max_position_embeddings=32)
    with pytest.raises(ModelError) as error:
        run(model, GREEDY, prompts=[[5] * 20, [5] * 21, [], [5]])
    assert error.value.problems == (
        "prompt 2 has 21 tokens, which with sampling.max_new_tokens=12 is more than the model's 32 positions: "
        "shorten the one or the other",
        "prompt 3 has no tokens: give it some text",
    )


def test_logits_that_are_no_numbers_are_an_error() -> None:
    model = tiny()
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
    for sampling in (GREEDY, DRAWN):
        with pytest.raises(ModelError, match=r"^prompt 2: the model's logits are not finite numbers$"):
            run(model, sampling, prompts=[[5], [6, 7], [8]])


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("mamba", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
        ("rwkv", {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16}),  # deaf to the mask
    ],
)
def test_a_model_without_a_cache_answers_slowly(
    kind: str, sizes: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    _warn_slow.cache_clear()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=NUM_TOKENS, **sizes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # else it repeats a single token
    shapes, completions = shapes_of(model, sampling=GREEDY)
    assert {rows for rows, _, _ in shapes} == {1}
    config = generation_config(GREEDY, eos_ids=[STOP], pad_id=PAD)
    for prompt, completion in zip(prompts(), completions, strict=True):
        theirs = model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
        assert completion.token_ids == [token for token in theirs if token != STOP]
    assert f"{type(model).__name__} has no key/value cache" in caplog.text


SMALL = {"hidden_size": 32, "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32, "initializer_range": 0.2}
ODD: dict[str, dict[str, Any]] = {  # what they keep between tokens is in no cache of transformers' own, or of no use
    "minimax": {
        **{**HEADS, "num_hidden_layers": 2, "num_local_experts": 2, "num_experts_per_tok": 1},
        **{"head_dim": 16, "block_size": 8, "layer_types": ["linear_attention", "full_attention"]},
    },
    "recurrent_gemma": {**HEADS, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
    "rwkv": {"attention_hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32},
    "reformer": {
        **{
            "attn_layers": ["local", "local"],
            "local_attn_chunk_length": 8,
            "num_attention_heads": 2,
            "is_decoder": True,
        },
        **{"attention_head_size": 16, "feed_forward_size": 32, "axial_pos_embds": False, "initializer_range": 0.2},
    },
    "cpmant": {"num_hidden_layers": 2, "dim_ff": 32, "num_attention_heads": 2, "dim_head": 16, "init_std": 0.3},
}


@pytest.mark.parametrize("model_type", ODD)
def test_a_model_with_a_memory_of_its_own_answers_row_by_row(model_type: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL, **ODD[model_type])).eval()
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12], [10], [5, 6, 7, 8, 9]]
    wanted = []
    with torch.no_grad():
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(6):
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            wanted.append(ids[len(prompt) :])
    for said in (_warn_alone, _warn_slow):
        said.cache_clear()
    sampling = SamplingConfig(do_sample=False, max_new_tokens=6)
    for _ in range(2):
        found = generate(model, prompts, sampling, eos_ids=[], pad_id=0, seed=0, batch_size=3)
        assert [completion.token_ids for completion in found] == wanted
    assert len([line for line in caplog.messages if "it generates one response at a time" in line]) == 1


CHOOSY: dict[str, dict[str, Any]] = {  # the most tokens that they attend to is below what a prompt and a response have
    "doge": {**SMALL, **HEADS, "num_hidden_layers": 2, "keep_window_size": 8},
    "deepseek_v32": {
        **{**SMALL, **HEADS, "num_hidden_layers": 2, "num_key_value_heads": 2, "mlp_layer_types": ["dense", "dense"]},
        **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16},
        **{"index_topk": 8, "index_n_heads": 2, "index_head_dim": 16, "n_routed_experts": 2, "n_group": 1},
        **{"topk_group": 1, "moe_intermediate_size": 16, "num_experts_per_tok": 1},
    },
}


@pytest.mark.parametrize("model_type", CHOOSY)
def test_a_batch_changes_no_response_of_a_model_that_chooses_what_it_attends_to(
    model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **CHOOSY[model_type])).eval()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 50, (length,), generator=generator).tolist() for length in (13, 10, 15, 3, 8, 13)]
    sampling = SamplingConfig(do_sample=False, max_new_tokens=8)
    for said in (_warn_alone, _warn_choosy, _warn_slow):
        said.cache_clear()
    config = generation_config(sampling, eos_ids=[], pad_id=0)
    found = generate(model, rows, sampling, eos_ids=[], pad_id=0, seed=0, batch_size=4)
    for row, completion in zip(rows, found, strict=True):
        theirs = model.generate(torch.tensor([row]), generation_config=config)[0, len(row) :].tolist()
        assert completion.token_ids == theirs
    assert len([line for line in caplog.messages if "it generates one response at a time" in line]) == 1
    assert sees_left_padding(model)
    assert not sees_left_padding(model, num_tokens=8)


def test_past_the_turn_of_longrope_a_response_goes_on_as_if_it_were_read_anew(caplog: pytest.LogCaptureFixture) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope |= {"original_max_position_embeddings": 12, "factor": 4.0}
    torch.manual_seed(1)
    config = AutoConfig.for_model("phi3", **SMALL | HEADS | {"num_hidden_layers": 2}, rope_parameters=rope)
    config.original_max_position_embeddings = 12
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 50, (length,), generator=generator).tolist() for length in (8, 12, 3, 14)]
    wanted = []
    with torch.no_grad():
        for row in rows:
            ids = list(row)
            for _ in range(8):
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            wanted.append(ids[len(row) :])
    _warn_turning.cache_clear()
    sampling = SamplingConfig(do_sample=False, max_new_tokens=8)
    found = generate(model, [*rows, rows[0]], sampling, eos_ids=[], pad_id=0, seed=0, batch_size=4)
    assert [completion.token_ids for completion in found] == [*wanted, wanted[0]]
    assert "beside a row of more than 12 tokens: it generates one response at a time" in caplog.text
    shapes = {rows for rows, _, _ in shapes_of(model, sampling=sampling, prompts=[[5, 6], [7], [8, 9, 10]])[0]}
    assert max(shapes) == 3  # none of which comes that far

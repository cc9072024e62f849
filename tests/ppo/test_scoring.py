"""Log-probabilities of completions against the plain formula, and against transformers' own generation."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PhiConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
)

from alignkit.config import SamplingConfig
from alignkit.ppo.scoring import CompletionScorer, pad_sequences
from alignkit.ppo.value import OwnValue
from alignkit.sampling.generate import generate

SIZES: dict[str, Any] = {"vocab_size": 50, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
LLAMA = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **SIZES}
CONFIGS = {
    "gpt2": GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=64, initializer_range=0.3, **SIZES),
    "llama": LlamaConfig(num_key_value_heads=2, initializer_range=0.3, **LLAMA),
    # heads that are more than a matrix: a soft cap, and a bias
    "gemma2": Gemma2Config(num_key_value_heads=2, head_dim=16, final_logit_softcapping=2.0, **LLAMA),
    "phi": PhiConfig(initializer_range=0.3, **LLAMA),
    # states that run over padding in front of a row
    "rwkv": RwkvConfig(hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, intermediate_size=32, **SIZES),
    "recurrent_gemma": RecurrentGemmaConfig(
        **{**LLAMA, "num_hidden_layers": 3}, num_key_value_heads=1, lru_width=32, attention_window_size=8
    ),
}
PROMPTS = [[5, 6, 7, 8], [9], [10, 11]]
COMPLETIONS = [[12, 13], [14, 15, 16, 17, 1], [18]]


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param], attn_implementation="eager").eval()


def rows(min_new_tokens: int = 0, prompts: Any = PROMPTS, completions: Any = COMPLETIONS) -> Any:
    return pad_sequences(prompts, completions, pad_id=0, min_new_tokens=min_new_tokens, device=torch.device("cpu"))


def test_prompts_are_padded_on_the_left_and_completions_on_the_right() -> None:
    found = rows(min_new_tokens=1)
    assert found.input_ids_BL.tolist() == [
        [5, 6, 7, 8, 12, 13, 0, 0, 0],
        [0, 0, 0, 9, 14, 15, 16, 17, 1],
        [0, 0, 10, 11, 18, 0, 0, 0, 0],
    ]
    assert found.attention_BL.tolist() == [
        [1, 1, 1, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 0, 0, 0, 0],
    ]
    assert found.mask_BT.int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert found.blocked_BT.int().sum(-1).tolist() == [1, 1, 1]
    assert found.completion_ids_BT[1].tolist() == COMPLETIONS[1]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_each_row_is_scored_as_alone_and_by_the_plain_formula(model: Any, temperature: float) -> None:
    scorer = CompletionScorer(model, eos_ids=[1], entropy_trains=True)
    with torch.no_grad():
        together = scorer(model, rows(), temperature=temperature)
        for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
            logprobs = logits.log_softmax(-1)
            wanted = logprobs[range(len(completion)), completion]
            assert together.logprobs_BT[row, : len(completion)].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
            assert together.logprobs_BT[row, len(completion) :].tolist() == [0.0] * (5 - len(completion))
            entropies = -(logprobs.exp() * logprobs).sum(-1)
            found = together.entropies_BT[row, : len(completion)]
            assert found.tolist() == pytest.approx(entropies.tolist(), abs=1e-5)


def test_more_padding_changes_nothing(model: Any) -> None:
    scorer = CompletionScorer(model, eos_ids=[1], entropy_trains=False)
    wider = rows(prompts=[*PROMPTS, list(range(3, 20))], completions=[*COMPLETIONS, list(range(3, 15))])
    with torch.no_grad():
        few, many = scorer(model, rows(), temperature=1.0), scorer(model, wider, temperature=1.0)
    assert torch.allclose(few.logprobs_BT, many.logprobs_BT[:3, :5], atol=1e-5)


@pytest.mark.parametrize("min_new_tokens", [0, 3])
def test_log_probabilities_agree_with_transformers_generation_and_with_ours(model: Any, min_new_tokens: int) -> None:
    prompt = torch.tensor([PROMPTS[0]])
    torch.manual_seed(1)
    done = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=0.7, top_k=0, top_p=1.0,
        max_new_tokens=12, min_new_tokens=min_new_tokens, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    completion = done.sequences[0, prompt.shape[1] :].tolist()
    wanted = [float(score[0].log_softmax(-1)[token]) for score, token in zip(done.scores, completion, strict=True)]
    scorer = CompletionScorer(model, eos_ids=[1], entropy_trains=False)
    with torch.no_grad():
        found = scorer(model, rows(min_new_tokens, [PROMPTS[0]], [completion]), temperature=0.7)
    assert found.logprobs_BT[0].tolist() == pytest.approx(wanted, abs=1e-4)
    # what our own sampler noted while it drew is the same, at temperature 1
    sampling = SamplingConfig(do_sample=True, max_new_tokens=12)
    drawn = generate(model, PROMPTS, sampling, eos_ids=[1], pad_id=0, seed=3, batch_size=2)
    ids = [d.token_ids + ([] if d.end_id is None else [d.end_id]) for d in drawn]
    with torch.no_grad():
        found = scorer(model, rows(0, PROMPTS, ids), temperature=1.0)
    for row, one in enumerate(drawn):
        kept = found.logprobs_BT[row, : len(one.token_logprobs)].tolist()
        assert kept == pytest.approx(one.token_logprobs, abs=1e-4)
        assert one.logprob == pytest.approx(sum(one.token_logprobs))


def test_an_end_that_could_not_be_drawn_has_no_probability(model: Any) -> None:
    scorer = CompletionScorer(model, eos_ids=[1, 3], entropy_trains=True)
    found = scorer(model, rows(2), temperature=1.0)
    logits = model(torch.tensor([PROMPTS[1] + COMPLETIONS[1]])).logits[0, 0].clone()
    logits[[1, 3]] = -torch.inf
    assert found.logprobs_BT[1, 0].item() == pytest.approx(logits.log_softmax(-1)[14].item(), abs=1e-5)
    assert bool(found.entropies_BT.isfinite().all())
    found.entropies_BT.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_gradients_in_chunks_are_those_of_the_whole(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for at_once in (8_000_000, 100):
        monkeypatch.setattr("alignkit.training.lm_head._LOGITS_AT_ONCE", at_once)
        model.zero_grad()
        scores = CompletionScorer(model, eos_ids=[1], entropy_trains=True)(model, rows(), temperature=0.9)
        (scores.logprobs_BT.sum() + 0.3 * scores.entropies_BT.sum()).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):  # RWKV's reach into the thousands, so to their own size
        assert float((one - other).norm()) <= 1e-5 * float(one.norm())


@pytest.mark.parametrize("indices", [[0], [1], [2], [2, 0], [1, 2], [0, 1, 2]])
def test_rows_taken_are_those_padded_alone(indices: list[int]) -> None:
    taken = rows(min_new_tokens=2).take(indices)
    alone = rows(2, [PROMPTS[index] for index in indices], [COMPLETIONS[index] for index in indices])
    for name in ("input_ids_BL", "attention_BL", "mask_BT", "blocked_BT"):
        assert torch.equal(getattr(taken, name), getattr(alone, name))
    assert taken.prompt_lengths == alone.prompt_lengths
    assert taken.completion_lengths == alone.completion_lengths


def test_a_row_without_a_completion_keeps_a_column_for_it() -> None:
    taken = rows(prompts=[[5], [6]], completions=[[], [7, 8]]).take([0])
    assert (taken.input_ids_BL.tolist(), taken.mask_BT.tolist()) == ([[5, 0]], [[False]])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_values_of_a_backbone_of_its_own_are_those_of_each_row_alone(name: str) -> None:
    torch.manual_seed(0)
    function = OwnValue(AutoModel.from_config(CONFIGS[name]).eval())
    torch.nn.init.normal_(function.head.weight_H)
    with torch.no_grad():
        together = function(rows(), torch.empty(0))
        for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            alone = function(rows(prompts=[prompt], completions=[completion]), torch.empty(0))[0]
            assert together[row, : len(completion)].tolist() == pytest.approx(alone.tolist(), abs=1e-4)

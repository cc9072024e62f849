"""The next token's distribution, as it is shown, against the plain computation."""

from pathlib import Path

import pytest
import torch

from alignkit.commands.next import _views, run
from alignkit.config import ModelConfig, SamplingConfig, TemplateConfig
from alignkit.errors import AlignkitError
from alignkit.jobs import NextJob
from alignkit.launch import compose_job
from alignkit.models.load import load_model, load_tokenizer

PROMPT = "Say hello."
RENDERED = "### Instruction:\nSay hello.\n\n### Response:\n"


def job(run_dir: Path, *words: str) -> NextJob:
    return compose_job("next", ["model.dtype=float32", *words], model={"name": str(run_dir)})


def plain(run_dir: Path, text: str) -> torch.Tensor:
    """Log-probabilities of the token after each one of a text."""
    config = ModelConfig(str(run_dir))
    tokenizer = load_tokenizer(config)
    model = load_model(config, tokenizer=tokenizer, seed=0)
    with torch.inference_mode():
        return model(torch.tensor([list(text.encode())])).logits[0].log_softmax(-1)


def test_probability_rank_and_entropy_before_and_after_truncation(run_dir: Path) -> None:
    words = ["sampling=top_k", "sampling.top_k=3", "temperatures=[1,2]", "num_tokens=5"]
    found = job(run_dir, *words)
    views = list(_views(found, found.model, PROMPT, None))
    assert [view.label for view in views] == [f"{run_dir}, temperature 1", f"{run_dir}, temperature 2"]
    logprobs = plain(run_dir, RENDERED)[-1]
    for view, temperature in zip(views, (1, 2), strict=True):
        whole = (logprobs / temperature).softmax(-1)
        top = whole.topk(5)
        assert [token.rank for token in view.tokens] == [1, 2, 3, 4, 5]
        assert [token.before for token in view.tokens] == pytest.approx(top.values.tolist(), rel=1e-4)
        left = top.values[:3] / top.values[:3].sum()
        assert [token.after for token in view.tokens] == pytest.approx([*left.tolist(), 0, 0], rel=1e-4)
        assert (view.num_kept, view.num_tokens) == (3, 261)
        entropies = [-(p * p.log()).sum().item() for p in (whole, left)]
        assert view.entropies == pytest.approx(entropies, rel=1e-4)
    assert views[0].tokens[0].text == "h"


def test_a_response_is_walked_token_by_token_to_its_end(run_dir: Path) -> None:
    found = job(run_dir)
    (view,) = _views(found, found.model, PROMPT, "hello there")
    assert [token.text for token in view.tokens] == [*"hello·there", "<|eos|>"]
    assert [token.rank for token in view.tokens] == [1] * 12
    logprobs = plain(run_dir, RENDERED + "hello there")[len(RENDERED) - 1 :]
    expected = [logprobs[t, token].exp().item() for t, token in enumerate([*b"hello there", 258])]
    assert [token.before for token in view.tokens] == pytest.approx(expected, rel=1e-4)


def test_it_is_shown_and_drawn(
    run_dir: Path, other_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, png = [str(run_dir), str(other_dir)], tmp_path / "pictures" / "next.png"
    run(job(run_dir, "sampling=nucleus"), runs=runs, prompt=PROMPT, response=None, png=png)
    out = capsys.readouterr().out
    assert f"{run_dir}, temperature 1" in out
    assert f"{other_dir}, temperature 1" in out
    assert "261 tokens, entropy" in out
    assert png.read_bytes().startswith(b"\x89PNG")
    walk = tmp_path / "walk.png"
    run(job(run_dir), runs=runs, prompt=PROMPT, response="hello there", png=walk)
    assert "nats over 12 tokens, end included" in capsys.readouterr().out
    assert walk.read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_told_together(run_dir: Path) -> None:
    wrong = NextJob(
        temperatures=[0.0, 1.0],
        model=ModelConfig(str(run_dir)),
        template=TemplateConfig("native"),
        sampling=SamplingConfig(temperature=2.0, max_new_tokens=5, stop=["a"]),
    )
    with pytest.raises(AlignkitError) as caught:
        run(wrong, runs=["nowhere"], prompt=" ", response=None, png=Path("a.jpg"))
    assert list(caught.value.problems) == [
        "--prompt is empty",
        "sampling.max_new_tokens has no effect on a single token: remove it",
        "sampling.stop has no effect on a single token: remove it",
        "temperatures holds 0.0: it must be above 0",
        "temperatures and sampling.temperature both set the temperature: give one of them",
        "--png a.jpg: the name of a picture ends in .png",
        "model.name: there is no folder 'nowhere', and the hub cannot be reached to look there",
    ]

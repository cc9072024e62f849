"""What is wrong with a pipeline is told before anything runs, a line each, with its place."""

import re
from collections.abc import Callable

import pytest

from alignkit.errors import AlignkitError
from alignkit.launch import compose_job
from alignkit.pipeline.chain import Chain, show_plan
from alignkit.pipeline.file import read_pipeline, references, with_folders

Write = Callable[[str], list[str]]
SFT = "steps:\n  sft:\n    stage: sft\n    config: smoke/sft\n"
AFTER = "    defaults: [override /model: run, override /template: native]\n    model: {name: '${run:sft}'}\n"


def problems(words: list[str]) -> list[str]:
    with pytest.raises(AlignkitError) as refused:
        show_plan(Chain.of(read_pipeline(words)), as_json=True)
    assert refused.value.exit_status == 2
    return list(refused.value.problems)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (
            "steps:\n  a:\n    stage: stf\n",
            "p.yaml:2, step a: there is no stage 'stf', only sft, reward, dpo, ppo; did you",
        ),
        (
            "steps:\n  a:\n    command: evalute\n",
            "p.yaml:2, step a: there is no command 'evalute', only evaluate, compare",
        ),
        (
            "steps:\n  a:\n    seed: 1\n",
            "p.yaml:2, step a: it needs one of stage: sft, reward, dpo or ppo, and command: ",
        ),
        (
            "steps:\n  a.b:\n    stage: sft\n",
            "p.yaml:2, step a.b: a step's name is its folder: letters, digits, - and _",
        ),
        ("steps:\n  a: 3\n", "p.yaml:2, step a: it has no settings: give it a stage or a command"),
        ("steps: {}\n", "p.yaml: it is no pipeline: a pipeline has steps:, with a name and settings for each"),
        ("name: sft\n" + SFT, "p.yaml: name=sft: runs/sft holds the runs of alignkit sft: choose another name"),
        (SFT + "sept: 3\n", "p.yaml:5: unknown key 'sept'; a pipeline has name and steps"),
        (
            SFT + "    resume: true\n",
            "p.yaml:2, step sft: resume is not set in a pipeline, which goes on, skips or runs",
        ),
        (SFT + "    name: mine\n", "p.yaml:2, step sft: name is not set in a pipeline: the run of a step is runs/"),
        (
            SFT + "  b:\n    stage: dpo\n    model:\n      name: ${run:stf}\n",
            "p.yaml:8, step b: ${run:stf}: there is no step 'stf', only sft, b; did you mean 'sft'?",
        ),
        (
            "steps:\n  a:\n    stage: sft\n    model: {name: '${run:b}'}\n  b:\n    stage: sft\n",
            "p.yaml:4, step a: ${run:b}: the step b comes later: put it before a",
        ),
        (
            "steps:\n  a:\n    stage: sft\n    model: {name: '${run:a}'}\n",
            "p.yaml:4, step a: ${run:a}: the steps go round in a circle: a → a",
        ),
        (
            SFT + "    train: {lerning_rate: 1}\n",
            "p.yaml:2, step sft: unknown key 'lerning_rate' in 'train': it is no argument of trl.SFTConfig",
        ),
        (SFT + "    data: {max_dropped: 4}\n", "p.yaml:2, step sft: data.max_dropped is 4.0: it must be at least 0"),
        (
            SFT + "    data: {path: nowhere.jsonl}\n",
            "p.yaml:2, step sft: data.path: nowhere.jsonl: there is no such file",
        ),
        (
            SFT + "  b:\n    stage: reward\n    config: smoke/reward\n" + AFTER + "    data: {path: rows.jsonl}\n",
            "p.yaml:5, step b: data.path: the columns instruction (text), output (text) are single responses",
        ),
        (
            SFT + "    template: {file: other.jinja}\n",
            "p.yaml:2, step sft: template.file=other.jinja: no such file",
        ),
        (
            SFT + "    lora: default\n  b:\n    stage: dpo\n    config: smoke/dpo\n    lora: default\n" + AFTER,
            "p.yaml:6, step b: lora: the step sft leaves an adapter: lora: none trains it further",
        ),
        (
            SFT + "  b:\n    stage: dpo\n    config: smoke/dpo\n    lora: {target_modules: [nowhere], r: 4}\n" + AFTER,
            "p.yaml:5, step b: lora",
        ),
        (
            SFT + "  b:\n    stage: ppo\n    config: smoke/ppo\n    reward: []\n" + AFTER,
            "p.yaml:5, step b: reward is missing",
        ),
        (
            SFT + "  b:\n    stage: ppo\n    config: smoke/ppo\n    reward: [{model: '${run:sft}'}]\n" + AFTER,
            "p.yaml:5, step b: reward: the step sft is of sft where a reward model belongs",
        ),
        (
            SFT + "  b:\n    stage: ppo\n    config: smoke/ppo\n    ppo: {num_prompts: 33}\n" + AFTER,
            "p.yaml:5, step b: ppo.num_prompts=33 × ppo.num_generations=1 = 33 completions do not divide",
        ),
        (
            SFT + "  b:\n    command: merge\n    model: {name: '${run:sft}'}\n",
            "p.yaml:5, step b: model.name: the step sft leaves no adapter: there is nothing to merge",
        ),
        (
            SFT + "  b:\n    command: compare\n    models: ['${run:sft}']\n    prompts: none.txt\n",
            "p.yaml:5, step b: models: there is nothing to compare: name two models or more",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_runs(pipeline_of: Write, steps: str, told: str) -> None:
    assert any(line.startswith(told) for line in problems(pipeline_of(steps))), problems(pipeline_of(steps))


def test_a_longer_circle_is_told_as_the_way_round(pipeline_of: Write) -> None:
    steps = "".join(
        f"  {name}:\n    stage: sft\n    model: {{name: '${{run:{other}}}'}}\n"
        for name, other in (("a", "c"), ("b", "a"), ("c", "b"))
    )
    assert problems(pipeline_of(f"steps:\n{steps}"))[0] == (
        "p.yaml:4, step a: ${run:c}: the steps go round in a circle: a → c → b → a"
    )


def test_all_mistakes_of_all_steps_are_told_at_once(pipeline_of: Write) -> None:
    told = problems(pipeline_of(SFT + "    seed: x\n  b:\n    stage: dpo\n    config: smoke/dpo\n    sed: 1\n"))
    assert [re.match(r"p.yaml:\d+, step \w+: [\w ]+", line)[0] for line in told] == [  # type: ignore[index]
        "p.yaml:2, step sft: seed is ",
        "p.yaml:6, step b: unknown key ",
    ]


def test_words_for_no_step_are_refused(pipeline_of: Write) -> None:
    words = pipeline_of(SFT)
    assert problems([*words, "sfft.seed=1", "seed=1", "sft.overwrite=true"]) == [
        "'sfft.seed=1' is for no step: a setting is given as STEP.key=value, with sft; did you mean 'sft'?",
        "'seed=1' is for no step: a setting is given as STEP.key=value, with sft",
        "'sft.overwrite=true': overwrite is not set in a pipeline, which goes on, skips or runs again by itself",
    ]


def test_a_pipeline_is_named_once() -> None:
    for words in ([], ["config=a", "config=b"]):
        assert problems(words) == [
            "alignkit run takes one pipeline: give it as config=FILE, such as config=pipeline/rlhf"
        ]


def test_a_step_has_no_meaning_outside_of_a_pipeline() -> None:
    with pytest.raises(AlignkitError) as refused:
        compose_job("sft", ["config=smoke/sft", "model.name=${run:sft}"])
    assert refused.value.problems == ("model.name=${run:sft}: only a pipeline has steps: alignkit run runs one",)


def test_references_are_found_and_resolved_in_whatever_they_are_nested() -> None:
    value = {"model": {"name": "${run:a}"}, "reward": [{"model": "${ run : b }/x"}], "seed": 1, "again": "${run:a}"}
    assert references(value) == ["a", "b"]
    assert with_folders(["${run:a}/x", 3], {"a": "runs/p/a"}) == ["runs/p/a/x", 3]

"""Every mistake in files and overrides is answered in one line, all at once, before anything heavy is imported."""

import json
from pathlib import Path

import pytest

from alignkit.errors import ConfigError, as_yaml
from alignkit.jobs import SftJob
from alignkit.launch import compose_job, launch

SOUND = ["model.name=m", "data.path=d.jsonl"]


def refusal(*words: str, stage: str = "sft", config_dir: Path | None = None, multirun: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        launch(stage, list(words), config_dir=config_dir, multirun=multirun)
    return list(caught.value.problems)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model m, as far as one can tell without reading weights, and rows d.jsonl."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (tmp_path / "d.jsonl").write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("nmae=x", "unknown key 'nmae'; did you mean 'name'?"),
        ("data.maxlength=3", "unknown key 'data.maxlength'; did you mean 'data.max_length'?"),
        ("learning_rate=1e-4", "unknown key 'learning_rate'; did you mean 'train.learning_rate'?"),
        ("max_length=3", "unknown key 'max_length'; did you mean 'data.max_length'?"),
        ("r=8", "unknown key 'r'; did you mean 'lora.r'?"),
        ("lr=1", "unknown key 'lr'; use train.learning_rate"),
        ("batch_size=1", "unknown key 'batch_size'; use train.per_device_train_batch_size"),
        ("=", "'=' stands alone: a setting is typed without spaces, as key=value"),
        ("lerning_rate=1", "unknown key 'lerning_rate'; did you mean 'train.learning_rate'?"),
        (
            "+zzz=1",
            "unknown key 'zzz'; the settings are name, seed, resume, overwrite, early_stopping, lora, train, samples, "
            "model, data, template, sampling",
        ),
        (
            "train.lerning_rate=1",
            "unknown key 'lerning_rate' in 'train': it is no argument of trl.SFTConfig; did you mean 'learning_rate'?",
        ),
        ("lora.rank=1", "unknown key 'rank' in 'lora': use r"),
        ("data.limit=many", "data.limit is 'many': it must be a whole number"),
        (
            "data.overlength=keepend",
            "data.overlength is 'keepend': choose drop, keep_end, keep_start; did you mean 'keep_end'?",
        ),
        ("data=alpaca", None),
        ("model.name", "'model.name' is not key=value"),
        ("a.yaml", "'a.yaml' is not key=value: a configuration file is given as config=a.yaml"),
        ("~name", "'~name': a setting cannot be deleted; give it another value"),
        ("data.path._target_=os.system", None),
        (
            "name=../x",
            "name=../x: a run's name is its folder below runs/ and cannot lead elsewhere; for another folder give "
            "hydra.run.dir=FOLDER",
        ),
        (
            "config=gone.yaml",
            "config=gone.yaml: there is no such file, and no recipe of this name; recipes are in dpo, pipeline, ppo, "
            "reviews, reward, sft, smoke, sweep",
        ),
        ("config=.", "config=.: it is a folder; recipes are in dpo, pipeline, ppo, reviews, reward, sft, smoke, sweep"),
    ],
)
def test_a_mistake_on_the_command_line(word: str, line: str | None) -> None:
    (found,) = refusal("model.name=m", "data.path=d.jsonl", word)
    if line is not None:
        assert found == line


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("name=a=b", """name=a=b: what has = in it must be quoted: type 'name="a=b"'"""),
        ("name=a[1]", """name=a[1]: what has [ ] in it must be quoted: type 'name="a[1]"'"""),
        ("name=a(1)", """name=a(1): what has ( ) in it must be quoted: type 'name="a(1)"'"""),
        ("name={a", """name={a: what has { in it must be quoted: type 'name="{a"'"""),
        ('name=a"b', r"""name=a"b: what has " in it must be quoted: type 'name="a\"b"'"""),
        (
            "name=a,b",
            """name=a,b is several values: one text is typed 'name="a,b"'; a sweep over them needs --multirun""",
        ),
        (
            "data.path=a,b",
            "data.path=a,b is several values: a list is typed 'data.path=[a,b]'; one text is typed "
            """'data.path="a,b"'; a sweep over them needs --multirun""",
        ),
        (
            "train.learning_rate=1,5e-4",
            "train.learning_rate=1,5e-4 is several values: a number has a point: train.learning_rate=1.5e-4; a sweep "
            "over them needs --multirun",
        ),
        (
            "data.path=[{path=d.jsonl}]",
            "data.path=[{path=d.jsonl}] cannot be read as a list: type 'data.path=[{path: d.jsonl}]'",
        ),
        ("name=a data.limit=3", "'name=a data.limit=3' is two settings in one word: type name=a data.limit=3"),
        ("name: x", "'name: x' is not key=value: type name=x"),
        ("name=", "name is empty: it must be a text"),
        ("name=" + "x" * 300, f"name='{'x' * 59}: a name of 300 characters is too long for a file"),
        ("sampling.stop=END", "sampling.stop is 'END': it must be a list of texts: write 'sampling.stop=[END]'"),
        (
            "data.columns=input:x",
            "data.columns is 'input:x': it must be keys with values: write 'data.columns={input: x}'",
        ),
        (
            "name=${oc.env:NOT_SET_HERE}",
            "name=${oc.env:NOT_SET_HERE}: the environment variable NOT_SET_HERE is not set: export NOT_SET_HERE=…, or "
            "give a default: ${oc.env:NOT_SET_HERE,DEFAULT}",
        ),
        ("name=${nope}", "name=${nope}: there is no setting 'nope'; a variable of the environment is ${oc.env:nope}"),
        ("name=${oc.env:A", "name=${oc.env:A: '${' is not closed; a variable of the environment is ${oc.env:NAME}"),
        ("data.path=~/gone.jsonl", f"data.path: {Path('~/gone.jsonl').expanduser()}: there is no such file"),
        ("data.path=größe.jsonl", "data.path: größe.jsonl: there is no such file; did you mean 'd.jsonl'?"),
    ],
)
def test_a_value_that_a_grammar_reads_otherwise_is_told_with_what_to_type(word: str, line: str) -> None:
    assert refusal(*SOUND, word) == [line]


def test_the_source_of_a_reward_is_written_out() -> None:
    with pytest.raises(ConfigError) as caught:
        launch("ppo", [*SOUND, "reward=r.py:f"])
    line = "reward is 'r.py:f': it must be a list of sources: write 'reward=[{function: r.py:f}]'"
    assert caught.value.problems == (line,)


def test_a_variable_that_is_not_set_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {path: '${oc.env:NOT_SET_HERE}/d.jsonl'}\ntrain: {run_name: '${nope}'}\n")
    first, second = refusal("model.name=m", "config=a.yaml")
    assert first.startswith("a.yaml: data.path=${oc.env:NOT_SET_HERE}/d.jsonl: the environment variable NOT_SET_HERE ")
    assert second.startswith("a.yaml: train.run_name=${nope}: there is no setting 'nope'")


def test_mistakes_of_every_kind_are_told_at_once() -> None:
    words = ["model.name=n", "data.path=e.jsonl", "data.limit=0", "seed=-1", "train.lr=1", "data.pth=x", "samples=-1"]
    assert refusal(*words) == [
        "unknown key 'lr' in 'train': use learning_rate",
        "unknown key 'data.pth'; did you mean 'data.path'?",
        "seed is -1: it must be at least 0",
        "samples is -1: it must be at least 0",
        "data.limit is 0: it must be at least 1",
        "model.name: there is no folder 'n', and the hub cannot be reached to look there",
        "data.path: e.jsonl: there is no such file; did you mean 'd.jsonl'?",
    ]


def test_paths_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("data: {path: [{path: ~/d.jsonl}], eval_path: {b: ~/d.jsonl}}\n")
    words = ["model.name=~/m", "config=~/a.yaml", "template.file=~/t.jinja", "data.format=~/f.py:convert"]
    job = compose_job("sft", words)
    home = str(tmp_path)
    assert (job.model.name, job.template.file, job.data.format) == (
        f"{home}/m",
        f"{home}/t.jinja",
        f"{home}/f.py:convert",
    )
    assert job.data.path == [{"path": f"{home}/d.jsonl"}]
    assert job.data.eval_path == {"b": f"{home}/d.jsonl"}


def test_an_unknown_group_option_lists_the_options_and_the_way_out() -> None:
    assert refusal("model=tiny_gpt", "data.path=d.jsonl") == [
        "no option 'tiny_gpt' in the group 'model', which has gpt2, llama32_1b, qwen3_0_6b, run, smollm2_135m, "
        "tiny_gpt2, tiny_llama; did you mean 'tiny_gpt2'?"
    ]
    (line,) = refusal("model=org/thing", "data.path=d.jsonl")
    assert line.endswith("; a hub id or a folder is given as model.name=org/thing")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "config=a.yaml: the file is empty"),
        ("- 1\n- 2\n", "config=a.yaml: it holds a list where settings belong; write key: value lines"),
        ("a: [1\n", "a.yaml:2: it is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("name: x\nname: y\n", "a.yaml:2: it is not YAML: found duplicate key name"),
        ("naem: x\n", "a.yaml: unknown key 'naem'; did you mean 'name'?"),
        ("data: 3\n", "a.yaml: data is a section of settings: give it keys, such as data.path"),
        (
            "lora: {_target_: torch.load}\n",
            "a.yaml: lora._target_ is refused: a configuration file must not name code to run",
        ),
        (
            "hydra: {callbacks: {x: 1}}\n",
            "a.yaml: hydra.callbacks is refused: it can run code; of hydra only run, sweep, sweeper, launcher, mode, "
            "job may be set",
        ),
    ],
)
def test_a_mistake_in_a_file(tmp_path: Path, content: str, line: str) -> None:
    (tmp_path / "a.yaml").write_text(content, encoding="utf-8")
    assert line in refusal("config=a.yaml")


def test_mistakes_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("naem: x\ndata: {pth: y}\ntrain: {lr: 1}\n", encoding="utf-8")
    assert refusal("config=a.yaml", "seeed=1") == [
        "a.yaml: unknown key 'naem'; did you mean 'name'?",
        "a.yaml: unknown key 'data.pth'; did you mean 'data.path'?",
        "a.yaml: unknown key 'lr' in 'train': use learning_rate",
        "unknown key 'seeed'; did you mean 'seed'?",
    ]


def test_what_is_missing_and_out_of_bounds_is_named() -> None:
    missing = refusal()
    assert missing[0].startswith("model.name is missing: give it as model.name=…, or choose model= one of gpt2, ")
    assert missing[1].startswith("data.path is missing: give it as data.path=…")
    assert refusal("data.limit=0")[2:] == ["data.limit is 0: it must be at least 1"]
    assert refusal("model.name=m", "data.path=d.jsonl", "data.limit=0", "data.eval_fraction=1", "seed=-1") == [
        "seed is -1: it must be at least 0",
        "data.eval_fraction is 1.0: it must be at least 0 and below 1",
        "data.limit is 0: it must be at least 1",
    ]


def test_a_config_dir_must_exist_and_holds_no_code(tmp_path: Path) -> None:
    assert refusal(config_dir=tmp_path / "gone") == [f"--config-dir: '{tmp_path / 'gone'}' is no folder"]
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("_target_: os.system\n", encoding="utf-8")
    (line,) = refusal("model=mine", "data.path=d.jsonl", config_dir=tmp_path / "own")
    assert line.endswith("mine.yaml: _target_ is refused: a configuration file must not name code to run")


def test_a_refused_run_leaves_nothing_behind(tmp_path: Path) -> None:
    refusal("model.name=m", "data.path=d.jsonl", "data.limit=0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "m"]


def test_multirun_and_showing_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--multirun runs jobs, --cfg and --info only show one"):
        launch("sft", [], multirun=True, show="job")


def test_files_and_words_win_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: tiny_gpt2\nname: a\ndata: {path: x}\ntrain: {max_steps: 3}\n")
    (tmp_path / "b.yaml").write_text("name: b\nlora: {r: 4}\n")
    job = compose_job("sft", ["config=a.yaml", "config=b.yaml", "train.max_steps=5", "sampling=top_k"])
    assert isinstance(job, SftJob)
    assert (job.name, job.lora["r"], job.train["max_steps"], job.model.init) == ("b", 4, 5, "random")
    assert job.sampling.top_k == 50


def test_a_template_that_a_file_would_hide_is_refused_and_a_file_may_replace_a_template(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{% generation %}{% endgeneration %}")
    hidden = "template chatml has no effect beside template.file=t.jinja: set template.file=null"
    assert refusal(*SOUND, "template=chatml", "template.file=t.jinja") == [hidden]
    assert refusal(*SOUND, "template.file=t.jinja", "template.name=chatml") == [hidden]
    (tmp_path / "a.yaml").write_text("template: {file: t.jinja}")
    assert refusal(*SOUND, "config=a.yaml", "template=chatml") == [hidden]
    (tmp_path / "b.yaml").write_text("template: {name: chatml, file: t.jinja}")
    assert refusal(*SOUND, "config=b.yaml") == [f"b.yaml: {hidden}"]
    (tmp_path / "c.yaml").write_text("defaults: [{override /template: chatml}]\ntemplate: {file: t.jinja}")
    assert refusal(*SOUND, "config=c.yaml") == [f"c.yaml: {hidden}"]
    (tmp_path / "recipe.yaml").write_text("template: chatml")
    words = ["model.name=m", "data.path=d.jsonl", "config=recipe.yaml"]
    assert compose_job("sft", [*words, "template.file=t.jinja"]).template.file == "t.jinja"
    back = compose_job(
        "sft", ["model.name=m", "data.path=d.jsonl", "config=a.yaml", "template=chatml", "template.file=null"]
    )
    assert (back.template.name, back.template.file) == ("chatml", None)


def test_a_folder_of_own_options_is_found(tmp_path: Path) -> None:
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("name: org/mine\n", encoding="utf-8")
    job = compose_job("sft", ["model=mine", "data.path=d.jsonl"], config_dir=tmp_path / "own")
    assert job.model.name == "org/mine"


def test_values_are_spelled_as_yaml_has_them() -> None:
    assert as_yaml([True, None, {"a": False}, "x", 1e-5]) == "[true, null, {a: false}, 'x', 1e-05]"
    assert "train.learning_rate is true, which is no float" in refusal("train.learning_rate=true")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("data.columns={prompt: question}", "unknown key 'data.columns'; did you mean 'columns'?"),
        ("data.format=text", "unknown key 'data.format'; did you mean 'format'?"),
        ("nit=1", "unknown key 'nit'; did you mean 'model.init'?"),
        (
            "stop_after=4",
            "unknown key 'stop_after'; the settings are seed, batch_size, format, columns, logprobs, model, template, "
            "data, sampling, engine",
        ),
    ],
)
def test_a_setting_that_a_command_does_not_have_is_answered_with_those_it_has(word: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_job("compare", [word], model={"name": "m"})
    assert caught.value.problems == (line,)


def test_what_a_file_may_hold_that_was_not_read_is_not_called_missing() -> None:
    (found,) = refusal("m/my.yaml")
    assert found == "'m/my.yaml' is not key=value: a configuration file is given as config=m/my.yaml"


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_where_a_run_is_finished_its_rows_are_looked_at_too(stage: str) -> None:
    run = Path("runs", stage, "x")
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"format": 1, "status": "finished", "job": {}}', encoding="utf-8")
    sound, wrong = ({"prompt": words, "completion": "b", "chosen": "b", "rejected": "c"} for words in ("a", 3))
    of_stage = {"sft": ("chosen", "rejected"), "ppo": ("chosen", "rejected")}.get(stage, ("completion",))
    rows = [{key: value for key, value in row.items() if key not in of_stage} for row in (sound, wrong)]
    Path("d.jsonl").write_text("\n".join([*map(json.dumps, rows), "{"]), encoding="utf-8")
    words = ["model.name=m", "data.path=d.jsonl", "name=x", "train.learning_rate=-1"]
    words += ["reward=[r.py:score]"] if stage == "ppo" else []
    Path("r.py").write_text("def score(prompts, completions):\n    return [0.0]\n", encoding="utf-8")
    problems = refusal(*words, stage=stage)
    assert sum("x is a finished run" in line for line in problems) == 1
    assert sum("learning_rate" in line for line in problems) == 1
    assert [line for line in problems if "d.jsonl" in line or "malformed" in line] == [
        "2 malformed rows: fix them, or leave them out with data.malformed=drop",
        "d.jsonl:2: 'prompt' is a number where text belongs",
        "d.jsonl:3: the last line is cut short",
    ]
    dropping = refusal(*words, "data.malformed=drop", stage=stage)
    assert dropping == [line for line in problems if "d.jsonl" not in line and "malformed" not in line]

"""Where each setting came from."""

from pathlib import Path

from alignkit.origins import origins

SETTINGS = {
    "seed": 1,
    "name": "x",
    "model": {"name": "tiny", "init": "random", "config": {"n_layer": 2}},
    "train": {"max_steps": 3, "learning_rate": 0.1},
}


def test_the_layer_that_wins_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: tiny\ninit: random\nconfig: {n_layer: 2}")
    found = origins(
        SETTINGS,
        choices={"model": "mine", "lora": None, "hydra/output": "default"},
        overlays={"a.yaml": {"model": "mine", "name": "y", "train": {"max_steps": 3}}, "b.yaml": {"name": "x"}},
        words=["+overlay0=file", "model.init=random", "train={learning_rate: 0.1}"],
        config_dir=tmp_path,
    )
    assert found == {
        "model.name": "model=mine",
        "model.config.n_layer": "model=mine",
        "model.init": "command line",
        "name": "b.yaml",
        "train.max_steps": "a.yaml",
        "train.learning_rate": "command line",
    }


def test_a_shipped_option_is_read_from_the_package() -> None:
    found = origins({"lora": {"r": 16}}, choices={"lora": "default"}, overlays={}, words=["lora=default"])
    assert found == {"lora.r": "lora=default"}

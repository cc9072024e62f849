"""The loss as a picture."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from alignkit.runs.plot import plot_losses, plot_panels
from alignkit.runs.sweep_plot import plot_sweep

HISTORY = [
    {"step": 0, "eval_loss": 4.0},
    *({"step": step, "loss": 4 - step / 20, "learning_rate": 1e-3} for step in range(1, 41)),
    {"step": 40, "eval_loss": 2.5},
    {"step": 40, "eval_hard_loss": None},
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved, filled as they come."""
    found: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **rest: (found.append(self), save(self, *args, **rest))[1]
    )
    return found


def test_training_thin_and_smoothed_held_out_as_dots_axes_named(tmp_path: Path, drawn: list[Figure]) -> None:
    assert plot_losses(HISTORY, tmp_path / "loss.png", unit="nats")
    (axes,) = drawn[0].axes
    held_out, thin, smoothed = axes.lines
    assert held_out.get_xydata().tolist() == [[0, 4.0], [40, 2.5]]
    assert held_out.get_marker() == "o"
    assert thin.get_xydata()[0].tolist() == [1, 3.95]
    assert (thin.get_alpha(), thin.get_linewidth()) == (0.25, 1)
    assert len({line.get_color() for line in (held_out, smoothed)}) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["held out", "training (smoothed)"]
    assert axes.get_xlabel() == "step"
    assert "loss" in axes.get_ylabel()
    assert imread(tmp_path / "loss.png").shape[1] >= 900


def test_nothing_logged_is_nothing_drawn(tmp_path: Path) -> None:
    assert not plot_losses([{"step": 1, "learning_rate": 1.0}], tmp_path / "loss.png", unit="nats")
    assert list(tmp_path.iterdir()) == []


def test_panels_have_what_was_logged_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **rest: (drawn.append(self), save(self, *args, **rest))[1]
    )
    history = [{"step": 0, "eval_score": 1.0}, {"step": 1, "score": 2.0, "kl": 0.5}, {"step": 2, "score": 3.0}]
    panels = {"score": {"score": "training", "eval_score": "held out"}, "KL": {"kl": "KL"}, "other": {"gone": "gone"}}
    assert plot_panels(history, panels, tmp_path / "curves.png", xlabel="update")
    score, kl = drawn[0].axes
    assert (score.get_title(), kl.get_title(), score.get_xlabel()) == ("score", "KL", "update")
    assert [line.get_xydata().tolist() for line in score.lines] == [[[1, 2], [2, 3]], [[0, 1]]]
    assert [tick for tick in score.get_xticks() if tick % 1] == []  # there is no update 1.5
    assert imread(tmp_path / "curves.png").std() > 0
    assert not plot_panels([{"step": 1}], panels, tmp_path / "none.png", xlabel="update")
    assert not (tmp_path / "none.png").exists()


def test_a_sweep_says_which_end_of_its_axis_is_better(tmp_path: Path, drawn: list[Figure]) -> None:
    names, values = ["lr=0.1", "lr=0.01 " + "x" * 60], [5.94512, 1e-05]
    plot_sweep(names, values, tmp_path / "sweep.png", figure="eval_loss", best=1, lower_is_better=True)
    (axes,) = drawn[-1].axes
    assert axes.get_xlabel() == "eval loss (lower is better; the best is orange)"
    assert [text.get_text() for text in axes.texts] == ["5.9451", "1e-05"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lr=0.1", f"{names[1][:47]}…"]

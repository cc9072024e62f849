"""Which metrics share a panel, and what is left of long ones."""

from alignkit.pages.curves import overlaid, panels, thinned


def test_training_and_held_out_share_a_panel_and_have_their_own_steps() -> None:
    history = [{"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.5, "epoch": 0.1}, {"step": 2, "loss": None}]
    assert panels(history) == [
        {
            "title": "loss",
            "first": True,
            "x": [0, 1],
            "series": [{"label": "training", "y": [None, 2.5]}, {"label": "held out", "y": [3.0, None]}],
        }
    ]


def test_curves_of_several_runs_share_a_panel_where_more_than_one_has_them() -> None:
    one = panels([{"step": 1, "loss": 2.0, "mine": 1.0}, {"step": 2, "loss": 1.0, "eval_loss": 3.0}])
    other = panels([{"step": 1, "loss": 4.0, "mine": 5.0}, {"step": 3, "loss": 0.5}])
    assert overlaid({"a": one, "b": other}) == [
        {
            "title": "loss: training",
            "first": True,
            "x": [1, 2, 3],
            "series": [{"label": "a", "y": [2.0, 1.0, None]}, {"label": "b", "y": [4.0, None, 0.5]}],
        },
        {
            "title": "mine: training",
            "first": False,
            "x": [1],
            "series": [{"label": "a", "y": [1.0]}, {"label": "b", "y": [5.0]}],
        },
    ]


def test_known_figures_come_first_and_no_other_is_lost() -> None:
    history = [
        {"step": 1, "my_own": 1.0, "logps/rejected": -3.0, "logps/chosen": -2.0, "eval_hard_loss": 1.0, "x_se": 1}
    ]
    found = [(panel["title"], panel["first"], [one["label"] for one in panel["series"]]) for panel in panels(history)]
    assert found == [
        ("loss", True, ["held out: hard"]),
        ("log-probability of the responses (nats)", True, ["rejected, training", "chosen, training"]),
        ("my own", False, ["training"]),
    ]


def test_a_long_curve_is_thinned_and_keeps_its_spike() -> None:
    curve = [(step, 1.0) for step in range(100_000)]
    curve[77_777] = (77_777, 50.0)
    kept = thinned(curve)
    assert len(kept) <= 600
    assert (77_777, 50.0) in kept
    assert kept == sorted(kept)

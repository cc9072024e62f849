"""Print a table of the estimators of advantages, from the values that the checks of a job are made from.

python scripts/estimators_table.py estimators   # what each one computes and chooses
python scripts/estimators_table.py settings     # which settings have a meaning beside which
"""

import sys
from collections.abc import Iterator

from alignkit.choices import KlAs
from alignkit.estimators import ESTIMATORS, Estimator


def estimators() -> Iterator[list[str]]:
    """One row for each estimator."""
    yield ["`ppo.advantage`", "A of each token of completion i", "from", "value function", "`kl_as`", "`loss_over`"]
    for name, one in ESTIMATORS.items():
        held = "yes" if one.has_critic else "no"
        yield [f"`{name}`", one.formula, one.source, held, one.defaults["kl_as"], one.defaults["loss_over"]]


def settings() -> Iterator[list[str]]:
    """One row for each setting whose meaning depends on the estimator."""
    yield ["setting", *(f"`{name}`" for name in ESTIMATORS)]
    rows = {
        "`value.*`, `vf_coef`, `clip_range_value`, `lam`": lambda one: _used(one.has_critic),
        "`gamma`": lambda one: _used("gamma" in one.defaults),
        "`whiten_advantages`": _whitening,
        "`num_generations` of 1": lambda one: _used(not one.compares_group),
        "`refill_flat_groups`": lambda one: _used(one.compares_group),
        "`score_scaling` of running": lambda one: _used(not one.divides_by_spread),
        "`kl_target`": lambda one: "used" if one.defaults["kl_as"] is KlAs.reward else "with `kl_as` of reward",
    }
    for name, cell in rows.items():
        yield [name, *(cell(one) for one in ESTIMATORS.values())]


def _used(is_used: bool) -> str:
    return "used" if is_used else "refused"


def _whitening(one: Estimator) -> str:
    if "whiten_advantages" not in one.defaults:
        return "refused"
    return "always" if one.whitens_always else f"{str(one.defaults['whiten_advantages']).lower()} by default"


def table(kind: str) -> str:
    """Markdown rows of a kind of table, `estimators` or `settings`."""
    head, *rows = {"estimators": estimators, "settings": settings}[kind]()
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    print(table(*(sys.argv[1:] or ["estimators"])))

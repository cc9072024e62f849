"""What is dealt when: prompts, minibatches and settings that move."""

from itertools import chain

import pytest

from alignkit.ppo.schedule import linear, minibatches, prompts_of_refill, prompts_of_update


def test_no_prompt_is_asked_twice_before_every_other_was_asked_once() -> None:
    dealt = list(chain(*(prompts_of_update(10, u, num_prompts=4, seed=0, shuffle=True) for u in range(5))))
    laps = [dealt[start : start + 10] for start in (0, 10)]
    assert [sorted(lap) for lap in laps] == [list(range(10))] * 2
    assert laps[0] != laps[1] != list(range(10))
    assert prompts_of_update(10, 3, num_prompts=4, seed=0, shuffle=True) == dealt[12:16]


def test_an_update_may_ask_more_prompts_than_there_are() -> None:
    assert prompts_of_update(3, 0, num_prompts=7, seed=0, shuffle=False) == [0, 1, 2, 0, 1, 2, 0]
    assert sorted(prompts_of_update(3, 1, num_prompts=3, seed=4, shuffle=True)) == [0, 1, 2]


def test_a_refill_asks_what_was_not_asked_in_the_update() -> None:
    def chosen(update: int, refill: int, num_prompts: int = 3, asked: range = range(4)) -> list[int]:
        return prompts_of_refill(10, update, refill, num_prompts=num_prompts, seed=0, asked=asked)

    assert sorted(chosen(0, 0, 6)) == [4, 5, 6, 7, 8, 9]
    assert chosen(0, 0) == chosen(0, 0)
    assert len({tuple(chosen(update, refill)) for update in range(3) for refill in range(3)}) > 6
    assert len(chosen(0, 0, 9)) == 9  # of six that are left, three twice
    assert sorted(chosen(0, 0, 10, range(10))) == list(range(10))


def test_every_completion_is_in_one_minibatch_of_a_pass_longest_first() -> None:
    lengths = [5, 1, 9, 3, 7, 2, 8, 4]
    passes = [minibatches(lengths, num_mini_batches=2, update=1, epoch=e, seed=0) for e in range(3)]
    for cuts in passes:
        assert sorted(chain(*cuts)) == list(range(8))
        assert [len(cut) for cut in cuts] == [4, 4]
        for cut in cuts:
            assert [lengths[i] for i in cut] == sorted((lengths[i] for i in cut), reverse=True)
    assert {frozenset(cuts[0]) for cuts in passes} != {frozenset(passes[0][0])}


@pytest.mark.parametrize(("update", "value"), [(0, 1.0), (2, 2.0), (4, 3.0)])
def test_a_setting_moves_in_a_line(update: int, value: float) -> None:
    assert linear(1.0, 3.0, update=update, num_updates=5) == value
    assert linear(1.0, None, update=update, num_updates=5) == 1.0
    assert linear(1.0, 3.0, update=0, num_updates=1) == 1.0

"""Every planted world through the report's decisions, five draws each; python -m "
"benchmarks.planted_worlds draws 200."""

import pytest

from benchmarks.planted_worlds import WORLDS, judge_draw

DRAWS = 5


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_report_says_what_is_true(world):
    found = [judge_draw(world, draw) for draw in range(DRAWS)]
    assert [o.error for o in found] == [""] * DRAWS
    assert sum(o.senseless for o in found) == 0
    assert not any(o.wrong for o in found), found
    claims = sum(o.no_larger for o in found)
    assert sum(o.no_larger_false for o in found) <= max(1, 0.05 * claims), found
    for i in (0, 1):
        assert sum(o.right[i] for o in found) >= DRAWS - 1, (world.right, [o.said for o in found])

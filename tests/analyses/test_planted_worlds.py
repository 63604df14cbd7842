"""Every planted world through the report's decisions; ``python -m benchmarks.planted_worlds`` draws each 200 times."""

import re

import pytest

from analyses.paired_study.frames import load_study
from analyses.paired_study.verdicts import judge
from benchmarks._harness import part
from benchmarks.planted_worlds import WORLDS, judge_draw, outcomes
from benchmarks.stability import mixtures, report, verdict_table

SIGMA = re.escape("C-SimCLR − SimCLR ×(1+β)") + " +σ of the probed features"


# Of the same kind as another one: make test has that, make test-all both.
ALIKE = {
    "edge of the zone",
    "negligible",
    "one method is noisier",
    "three seeds",
    "twice the zone, third look",
}
DRAWS = [
    pytest.param(
        world,
        draws,
        marks=[pytest.mark.slow] * (draws == 20 or world.name in ALIKE),
        id=f"{world.name}-{draws}draws",
    )
    for world in WORLDS
    for draws in (5, 20)
]


@pytest.mark.parametrize(("world", "draws"), DRAWS)
def test_the_report_says_what_is_true(world, draws):
    found = [judge_draw(world, draw) for draw in range(draws)]
    assert [o.error for o in found] == [""] * draws
    assert sum(o.senseless for o in found) == 0
    assert not any(o.wrong for o in found), found
    claims = sum(o.no_larger for o in found)
    assert sum(o.no_larger_false for o in found) <= max(1, 0.05 * claims), found
    for i in (0, 1):
        # of 200 draws 80% must be right; three of five, or twelve of twenty, tell a broken rule from chance
        assert sum(o.right[i] for o in found) >= 0.6 * draws, (world.right, [o.said for o in found])


def test_shards_draw_each_draw_once_and_their_table_counts_all():
    worlds = WORLDS[:2]
    jobs = [[(o.world, o.draw) for o in outcomes(worlds, 2, part(f"{i}/3"))] for i in (1, 2, 3)]
    assert sorted(job for part in jobs for job in part) == sorted((w.name, d) for w in worlds for d in (0, 1))


def test_reruns_of_a_study_are_held_against_each_other(planted, tmp_path):
    for number in range(2):
        planted(tmp_path / f"rerun-{number}", number=number, noise=0.5)
    told = report(tmp_path)
    assert told.startswith("2 reruns")
    assert re.search(rf"{SIGMA} +yes smoother 2 +0\n", told)
    studies = [load_study(tmp_path / f"rerun-{number}") for number in range(2)]
    mixed = list(mixtures(studies, 2))
    for study in mixed:
        taken = [
            any(study.models.loc[run, "features"] == each.models.loc[run, "features"] for each in studies)
            for run in study.models.index
        ]
        assert all(taken)
    assert not mixed[0].models["features"].equals(mixed[1].models["features"])
    assert re.search(rf"{SIGMA} +yes smoother 2 +0\n", verdict_table([judge(study).rows for study in mixed]))
    planted(tmp_path / "rerun-2", "opposite")
    assert re.search(rf"{SIGMA} +yes smoother 2; yes less smooth 1 +2\n", report(tmp_path))
    with pytest.raises(ValueError, match="no measured rerun"):
        report(tmp_path / "rerun-0")

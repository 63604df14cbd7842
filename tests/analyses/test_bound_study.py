"""The study of the bounds: its records hold the theory's orders, and its page is drawn from them."""

import math

import pytest
import torch

from analyses.bound_study import measure as measuring
from analyses.bound_study.page import BALL, ball_lines, image_by_image, load, make_page, ratios
from analyses.runs import find_runs
from lipcomp._commands import run
from lipcomp.checkpoints import save_checkpoint
from lipcomp.checkpoints._native import Metadata
from lipcomp.distributions._bessel import mean_resultant_length
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.measure import Images, Plan, Source, run as measure
from lipcomp.measure._local import Ball
from lipcomp.measure._outputs import ImageTable
from lipcomp.measure._run import Outputs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory, small_digits):
    folder = tmp_path_factory.mktemp("bounds")
    spec = EncoderSpec("small_cnn", (1, 12, 12), mean=(0.131,), std=(0.308,), projector=(32, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "IMAGES", 40)
        patch.setattr(measuring, "SIGMA_IMAGES", 12)
        for seed, name in enumerate(("SimCLR", "CSimCLR")):
            path = folder / "runs" / name / "model.safetensors"
            save_checkpoint(
                path,
                build_encoder(spec, seed=seed).eval(),
                metadata=Metadata(objective={"name": name}, seed=0),
            )
        outputs = Outputs(folder / measuring.RECORDS, table=ImageTable(folder / measuring.TABLE))
        list(measure(plan(folder, small_digits(12)), outputs))
    return folder


def plan(folder, images):
    sources = tuple(Source(str(path), name) for name, path in find_runs(folder).items())
    asked = tuple(measuring.quantities(("backbone", "latent"), ball_images=2))
    return Plan(sources, Images(images), asked, device="cpu")


def test_the_gaps_hold_the_orders_of_the_theory(study):
    gaps = ratios(load(study).frame)
    expected = math.sqrt(2 * 1024 / float(mean_resultant_length(16, torch.tensor(1024.0).double())))
    assert list(gaps["published"] / gaps["supremum"]) == pytest.approx([expected] * 2, rel=1e-6)
    assert (gaps["search"] >= 1 - 1e-3).all()
    assert (gaps["gap_0.0001"] >= 1 - 1e-6).all()


def test_the_picture_has_a_line_for_every_image_and_the_order_holds_for_each(study):
    frame = load(study).frame
    images = image_by_image(study, frame)
    table = images.pivot_table("value", ["run", "image", "radius"], "quantity")
    lower, searched, certified = (table[label] for label in BALL.values())
    assert len(table) == 4 * len(Ball.radii)  # two encoders, two images of each
    assert (lower <= searched * (1 + 1e-3)).all()
    assert (searched <= certified).all()
    ball = frame[frame["quantity"].isin(BALL)].assign(quantity=lambda rows: rows["quantity"].map(BALL))
    thin = [
        line for axis in ball_lines(ball, images).axes for line in axis.lines if line.get_linewidth() == 0.5
    ]
    assert len(thin) == 4 * len(BALL)


def test_all_pairs_prove_at_least_what_neighbours_and_chance_do(study):
    frame = load(study).frame
    bound = frame[frame["quantity"] == "bound.direction.max"]
    table = bound.pivot_table("value", "subject.run", "settings.pairs")
    for source in ("shuffled", "neighbours"):
        assert (table["all"] >= table[source] * (1 - 1e-5)).all()


def test_what_is_measured_is_not_measured_again_and_the_page_says_it(study):
    path, headline = make_page(study)
    html = path.read_text()
    assert "times below κ times the largest local constant" in headline
    assert html.count("<figure") == 4
    assert (study / "bounds.md").exists()


def test_bad_input_is_one_paragraph(tmp_path, capsys):
    assert run(measuring.main, [str(tmp_path)]) == 1
    assert "holds no checkpoint" in " ".join(capsys.readouterr().err.split())

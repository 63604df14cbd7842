"""Pictures show the numbers they were given, of results and of records as they are measured."""

import itertools
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import lipcomp
from lipcomp.records import Record, to_frame

pytest.importorskip("seaborn")
from matplotlib import font_manager

from lipcomp import plots
from lipcomp.plots import _palette

SUBJECTS = [{"run": f"{name}-0", "objective": name, "seed": 0} for name in ("SimCLR", "C-SimCLR")]


@pytest.fixture(autouse=True)
def closed():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Records of two small encoders, as the engine writes them."""
    from lipcomp.checkpoints import save_checkpoint
    from lipcomp.encoders import EncoderSpec, build_encoder
    from lipcomp.measure import Images, Pairs, Plan, Sigma, Source, run

    folder = tmp_path_factory.mktemp("encoders")
    for seed, name in enumerate(("a", "b")):
        spec = EncoderSpec("small_cnn", (1, 28, 28), projector=None)
        save_checkpoint(folder / f"{name}.safetensors", build_encoder(spec, seed=seed))
    sources = tuple(Source(folder / f"{name}.safetensors") for name in ("a", "b"))
    plan = Plan(sources, Images("mnist5k", limit=3), (Sigma(), Pairs("all")))
    return [record for done in run(plan) for record in done.records]


def value(records, name, quantity):
    frame = to_frame(records)
    chosen = frame[(plots._frames.labels(frame) == name) & (frame["quantity"] == quantity)]
    return float(chosen["value"].iloc[0])


def test_measured_records_become_pictures(measured):
    ax = plots.local_constants(measured)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    medians = [line.get_xdata()[0] for line in ax.lines if line.get_marker() not in ("None", "|")]
    assert medians == [value(measured, name, "sigma_max.median") for name in "ab"]
    stars = plots.bounds_against_distance(to_frame(measured)).collections
    assert [s.get_offsets()[0][1] for s in stars] == [value(measured, n, "bound.direction.max") for n in "ab"]
    both = plots.smoothness_against_robustness(
        measured, smoothness="sigma_max.median", robustness="bound.direction.max"
    )
    points = np.concatenate([np.asarray(part.get_offsets()) for part in both.collections])
    assert points[:, 0].tolist() == medians


def test_certificates_grow_with_the_radius_and_what_was_found_stays_found():
    values = {"lower": (0.3, 0.2), "searched": (0.4, 0.5), "certified": (0.5, 0.9)}
    records = [
        Record(f"ball.{what}.median", value, subject=SUBJECTS[0], settings={"radius": radius})
        for what, pair in values.items()
        for radius, value in zip((1e-3, 1e-2), pair, strict=True)
    ]
    lines = {line.get_label(): line for line in plots.certificate_against_radius(records).lines}
    assert lines["lower"].get_ydata().tolist() == [0.3, 0.3]
    assert lines["searched"].get_ydata().tolist() == [0.4, 0.5]
    assert lines["certified"].get_xdata().tolist() == [1e-3, 1e-2]
    assert lines["certified"].get_ydata().tolist() == [0.5, 0.9]


def test_every_image_is_a_thin_line_and_half_of_them_make_a_median():
    class Found:
        constants: ClassVar = {"sigma": "searched", "bound": "certified"}

        def __init__(self, radius, sigma, bound):
            self.radius, self.values = radius, {"sigma": np.array(sigma), "bound": np.array(bound)}

        def columns(self):
            return self.values

    given = [
        Found(0.1, [1.0, 3.0, 2.0], [2.0, np.inf, np.inf]),
        Found(0.01, [2.0, 1.0, 1.5], [2.5, 2.0, 1.5]),
    ]
    lines = plots.certificate_against_radius(given).lines
    medians = {line.get_label(): line for line in lines if not line.get_label().startswith("_")}
    assert medians["searched"].get_xdata().tolist() == [0.01, 0.1]
    assert medians["searched"].get_ydata().tolist() == [1.5, 2.0]  # a larger ball holds the smaller one
    assert medians["certified"].get_xdata().tolist() == [0.01]
    assert medians["certified"].get_ydata().tolist() == [2.0]
    thin = [line for line in lines if line.get_label().startswith("_")]
    assert [line.get_ydata().tolist() for line in thin[:3]] == [[2.0, 2.0], [1.0, 3.0], [1.5, 2.0]]


def test_accuracy_against_severity_is_the_mean_over_corruptions():
    records = [
        Record(
            "accuracy.corruption",
            0.9 - k / 10,
            subject=SUBJECTS[0],
            settings={"corruption": c, "severity": s},
        )
        for k, (c, s) in enumerate([("fog", 1), ("snow", 1), ("fog", 5), ("snow", 5)])
    ]
    records.append(Record("accuracy.clean", 0.97, subject=SUBJECTS[0]))
    (line,) = plots.accuracy_against_severity(records).lines
    assert line.get_xdata().tolist() == [0, 1, 5]
    assert line.get_ydata() == pytest.approx([97, 85, 65])


def test_smoothness_against_robustness_has_intervals_and_a_colour_per_objective():
    records = [
        Record(quantity, x, interval=(x - 0.1, x + 0.1), subject=subject)
        for subject, pair in zip(SUBJECTS, ((0.5, 0.6), (0.3, 0.8)), strict=True)
        for quantity, x in zip(("sigma_max.median", "accuracy.corruption.mean"), pair, strict=True)
    ]
    ax = plots.smoothness_against_robustness(records)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["SimCLR", "C-SimCLR"]
    assert ax.lines[0].get_xdata() == pytest.approx([0.4, 0.6])
    with pytest.raises(ValueError, match=r"only .* is there"):
        plots.smoothness_against_robustness(records[:1])


def test_values_of_several_settings_are_not_drawn_as_one():
    """The last layer, or the mean over two sets of images, was drawn without a word."""
    layers = [
        Record("sigma_max.median", x, subject=SUBJECTS[0], settings={"layer": layer, "method": x})
        for layer, x in (("latent", 0.5), ("backbone", 3.0), ("backbone", 2.0))
    ]
    told = (
        r"several values of sigma_max.median of SimCLR-0, of layer latent, backbone; .*layer.\] == .latent.\]"
    )
    with pytest.raises(ValueError, match=told):
        plots.local_constants(layers)
    assert plots.local_constants(layers[1:]).lines[1].get_xdata().tolist() == [2.0]  # of a newer method
    fog = {"corruption": "fog", "severity": 1}
    two = [Record("accuracy.corruption", 0.5, subject=SUBJECTS[0], settings=fog | {"data": d}) for d in "ab"]
    with pytest.raises(ValueError, match="of data a, b; draw those of one"):
        plots.accuracy_against_severity(two)


def test_results_by_name_become_violins_from_a_dozen_images_on():
    values = {"SimCLR": np.linspace(1, 2, 30), "C-SimCLR": np.linspace(0.5, 1, 30)}
    ax = plots.local_constants(values)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(values)
    assert len(ax.collections) == 2
    assert (
        plots.local_constants(lipcomp.spectral_norm(lambda x: 2 * x, torch.rand(3, 2))).get_xscale() == "log"
    )


def test_names_that_matplotlib_reads_otherwise_are_drawn(tmp_path):
    """A file's dollars are no mathematics (they ended savefig), an underscore hides no name from the legend."""
    names = ["_best", r"$\frac$"]
    settings = [{"corruption": "fog", "severity": s} for s in (1, 5)]
    found = [
        Record("accuracy.corruption", 0.5, subject={"run": n}, settings=s) for n in names for s in settings
    ]
    legend = plots.accuracy_against_severity(found).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [" _best", r"\$\frac\$"]
    ax = plots.local_constants({name: [0.5, 0.7] for name in names})
    ax.figure.savefig(tmp_path / "constants.png")


def test_what_is_not_there_is_named():
    with pytest.raises(
        ValueError, match=r"no record of sigma_max.median .* the quantities here are: accuracy.clean"
    ):
        plots.local_constants([Record("accuracy.clean", 0.9)])
    with pytest.raises(ValueError, match="records must be records"):
        plots.accuracy_against_severity(to_frame([Record("accuracy.clean", 0.9)]).drop(columns="quantity"))


def test_without_seaborn_the_error_says_what_to_install(monkeypatch):
    import sys

    for name in [n for n in sys.modules if n.startswith("lipcomp.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(lipcomp, "plots", raising=False)  # importing it has set the attribute
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(ImportError, match=r"lipcomp\.plots needs seaborn.*pip install 'lipcomp\[plots\]'"):
        lipcomp.plots


@pytest.mark.parametrize("middle", [3e-7, 0.35, 4.2, 1e5])
@pytest.mark.parametrize("spread", [1.1, 1.5, 4.0, 30.0, 1e4])
def test_the_numbers_of_a_logarithmic_axis_do_not_run_into_each_other(middle, spread):
    ax = plots.local_constants(
        {"a": [middle / spread, middle, middle * spread], "b": [middle, middle, middle]}
    )
    ax.figure.canvas.draw()
    lower, upper = ax.get_xlim()
    ticks = [
        tick.label1.get_window_extent()
        for tick in ax.xaxis.get_major_ticks()
        if lower <= tick.get_loc() <= upper and tick.label1.get_text()
    ]
    assert len(ticks) >= 2
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(ticks))


def test_characters_that_no_font_of_the_settings_has_are_written_as_codes(monkeypatch):
    lost = "\U0010fffd"  # of a private plane, which no font of the settings has
    assert _palette.plain(f"é{lost}$\r\nb") == r"é\U0010fffd\$ b"
    # as wide as 40 letters
    assert _palette.fitting([lost * 9])[lost * 9] == r"\U0010fffd\U0010fffd…\U0010fffd"
    monkeypatch.setattr(_palette, "_has", lambda family, char: True)
    assert _palette.fitting(["模" * 20, "模" * 21]) == {
        "模" * 20: "模" * 20,
        "模" * 21: "模" * 10 + "…" + "模" * 9,
    }


def test_a_script_is_drawn_in_the_first_installed_font_that_has_it(monkeypatch):
    entry = font_manager.FontEntry(fname="", name="Some Sans", style="normal", weight=400)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [entry, replace(entry, name="Last Resort")])
    monkeypatch.setattr(_palette, "_has", lambda family, char: char == "中" or family == "Last Resort")
    assert _palette.further_fonts.__wrapped__() == ["Some Sans"]

"""Which figures a report has: title, caption, alternative text, and what each is drawn from."""

from collections.abc import Sequence

from analyses.page.drawn import Drawn, draw
from analyses.paired_study import figures
from analyses.paired_study.answer import ALL_PAIRS, Effect
from analyses.paired_study.frames import Study, bound_rows


def build_figures(study: Study, effects: Sequence[Effect]) -> list[Drawn]:
    """All figures for which there is data."""
    models, drawn = study.models, []
    wanted = [e for e in effects if e.estimate.value is not None]
    if wanted:
        drawn.append(
            draw(
                "forest",
                "Paired effects",
                "Mean difference within pairs (same seed, weights, data order and draws) with its 95% interval; ticks "
                "are the single pairs. Left of zero in the first two panels is smoother, right of zero in the "
                "others better.",
                "Forest plot; the table of paired effects holds every number. " + _pooled(wanted),
                lambda: figures.forest(wanted),
            )
        )
    targets = {"corruption": "mean corruption accuracy", "shift": "accuracy on UCI digits"}
    targets = {k: v for k, v in targets.items() if models[k].notna().any()}
    if targets and models["sigma"].notna().any():
        drawn.append(
            draw(
                "scatter",
                "Smoothness against robustness",
                "A point a model; a line joins a compressed model with its uncompressed twin.",
                f"Scatter plot of the median local Lipschitz constant against {' and '.join(targets.values())}, "
                f"{len(models)} models",
                lambda: figures.scatter_with_pairs(
                    models, "sigma", targets, "median σ_max(J), 1 per pixel L2"
                ),
            )
        )
    if models["beta"].nunique() > 2:
        targets_by_beta = {
            "excess": ("excess residual information, nats", 1.0),
            "sigma": ("median σ_max(J)", 1.0),
            "corruption": ("mean corruption accuracy, %", 100.0),
        }
        targets_by_beta = {k: v for k, v in targets_by_beta.items() if models[k].notna().any()}
        drawn.append(
            draw(
                "beta",
                "What β does",
                "A thin line a seed, the mean thick; dotted, the uncompressed twin's mean.",
                "Line plots over beta of " + ", ".join(label for label, _ in targets_by_beta.values()),
                lambda: figures.dose_response(models, targets_by_beta),
            )
        )
    if models["excess"].notna().any() and models["sigma"].notna().any():
        drawn.append(
            draw(
                "compression",
                "Compression and smoothness",
                "Excess residual information over the floor that the two concentrations set, on held-out views.",
                "Scatter plot of the excess residual information against the median local Lipschitz constant",
                lambda: figures.compression_and_smoothness(models),
            )
        )
    if len(study.corruptions):
        drawn.append(
            draw(
                "corruptions",
                "Accuracy under each corruption",
                "Linear probe on the pooled features; mean over five severities and the seeds.",
                "Heat map of accuracy by corruption and method",
                lambda: figures.corruption_heat_map(study.corruptions),
            )
        )
    bounds = bound_rows(study)
    if len(bounds):
        drawn.append(
            draw(
                "bounds",
                "How tight each lower bound is",
                "Largest value over the positive pairs of the test images, all at κ = 1024; κ·σ_max is the largest "
                "local constant at a test image. The supremum bound's constant is the one that the Jacobian measures.",
                "Dot plot of the lower bounds (3.1) to (3.4) and of kappa times the largest spectral norm, by method",
                lambda: figures.bound_sandwich(bounds),
            )
        )
    if len(study.images):
        drawn += [
            draw(
                "distributions",
                "The local constant over the test images",
                "Distribution of σ_max(J) of the mean direction; lines are the quartiles.",
                "Violin plots of the spectral norm of the Jacobian, by method",
                lambda: figures.distributions(study.images),
            ),
            draw(
                "flips",
                "Image by image: does a larger local constant mean a less stable prediction?",
                "Share of the corruptions (all kinds and severities) that change the probe's prediction of an image.",
                "Line plot of the share of corruptions that change the prediction by decile of the local constant",
                lambda: figures.flips_by_smoothness(study.images),
            ),
        ]
    return drawn


def _pooled(effects: Sequence[Effect]) -> str:
    """The pooled effects, for a reader who does not see the figure."""
    pooled = [e for e in effects if e.contrast == ALL_PAIRS]
    return "Pooled: " + "; ".join(f"{e.label} {e.value:+.2f} {e.unit}" for e in pooled) if pooled else ""

"""The methods section of the report, in words; numbers come from the records."""

import pandas as pd


def _one(frame: pd.DataFrame, column: str) -> str:
    values = frame.get(column, pd.Series(dtype=object)).dropna().unique()
    return ", ".join(str(v) for v in values) if len(values) else "not recorded"


def methods_text(frame: pd.DataFrame) -> list[str]:
    """Paragraphs that say what each number means and how it was computed.

    Parameters
    ----------
    frame
        The study's records (``lipcomp.records.to_frame``).
    """
    sigma = frame[frame["quantity"] == "sigma_max.median"]
    images = sigma["n"].dropna().astype(int).unique()
    count = ", ".join(str(n) for n in images) if len(images) else "the sampled"
    return [
        "Pairs. Two runs of one seed share initial weights, data order and every augmentation draw; they differ in the "
        "objective (and C-BYOL has one linear layer more, behind its latent). The compression term re-weights "
        "alignment: its gradient is that of SimCLR with a positive weight of 1 + β, plus the noise of the vMF latent. "
        "So SimCLR ×(1+β), without noise, stands beside C-SimCLR as its control, and an effect is credited to "
        "compression only against it.",
        f"Smoothness. The measured map takes pixels in [0, 1] to the unit mean direction μ; normalisation and "
        f"evaluation-mode batch norm are part of it. σ_max(J) is the largest singular value of its Jacobian at an "
        f"image, the local Lipschitz constant of μ there (theory 4.4), by Lanczos iteration to a relative tolerance of "
        f"{_one(sigma, 'settings.rtol')}, on {count} test images; 1 per pixel L2. ‖Δμ‖/‖Δx‖ is the "
        f"concentration-free lower bound (3.5) of the same constant over pairs. Bounds (3.1) to (3.4) are on the log "
        f"density log e(z|x) at one common κ: a comparison across different κ would compare the hyperparameters.",
        "Compression. Residual information is E KL(e(z|x) ‖ b(z|y)) in closed form (2.2), x and y two augmented views "
        "of a held-out image, at κ_e = 1024 and κ_b = 10 for every model, whatever it was trained with; the excess is "
        "over the floor (2.4) that these two concentrations set. For BYOL the other view's own prediction stands for "
        "y's direction, since the target network is not kept. I(Y;Z) is the InfoNCE lower bound (2.3), z = μ, at most "
        "the logarithm of the number of candidates.",
        "Accuracy. A linear probe (L-BFGS, regularisation chosen on held-out training images) on the pooled backbone "
        "features. Corruptions: the fifteen of MNIST-C at five severities, the same draws for every model. Shift: the "
        "UCI digits, other writers and another scanner, brought from 8×8 to MNIST's frame; the 8×8 control is MNIST's "
        "own test set through the same resolution, so that control minus shift is the domain alone.",
        "Statistics. Paired effects are means of within-pair differences. Their p-values are exact sign-flip "
        "permutation p-values, shown beside the smallest value that the number of pairs allows; an effect is called "
        "present only if the 95% interval leaves out zero and p < 0.05. "
        "Intervals: Student's t over few pairs, otherwise bootstrap over pairs, images or models. Across models: "
        "Spearman correlation, and partial on clean accuracy, with "
        "permutation p-values; within pairs: after the mean of each family and seed is taken out. Across the images of "
        "a model: the area under the ROC curve of σ_max for images that more corruptions than the median flip; over "
        "all models, and in the logistic regression, errors are clustered by image and by model.",
        "Limits. Digits, a small convolutional network and few seeds: the study shows how the quantities behave and "
        "what so many pairs can tell, not what holds on ImageNet. The seeds of "
        "a method are its replicates, so across models whole methods are exchanged, and of methods there are few.",
    ]

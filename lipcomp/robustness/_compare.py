"""An encoder beside the published rows of RobustBench's leaderboards.

The rows are those of RobustBench's result files (``model_info`` at commit 78fcc9e of 31 March 2025, MIT licence), so
they are a snapshot: newer models are missing. A row may be set beside them if it was measured as they were: clean
accuracy and, for corruptions, the mean over the fifteen corruptions and five severities of CIFAR-10-C, CIFAR-100-C or
ImageNet-C (RobustBench's 5,000 images), as :func:`~lipcomp.robustness._robustbench.run_benchmark` gives it.

>>> rows = published_rows("cifar10", "corruptions")
>>> rows["model"][0], round(float(rows["shifted"][0]), 4)
('Diffenderfer2021Winning_LRR_CARD_Deck', 0.9278)
>>> place_among(rows, "ours", clean=0.95, shifted=0.80).attrs["rank"]
21
"""

from importlib.resources import files

import pandas as pd

SOURCE = "RobustBench model_info, 78fcc9e, 2025-03-31, MIT"


def published_rows(dataset: str, threat: str = "corruptions") -> pd.DataFrame:
    """The leaderboard's rows, the best first.

    Returns
    -------
    Columns model, clean, shifted (accuracies in [0, 1]), mce (a ratio), architecture, venue, extra_data, eps.

    Raises
    ------
    ValueError
        If there is no such leaderboard.
    """
    table = pd.read_csv(str(files("lipcomp.robustness") / "tables" / "robustbench_rows.csv"))
    boards = [f"{d} {t}" for d, t in table[["dataset", "threat"]].drop_duplicates().itertuples(index=False)]
    if f"{dataset} {threat}" not in boards:
        raise ValueError(f"no published rows for {dataset} {threat}; there are {', '.join(boards)}")
    rows = table[(table.dataset == dataset) & (table.threat == threat)].drop(columns=["dataset", "threat"])
    rows = rows.assign(**{name: rows[name] / 100 for name in ("clean", "shifted", "mce")})
    return rows.sort_values("shifted", ascending=False, ignore_index=True)


def place_among(rows: pd.DataFrame, model: str, *, clean: float, shifted: float) -> pd.DataFrame:
    """The published rows and yours, sorted by shifted accuracy; the rank of yours, from 1, is in ``attrs["rank"]``.

    Raises
    ------
    ValueError
        If an accuracy is not in [0, 1].
    """
    for name, value in (("clean", clean), ("shifted", shifted)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} accuracy must lie in [0, 1], got {value}; divide percent by 100")
    own = pd.DataFrame([{"model": model, "clean": clean, "shifted": shifted}])
    rank = int((rows["shifted"] > shifted).sum()) + 1
    placed = pd.concat([rows[: rank - 1], own, rows[rank - 1 :]], ignore_index=True)
    placed.attrs["rank"] = rank
    return placed

"""Accuracy where the data moves: corruptions, shifts, attacks, and the metrics the field reports."""

from lipcomp.robustness.attacks import auto_attack, pgd
from lipcomp.robustness.calibration import brier_score, calibration_error, negative_log_likelihood
from lipcomp.robustness.corruptions import SEVERITIES, corrupt, corruption_names, published_severity
from lipcomp.robustness.effective import baseline_fit, effective_robustness, fit_baselines, read_baselines
from lipcomp.robustness.estimates import Estimate, accuracy, bootstrap, proportion
from lipcomp.robustness.features import extract_features
from lipcomp.robustness.linear_evaluation import linear_evaluation
from lipcomp.robustness.metrics import (
    corruption_errors,
    flip_rate,
    mean_corruption_error,
    pm_k_accuracy,
    relative_mean_corruption_error,
)
from lipcomp.robustness.probes import Classifier, LinearProbe, NearestNeighbours, fit_linear_probe
from lipcomp.robustness.sets import open_corruption_set
from lipcomp.robustness.shifts import load_shift

"""Accuracy where the data moves: corruptions, shifts, attacks, and the metrics the field reports."""

from lipcomp.robustness._attacks import auto_attack, pgd
from lipcomp.robustness._calibration import brier_score, calibration_error, negative_log_likelihood
from lipcomp.robustness._effective import baseline_fit, effective_robustness, fit_baselines, read_baselines
from lipcomp.robustness._estimates import Estimate, accuracy, bootstrap, proportion
from lipcomp.robustness._features import extract_features
from lipcomp.robustness._linear_evaluation import linear_evaluation
from lipcomp.robustness._metrics import (
    corruption_errors,
    flip_rate,
    mean_corruption_error,
    pm_k_accuracy,
    relative_mean_corruption_error,
)
from lipcomp.robustness._probes import Classifier, LinearProbe, NearestNeighbours, fit_linear_probe
from lipcomp.robustness._sets import open_corruption_set
from lipcomp.robustness._shifts import load_shift
from lipcomp.robustness.corruptions import SEVERITIES, corrupt, corruption_names, published_severity

"""Accuracy where the data moves: corruptions, shifts, attacks, and the metrics the field reports."""

from lipcomp.robustness.corruptions import SEVERITIES, corrupt, corruption_names, published_severity
from lipcomp.robustness.estimates import Estimate, accuracy, bootstrap, calibration_error
from lipcomp.robustness.probes import Classifier, LinearProbe, NearestNeighbours, fit_linear_probe

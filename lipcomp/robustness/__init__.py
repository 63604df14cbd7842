"""Accuracy where the data moves: corruptions, shifts, attacks, and the metrics the field reports."""

from lipcomp.robustness._attacks import pgd
from lipcomp.robustness._auto_attack import auto_attack
from lipcomp.robustness._features import extract_features
from lipcomp.robustness._probes import fit_linear_probe

__all__ = [
    "auto_attack",
    "extract_features",
    "fit_linear_probe",
    "pgd",
]

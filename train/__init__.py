"""Training: one run (:mod:`train.pretrain`) and sweeps of runs (:mod:`train.sweep`)."""

from lipcomp import _startup

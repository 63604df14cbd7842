"""Studies of trained encoders: what is measured of them, and the pages that are drawn of that."""

from lipcomp import _startup

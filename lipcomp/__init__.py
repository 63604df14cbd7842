"""lipcomp: is this encoder smooth, and does that make it robust?

Compression (CEB), Lipschitz bounds, Jacobians and robustness of self-supervised vision encoders.
"""


__version__ = "0.1.0"

"""lipcomp: is this encoder smooth, and does that make it robust?

Compression (CEB), Lipschitz bounds, Jacobians and robustness of self-supervised vision encoders.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipcomp.checkpoints import load_encoder

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for, so that ``lipcomp.__version__`` is cheap."""
    if name == "load_encoder":
        from lipcomp.checkpoints import load_encoder

        return load_encoder
    raise AttributeError(f"module 'lipcomp' has no attribute {name!r}")

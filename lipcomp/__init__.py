"""Is this encoder smooth, and does that make it robust? lipcomp measures both.

Compression (CEB), Lipschitz bounds, Jacobians and robustness of self-supervised vision encoders.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lipcomp import _startup

if TYPE_CHECKING:
    from lipcomp import (
        bound,
        checkpoints,
        data,
        distributions,
        encoders,
        jacobian,
        measure,
        objectives,
        plots,
        records,
        report,
        robustness,
        statistics,
    )
    from lipcomp.bound import lipschitz, lower_bounds
    from lipcomp.checkpoints import load_encoder
    from lipcomp.data import load_set
    from lipcomp.distributions import VonMisesFisher
    from lipcomp.encoders import wrap
    from lipcomp.jacobian import spectral_norm
    from lipcomp.records import read_records, to_frame
    from lipcomp.robustness.corruptions import corrupt

__version__ = "0.1.0"

# The names of the first page, and the packages; each is imported with torch when it is first asked for, so that the
# version is cheap.
_HOMES = {
    "VonMisesFisher": "lipcomp.distributions",
    "corrupt": "lipcomp.robustness.corruptions",
    "lipschitz": "lipcomp.bound",
    "load_encoder": "lipcomp.checkpoints",
    "load_set": "lipcomp.data",
    "lower_bounds": "lipcomp.bound",
    "read_records": "lipcomp.records",
    "spectral_norm": "lipcomp.jacobian",
    "to_frame": "lipcomp.records",
    "wrap": "lipcomp.encoders",
}
_PACKAGES = (
    "bound",
    "checkpoints",
    "data",
    "distributions",
    "encoders",
    "jacobian",
    "measure",
    "objectives",
    "plots",
    "records",
    "report",
    "robustness",
    "statistics",
)

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"lipcomp.{name}")
    raise AttributeError(f"module 'lipcomp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_PACKAGES})

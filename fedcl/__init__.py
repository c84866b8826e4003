"""fedcl: hospitals learn task after task without pooling their data.

The reading order, which is also the order of imports: a module imports only modules above it in this list.

    errors offline config protocols contracts rng plugins       the experiment, the records, where draws come from
    defaults toml                                               every option written out
    datasets partition tasks features augment federation        what the hospitals hold, and when
    holdings                                                    the same where no one else sees it
    models _sample_grads sample_moments fisher infer evaluate   what they train and are asked
    growth methods                                              how they grow and remember
    aggregators mergers merge                                   the rules by which many nets become one
    optimizers batches store device net shelf own client        one client's Job: the only training loop
    scores units metrics results report run_dir                 what comes out
    state plan collect journal synthesis privacy server         the only round loop
    runtime deploy                                              Flower: apps, wire, one file per way to run
    finish simulation                                           the whole story on one page
    forecast rescore explain choices settings summary view cli  around it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcl.config import Config as Config
    from fedcl.results import Result as Result
    from fedcl.simulation import simulate as simulate

__version__ = "0.1.0"
__all__ = ["Config", "Result", "simulate"]

_HOMES = {"Config": "fedcl.config", "Result": "fedcl.results", "simulate": "fedcl.simulation"}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: `fedcl --help` needs neither torch nor Flower."""
    if name in _HOMES:
        import importlib

        globals()[name] = value = getattr(importlib.import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'fedcl' has no attribute {name!r}")

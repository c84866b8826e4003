"""fedcl: hospitals learn task after task without pooling their data.

The reading order, which is also the order of imports: a module imports only modules above it in this list.

    errors offline sections config                                the experiment …
    protocols structure samples contracts                         … and the records
    rng noise accounting mechanism                                where draws come from, and what they cost
    plugins citations defaults toml                               every option written out
    datasets partition tasks features augment federation          what the hospitals hold, and when
    holdings                                                      the same where no one else sees it
    models extract _sample_grads _clipped_layers clipped          what they train …
    sample_moments fisher infer evaluate                          … and are asked
    growth flat methods                                           how they grow and remember
    aggregators mergers merge                                     the rules by which many nets become one
    quantize compression masking privacy masked                   how deltas travel, and what protects them
    optimizers batches steps private                              one client's Job …
    store device net shelf quality exam own                       … and what it needs for it
    client                                                        … in the only training loop
    scores units metrics results report run_dir                   what comes out
    state plan growing collect anatomy drift alarms journal       what a round needs …
    synthesis audit summed protect server                         … in the only round loop
    runtime deploy                                                Flower: apps, wire, one file per way to run
    trackers tracking                                             where figures go besides
    finish simulation                                             the whole story on one page
    starters explain choices settings                             a config from file and flags, all mistakes told
    forecast rescore export summary                               around it …
    attacks                                                       what all of this lets others see …
    comparison tuning leaks                                       many runs, and what holds of them …
    view watch cli                                                … and in front of it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcl.comparison import compare as compare
    from fedcl.config import Config as Config
    from fedcl.export import load_export as load_export
    from fedcl.results import Result as Result
    from fedcl.simulation import simulate as simulate

    __version__: str

__all__ = ["Config", "Result", "compare", "load_export", "simulate"]

_HOMES = {
    "Config": "fedcl.config",
    "compare": "fedcl.comparison",
    "Result": "fedcl.results",
    "load_export": "fedcl.export",
    "simulate": "fedcl.simulation",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use: `fedcl --help` needs neither torch nor Flower."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("fedcl")
    if name in _HOMES:
        import importlib

        globals()[name] = value = getattr(importlib.import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'fedcl' has no attribute {name!r}")

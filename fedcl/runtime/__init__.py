"""Flower: the apps, the wire, and one file for each way to run.

The switches are set when anything here is imported: Flower reads them when it is imported itself, which comes after.
"""

from __future__ import annotations

import os


def _stay_offline() -> None:
    """Switch off Flower's telemetry and update check, Ray's statistics and Hugging Face's hub.

    Processes that this one starts inherit them.
    """
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


_stay_offline()

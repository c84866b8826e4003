"""Nothing phones home: the switches of the libraries that would."""

from __future__ import annotations

import os


def stay() -> None:
    """Switch off Flower's telemetry and update check, Ray's statistics and Hugging Face's hub.

    Processes that this one starts inherit them.
    """
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

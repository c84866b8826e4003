"""Flower: the apps, the wire, and one file for each way to run.

The switches are set when anything here is imported: Flower reads them when it is imported itself, which comes after.
"""

from __future__ import annotations

from fedcl import offline

offline.stay()

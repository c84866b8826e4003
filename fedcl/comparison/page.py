"""A page."""

from fedcl.comparison.table import Comparison

REPORT = "report.html"


def write(comparison: Comparison) -> None:
    """Write it."""

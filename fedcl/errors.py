"""The one error that a user is meant to read; a file of its own, for processes that load nothing else."""

from __future__ import annotations


class FedclError(Exception):
    """Something that the user can mend: the message names the value and the way out."""

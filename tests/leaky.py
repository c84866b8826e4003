"""A method that does what none may: it uploads a hospital's samples. For the test that would catch it."""

from __future__ import annotations

from dataclasses import dataclass

from fedcl.contracts import Method


@dataclass(frozen=True)
class Leaky(Method):
    """Sends what it should keep."""

    def end_task(self, ctx, params, data, memory):
        """Keep a few samples."""
        return {"x": data.x[:4].clone()}

    def upload(self, memory):
        """Send them."""
        return memory

"""Where a client computes: its data stay there between jobs, and in which precision a step runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from fedcl.config import Run
from fedcl.contracts import Batch, FedclError, Memory
from fedcl.federation import Cache

_SHARE = 8  # of a device's memory, one part in so many may hold samples between jobs


class Device:
    """One torch device.

    Args:
        run: the device's name and the precision.

    Raises:
        FedclError: the device has no bfloat16, and the precision asks for it.
    """

    def __init__(self, run: Run) -> None:
        self.torch = torch.device(run.device)
        self.host = self.torch.type == "cpu"
        self._bf16 = run.precision == "bf16"
        if self._bf16 and self.torch.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise FedclError(f"run.precision = 'bf16': {run.device} has no bfloat16; take float32")
        room = torch.cuda.get_device_properties(self.torch).total_memory if self.torch.type == "cuda" else 1 << 32
        self._cache = Cache(room // _SHARE)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of a forward pass; weights, and so gradients, stay float32."""
        return torch.autocast(self.torch.type, torch.bfloat16) if self._bf16 else nullcontext()

    def batch(self, key: tuple[object, ...], load: Callable[[], Batch]) -> Batch:
        """Samples on the device: copied there once, and kept while there is room."""
        if self.host:
            return load()

        def copy() -> Batch:
            batch = load()
            return Batch(batch.x.to(self.torch), batch.y.to(self.torch))

        return self._cache.get(key, copy)

    def memory(self, memory: Memory) -> Memory:
        """Memory on the device; counts stay on the host, where draws are made."""
        if self.host:
            return memory
        counts = {name for name, value in memory.items() if value.dim() == 0 and not value.is_floating_point()}
        return {name: value if name in counts else value.to(self.torch) for name, value in memory.items()}

"""The steps of a client's round: which samples each sees, and the gradients that it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from torch import Tensor, nn

from fedcl import batches
from fedcl.batches import Drawn, Part
from fedcl.config import Train
from fedcl.contracts import Context, Memory, Method, Params


class Steps:
    """The usual ones: batches in an order, the method's loss, autograd.

    Args:
        train: epochs, batch size, order.
        method: for the loss and its penalty.
        net: what trains.
        autocast: the forward pass goes in here.
    """

    def __init__(
        self, train: Train, method: Method, net: nn.Module, autocast: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self._train, self._method, self._net, self._autocast = train, method, net, autocast
        self._hooks = method.hooks()

    def draws(
        self,
        ctx: Context,
        parts: Sequence[Part],
        begin: bool,
        difficulty: Sequence[Tensor],
        offered: dict[str, Tensor],
    ) -> Iterator[Drawn]:
        """All batches of the round, see `batches.draw`."""
        return batches.draw(self._train, ctx.generator, parts, ctx.round, begin, difficulty, offered)

    def backward(self, ctx: Context, params: Params, drawn: Drawn, memory: Memory) -> Tensor:
        """Set the gradients of a step; its loss, a 0-d tensor."""
        task, batch, hooks, method = drawn.task, drawn.batch, self._hooks, self._method
        with self._autocast():
            if hooks & {"loss", "penalty"}:
                loss = method.loss(ctx, params, batch, memory)
            else:
                loss = nn.functional.cross_entropy(self._net(batch.x, task.id), batch.y)
        if "penalty" in hooks:
            loss = loss + method.penalty(ctx, params, batch, memory)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def size(self, drawn: Drawn) -> float:
        """How many samples a step counts."""
        return len(drawn.batch.y)

    def remember(self, memory: Memory) -> Memory:
        """The client's memory after the round."""
        return memory

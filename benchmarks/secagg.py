"""What a masked sum costs: all hospitals and the server in one process, phase by phase, beside a plain mean.

    python benchmarks/secagg.py                               # 5 hospitals × 100,000 parameters
    python benchmarks/secagg.py --hospitals 40 --dropouts 4 --bits 32

Every message goes through its tensors, as between machines. Times are CPU time of one thread, the median of the rounds:
one hospital's, the server's, and all of them together. Bytes are one hospital's, both ways.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from typing import TypeVar

import torch
from torch import Tensor

from fedcl.masking import party, records, sums
from fedcl.masking.records import Record, Terms
from fedcl.masking.vectors import WeightedMean, length

R = TypeVar("R", bound=Record)
PHASES = ("encode", "keys", "shares", "vectors", "unmask", "decode")


class Clock:
    """CPU seconds by phase and side, and bytes that went over the wire."""

    def __init__(self) -> None:
        self.spent: dict[tuple[str, str], float] = defaultdict(float)
        self.bytes = 0
        self.last = time.process_time()

    def stop(self, phase: str, side: str) -> None:
        """Book what has passed since the last call."""
        now = time.process_time()
        self.spent[phase, side] += now - self.last
        self.last = now

    def sent(self, record: R) -> R:
        """A message as its receiver gets it."""
        tensors = records.packed(record)
        self.bytes += sum(value.nbytes for value in tensors.values())
        return records.unpacked(type(record), tensors)


def one_round(deltas: list[dict[str, Tensor]], terms: Terms, dropouts: int) -> tuple[Clock, dict[str, Tensor]]:
    """All phases; the last hospitals drop out before they send their vectors."""
    n, session = len(deltas), os.urandom(32)
    clock, written = Clock(), WeightedMean(1.0, 10_000.0, len(deltas), terms.bits)
    vectors = [{"trunk": written.encode(delta, 100.0 + p)[0]} for p, delta in enumerate(deltas)]
    clock.stop("encode", "hospitals")
    began = [party.advertise(session, p, {"trunk": length(deltas[p])}, terms) for p in range(n)]
    adverts = {p: clock.sent(advert) for p, (_, advert) in enumerate(began)}
    clock.stop("keys", "hospitals")
    roster = sums.roster(session, adverts, terms)
    clock.stop("keys", "server")
    shared = [party.share(began[p][0], clock.sent(roster)) for p in range(n)]
    sealed = {p: clock.sent(answer) for p, (_, answer) in enumerate(shared)}
    clock.stop("shares", "hospitals")
    deliveries = sums.deliver(roster, sealed)
    clock.stop("shares", "server")
    masked = [party.mask(shared[p][0], clock.sent(deliveries[p]), vectors[p]) for p in range(n)]
    clock.bytes += sum(vector.nbytes for _, sent in masked for vector in sent.values())
    clock.stop("vectors", "hospitals")
    arrived = {p: sent for p, (_, sent) in enumerate(masked[: n - dropouts])}
    request = sums.request(roster, tuple(deliveries), arrived)
    clock.stop("vectors", "server")
    reveals = {p: clock.sent(party.unmask(masked[p][0], clock.sent(request))) for p in request.survivors}
    clock.stop("unmask", "hospitals")
    total = sums.opened(roster, request, arrived, reveals).totals["trunk"]
    clock.stop("unmask", "server")
    mean, _ = written.decode(total, deltas[0])
    clock.stop("decode", "server")
    return clock, mean


def main() -> None:
    """Print milliseconds by phase, and the error of the mean."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hospitals", type=int, default=5)
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--dropouts", type=int, default=0)
    parser.add_argument("--bits", type=int, default=64, choices=(32, 64))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, left = options.hospitals, options.hospitals - options.dropouts
    draws = torch.Generator().manual_seed(0)
    deltas = [{"w": torch.randn(options.parameters, generator=draws) / 10} for _ in range(n)]
    clocks = []
    for _ in range(options.rounds + 1):
        clock, mean = one_round(deltas, Terms(bits=options.bits), options.dropouts)
        clocks.append(clock)
    weights = [100.0 + p for p in range(left)]
    began = time.process_time()
    plain = sum(w * deltas[p]["w"].clamp(-1, 1).double() for p, w in enumerate(weights)) / sum(weights)
    bare = time.process_time() - began
    print(f"{n} hospitals, {options.dropouts} drop out, {options.parameters:,} parameters, {options.bits} bits")
    print(f"{'phase':10} {'a hospital, ms':>15} {'server, ms':>11}")
    for phase in PHASES:
        ms = {s: 1e3 * statistics.median(c.spent[phase, s] for c in clocks[1:]) for s in ("hospitals", "server")}
        print(f"{phase:10} {ms['hospitals'] / n:15.2f} {ms['server']:11.2f}")
    whole = statistics.median(sum(c.spent.values()) for c in clocks[1:])
    print(f"whole round, all together: {whole:.3f} s; a plain weighted mean: {bare:.3f} s")
    print(f"bytes a hospital: {clocks[-1].bytes / n:,.0f}, {clocks[-1].bytes / n / options.parameters:.1f} a parameter")
    print(f"largest error of the mean: {(mean['w'].double() - plain).abs().max():.1e} (clip range 1)")


if __name__ == "__main__":
    main()

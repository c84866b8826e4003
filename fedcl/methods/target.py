"""Data-free generative replay: the server makes samples of old classes out of the merged model, hospitals replay them.

After Zhang et al. 2023 (TARGET, ICCV) and Babakniya et al. 2023 (MFCL, NeurIPS). At a stage's end the server trains a
generator G(z, k), z ~ N(0, I), k a class of those seen so far, against the merged model alone, minimising

    a_class CE(f(x), k) − a_spread H(mean f(x)) + a_statistics Σ_layers (‖μ − μ̂‖² + ‖σ² − σ̂²‖²)
    + a_smooth ‖x − blur(x)‖² − a_adversarial 1[argmax f = argmax s] T² KL(f(x) ‖ s(x)),      x = G(z, k),

where s is a student that learns to answer as f on what G makes. It then sends samples of each class, with the
model's answers to them, to every hospital, once. A hospital's loss is, with x' drawn from these and x its own,

    CE(f_new(x)) + λ T² KL(softmax(z_kept / T) ‖ softmax(f_old(x') / T)) + μ (o CE(g(x')) + n CE(g(x))) / (o + n),

f_new over the o + n classes' n new ones and f_old over the o that the model knew; g is f over all that its head has
open, with the trunk held. In heads of tasks' own, g(x) is f_new. Raw data, statistics and uploads play no part: the
generator sees nothing but the model. Works with the task known or not; keeps made-up samples at a hospital; sends
them, once a task.

From both: the class term, and a softmax of new classes alone, since made-up samples are told from real ones by other
things than their class. From TARGET: the adversarial term, distilling answers on made-up samples (its code leaves T²
out: its λ of 25 is 25 / T² here); `labels = 0` is its loss. From MFCL: H, and the term of μ. The statistics are of
layers that have any (BatchNorm; the trunks of fedcl have none, and then the term is 0).
Other than in the papers: G is told the class and trained from new weights (TARGET optimises z too, and meta-learns G;
MFCL lets the model name the class); the teacher's answers are those of the moment of making, by the model that the next
stage begins with, so that no hospital needs a copy of it; all classes are made anew after each stage, from the newest
model; distillation is not of features, and not on new samples (MFCL: both; `target+lwf` does the second); the average
over o and n is by classes (MFCL: by samples); samples are sent (MFCL: G, and hospitals make them).

References:
    Zhang, Chen, Zhuang, Lyu. TARGET: Federated Class-Continual Learning via Exemplar-Free Distillation. ICCV 2023.
        arXiv 2303.06937.
    Babakniya, Fabian, He, Soltanolkotabi, Avestimehr. A Data-Free Approach to Mitigate Catastrophic Forgetting in
        Federated Class Incremental Learning for Vision Tasks. NeurIPS 2023. arXiv 2311.07784.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedcl import plugins, rng
from fedcl.config import Config
from fedcl.contracts import Batch, Context, Memory, Method, Params, role
from fedcl.methods import _buffer
from fedcl.methods._generator import Classes, Generator, divergence, roughness, split, spread, untaught, watched

_CHUNK = 1024  # samples made at a time


@dataclass(frozen=True)
class Target(Method):
    """Data-free generative replay.

    Attributes:
        strength: λ of the distillation, ≥ 0; typically 1 to 25; a step with momentum diverges where it is too strong.
        labels: μ of the cross-entropy of new and made-up samples over all classes, ≥ 0; typically 0 to 3.
        split: new samples' own cross-entropy is over the new classes alone; else over those that `model.mask` opens,
            and μ's is of made-up samples only.
        frozen: μ's cross-entropy trains heads only.
        temperature: T, > 0; typically 2.
        samples: made of each class, ≥ 1; typically 20 to 1000.
        batch: of them drawn a step; 0 is as many as new ones.
        steps: of a generator's training, ≥ 1; typically 100 to 1000.
        generators: trained one after another from new weights, each makes a share of the samples; ≥ 1.
        lr: of the generator (Adam), > 0; typically 0.001 to 0.01.
        noise: length of z, ≥ 1; typically 32 to 256.
        width: channels, or hidden units, of the generator, ≥ 1; typically 16 to 128.
        size: samples of a step of the generator, ≥ 2.
        agree: a_class, ≥ 0; typically 1.
        spread: a_spread, ≥ 0; typically 0 to 1.
        statistics: a_statistics, ≥ 0; typically 1 to 10 with BatchNorm.
        smooth: a_smooth, ≥ 0, for images.
        adversarial: a_adversarial, ≥ 0; typically 0 to 1. 0 needs no student, which is half of the work.
    """

    strength: float = 2.0
    labels: float = 2.0
    split: bool = True
    frozen: bool = True
    temperature: float = 2.0
    samples: int = 100
    batch: int = 0
    steps: int = 100
    generators: int = 4
    lr: float = 0.002
    noise: int = 64
    width: int = 32
    size: int = 64
    agree: float = 1.0
    spread: float = 1.0
    statistics: float = 1.0
    smooth: float = 0.0
    adversarial: float = 0.0
    needs_past: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("strength", "labels", "batch", "agree", "spread", "statistics", "smooth", "adversarial"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be ≥ 0")
        for name in ("samples", "steps", "generators", "noise", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be ≥ 1")
        if self.temperature <= 0 or self.lr <= 0 or self.size < 2:
            raise ValueError(f"temperature = {self.temperature}, lr = {self.lr} must be > 0, size = {self.size} ≥ 2")

    def hooks(self) -> frozenset[str]:
        """None where nothing is replayed: λ = μ = 0."""
        if not self.strength and not self.labels:
            return frozenset()
        return super().hooks() if self.split else super().hooks() - {"loss"}

    def conventions(self) -> dict[str, object]:
        """λ means nothing without these."""
        return {
            "temperature": self.temperature,
            "factor": "T²",
            "reduction": "mean over samples",
            "over": "old outputs",
        }

    def unfit(self, config: Config) -> str:
        """The server has to have the whole model."""
        merger = config.federation.merger
        if plugins.stays(config.federation.aggregator, merger):
            return f"asks the server's model, which has no modules of tasks with federation.merger = {merger!r}"
        return ""

    def penalty(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """What is not the new classes' own: the terms of λ and of μ, a 0-d tensor."""
        if "y" not in memory:
            return batch.x.new_zeros(())
        drawn, _ = _buffer.draw(ctx, memory, self.batch or len(batch.y))
        found = ctx.each(params, drawn["x"], drawn["task"])
        total = self.strength * divergence(drawn["logits"], found, self.temperature).mean()
        if not self.labels:
            return total
        if self.frozen:
            params = {name: value if role(name) else value.detach() for name, value in params.items()}
            found = ctx.each(params, drawn["x"], drawn["task"])
        old = nn.functional.cross_entropy(found, drawn["y"])
        if not self.split:
            return total + self.labels * old
        index = torch.full_like(batch.y, ctx.task.index)
        new = nn.functional.cross_entropy(ctx.each(params, batch.x, index), batch.y)
        share = memory["kinds"] / (memory["kinds"] + len(ctx.task.classes))
        return total + self.labels * (share * old + (1 - share) * new)

    def loss(self, ctx: Context, params: Params, batch: Batch, memory: Memory) -> Tensor:
        """Cross-entropy of new samples over the new classes alone, once there are old ones."""
        logits = ctx.forward(params, batch.x)
        if "y" in memory:
            own = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
            own[list(ctx.labels(ctx.task))] = True
            logits = logits.masked_fill(~own, -torch.inf)
        return nn.functional.cross_entropy(logits, batch.y)

    def synthesize(self, ctx: Context, params: Params, state: Memory) -> tuple[Memory, Memory]:
        """Samples of each class so far, with the merged model's answers."""
        classes = Classes(ctx)
        kinds = torch.arange(len(classes.task), device=classes.task.device)
        made = []
        for place in range(min(self.generators, self.samples)):
            generator = self._trained(ctx, params, classes)
            kind = kinds.repeat(len(range(place, self.samples, self.generators)))
            with torch.no_grad():
                for part in torch.split(kind, _CHUNK):
                    x = generator(self._noise(ctx, part), part)
                    made.append((x, part, classes.ask(params, x, part)))
        x, kind, logits = (torch.cat(parts) for parts in zip(*made, strict=True))
        said = {"x": x, "y": classes.label[kind], "task": classes.task[kind], "logits": logits}
        return state, said | {"filled": torch.tensor(len(x)), "kinds": torch.tensor(len(kinds))}

    def receive(self, broadcast: Memory, memory: Memory) -> Memory:
        """The newest samples, instead of those before."""
        return dict(broadcast)

    def objective(
        self, ctx: Context, params: Params, classes: Classes, x: Tensor, kind: Tensor, student: Params
    ) -> Tensor:
        """What a generator minimises on the samples x [B, …] that it made of these kinds [B], a 0-d tensor."""
        with watched(ctx.net) as gaps:
            logits = classes.ask(params, x, kind)
        loss = self.agree * nn.functional.cross_entropy(logits, classes.label[kind])
        if self.spread:
            loss = loss + self.spread * spread(logits.softmax(1), classes.columns[kind])
        if self.statistics and gaps:
            loss = loss + self.statistics * torch.stack(gaps).sum()
        if self.smooth and x.dim() == 4:
            loss = loss + self.smooth * roughness(x)
        if self.adversarial:
            answers = classes.ask({name: value.detach() for name, value in student.items()}, x, kind)
            alike = (answers.argmax(1) == logits.argmax(1)).to(x)
            loss = loss - self.adversarial * (alike * divergence(logits, answers, self.temperature)).mean()
        return loss

    def _trained(self, ctx: Context, params: Params, classes: Classes) -> Generator:
        """A generator, and beside it the student whose ignorance it seeks."""
        count, device = len(classes.task), classes.task.device
        with rng.torch_global_from(split(ctx)):
            generator = Generator(ctx.shape, count, self.noise, self.width, ctx.bounds).to(device)
        student = untaught(ctx) if self.adversarial else {}
        optimizer = torch.optim.Adam(generator.parameters(), self.lr)
        follower = torch.optim.Adam(student.values(), self.lr) if student else None
        for step in range(self.steps):
            kind = (torch.arange(self.size, device=device) + step * self.size) % count
            x = generator(self._noise(ctx, kind), kind)
            optimizer.zero_grad()
            self.objective(ctx, params, classes, x, kind, student).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if follower:
                shown = x.detach()
                with torch.no_grad():
                    target = classes.ask(params, shown, kind)
                follower.zero_grad()
                loss = divergence(target, classes.ask(student, shown, kind), self.temperature).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                follower.step()
        return generator.eval()

    def _noise(self, ctx: Context, like: Tensor) -> Tensor:
        return torch.randn(len(like), self.noise, generator=ctx.generator).to(like.device)

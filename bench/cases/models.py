"""A whole training step of a model, ours and MultiVae's around the same networks: gradients, backward, Adam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.case import SUBJECT, Call, Case, Contender, Family
from bench.contenders import multivae
from mmebm.models import MODELS, MVAE, MVTCAE, MMVAEPlus, MoPoE, MultimodalVAE
from mmebm.priors import StandardLaplace, StandardNormal
from mmebm.sampling.streams import Stream

EXPERTS, SEED = 5, 3
# What a model's objective does besides its networks.
SERVED = {
    "mvae": "product_of_experts",
    "mvtcae": "product_of_experts",
    "mopoe": "subset_experts",
    "mmvaeplus": "mixture_log_prob",
}
# How many rows a decoder takes for one of the batch.
DECODED = {MVAE: 2, MVTCAE: 1, MoPoE: 1, MMVAEPlus: EXPERTS}
# Five styles of 16 x 16 digits and PolyMNIST; with private latents half of d is private.
SIZES = tuple({"model": m, "shape": s, "d": d} for s, d in (((3, 16, 16), 16), ((3, 28, 28), 64)) for m in SERVED)


@dataclass(frozen=True)
class Batch:
    model: MultimodalVAE
    inputs: dict[str, Tensor]

    def as_(self, dtype: torch.dtype) -> Batch:
        return Batch(deepcopy(self.model).to(dtype), {m: x.to(dtype) for m, x in self.inputs.items()})


def batch(model: str, shape: tuple[int, ...], d: int, h: int, B: int) -> Batch:
    shapes = {f"m{i}": shape for i in range(EXPERTS)}
    generator = torch.Generator().manual_seed(SEED)
    inputs = {m: torch.rand(B, *shape, generator=generator) for m in shapes}
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        if model == "mmvaeplus":
            private = d // 2
            prior = StandardLaplace(d - private)
            return Batch(MODELS[model](shapes, prior, private_dim=private, hidden=(h,), networks="mlp"), inputs)
        return Batch(MODELS[model](shapes, StandardNormal(d), hidden=(h,), networks="mlp"), inputs)


def stepped(parameters: list[nn.Parameter], loss: Callable[[], Tensor], fused: bool | None = None) -> Call:
    optimiser = torch.optim.Adam(parameters, lr=1e-4, fused=fused)

    def call() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
        return value.detach()

    return call


def _ours(x: Batch) -> Call:
    model, stream = deepcopy(x.model), Stream(SEED)
    return stepped(model.model_parameters(), lambda: model.objective(x.inputs, stream).loss, fused=True)


def _theirs(x: Batch) -> Call:
    theirs = multivae.model(x.model, exact=False)
    return stepped([p for p in theirs.parameters() if p.requires_grad], multivae.loss(theirs, x.inputs))


def _networks(x: Batch) -> Call:
    """The same encoders and decoders on as many rows, their gradients and Adam; no objective."""
    model = deepcopy(x.model)
    copies = DECODED[type(model)]

    def loss() -> Tensor:
        outputs = []
        for m, given in x.inputs.items():
            loc, raw = model.encoders[m](given)
            latents, outputs = [loc], [*outputs, raw.sum()]
            if isinstance(model, MMVAEPlus):
                own, own_raw = model.private_encoders[m](given)
                latents, outputs = [own, loc], [*outputs, own_raw.sum()]
            outputs.append(model.decoders[m](torch.cat(latents, -1).repeat(copies, 1)).sum())
        return torch.stack(outputs).sum()

    return stepped([p for name, p in model.named_parameters() if name != "auxiliary"], loss, fused=True)


def _measured(loss: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What the gate compares: a loss, and its gradient as a whole, in units of its largest entry."""
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*parameters.values()])])
    return loss.detach(), gradient / gradient.abs().max()


def _objective(x: Batch) -> tuple[Tensor, list[Tensor]]:
    """Our loss, with the noise it drew; MoPoE's rows are decoded from the components that MultiVae takes."""
    if isinstance(x.model, MoPoE):
        x.model.components = lambda _, rows, *__: multivae.slices(EXPERTS, rows)  # type: ignore[method-assign]
    with multivae.recorded() as noise:
        loss = x.model.objective(x.inputs, Stream(SEED)).loss
    return loss, noise


def _ours_checked(x: Batch) -> Call:
    return lambda: _gradients(x.as_(torch.float32))


def _gradients(x: Batch) -> tuple[Tensor, ...]:
    loss, _ = _objective(x)
    named = dict(x.model.named_parameters())
    return _measured(loss, {name: p for name, p in named.items() if name != "auxiliary"})


def _theirs_checked(x: Batch) -> Call:
    def call() -> tuple[Tensor, ...]:
        own = x.as_(torch.float32)
        theirs = multivae.model(own.model)
        noise = multivae.as_asked(own.model, _objective(own)[1])
        with multivae.replayed(noise):
            loss = multivae.loss(theirs, own.inputs)()
        copies = {name: copy for name, _, copy in multivae.parameters(own.model, theirs)}
        ordered = {name: copies[name] for name, _ in own.model.named_parameters() if name in copies}
        rows = len(next(iter(own.inputs.values())))
        return _measured(loss / (rows if multivae.summed(own.model) else 1), ordered)

    return call


def training_step(model: str, shape: tuple[int, ...], d: int, h: int = 400, B: int = 128) -> Case:
    """Plain p_0: standard normal, Laplace for MMVAE+; K = 1. Adam as each library's trainer makes it: fused in ours."""
    sizes: dict[str, int | str] = {"model": model, "M": EXPERTS, "x": "x".join(map(str, shape)), "d": d, "h": h, "B": B}
    return Case(
        name=f"model/{model}/{sizes['x']}",
        operator=SERVED[model],
        sizes=sizes,
        inputs=lambda: batch(model, shape, d, h, B),
        contenders={
            SUBJECT: Contender(_ours, checked=_ours_checked),
            "networks alone": Contender(_networks, gate="none"),
            "MultiVae": Contender(_theirs, checked=_theirs_checked, absent=multivae.absent, version=multivae.version),
        },
        work=1.0,
        unit="step",
        oracle=lambda x: _gradients(x.as_(torch.float64)),
        tolerance=(1e-4, 1e-4),
        outliers=1e-4,  # a Laplace likelihood's gradient jumps where a reconstruction meets the data
    )


FAMILIES = tuple(
    Family(
        training_step,
        tuple(size for size in SIZES if size["model"] == model),
        {"model": model, "shape": (2, 3, 3), "d": 4, "h": 7, "B": 40},
    )
    for model in SERVED
)

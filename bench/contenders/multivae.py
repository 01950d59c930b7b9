"""MultiVae's models around our networks: their objective, also on our noise, and their evaluator of coherence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from bench.case import Call
from bench.contenders import peers
from mmebm.kernels import ops
from mmebm.models import MMVAE, MVAE, MVTCAE, MMVAEPlus, MoPoE, MultimodalVAE
from mmebm.posteriors import scale_from

KINDS: dict[type[MultimodalVAE], str] = {
    MVAE: "MVAE",
    MMVAE: "MMVAE",
    MMVAEPlus: "MMVAEPlus",
    MoPoE: "MoPoE",
    MVTCAE: "MVTCAE",
}
absent = peers.absent("multivae.models")
version = peers.version("multivae")
# MVAE's beta grows over the first epochs: from this one on it is whole.
_WARM = 1000


def model(ours: MultimodalVAE, *, exact: bool = True) -> Any:
    """MultiVae's model of the same kind around copies of our networks, with our settings; Laplace likelihoods.

    `exact` puts in between what makes its values ours: the scale our posteriors make of an encoder's output, our order
    of private and shared latents, p(z) and p(w) of scale 1 (theirs has 1 + 1e-6). Without it, theirs is all there is.
    """
    name = KINDS[type(ours)]
    module = peers.load("multivae.models")
    kind, configuration = getattr(module, name), getattr(module, f"{name}Config")
    options: dict[str, Any] = {}
    if isinstance(ours, MMVAE | MMVAEPlus):
        normal = "normal_with_softplus" if isinstance(ours, MMVAEPlus) else "normal"
        options["prior_and_posterior_dist"] = "laplace_with_softmax" if ours.posterior_law == "laplace" else normal
        options |= {"K": ours.samples, "loss": "dreg_looser" if ours.estimator == "dreg" else "iwae_looser"}
    if isinstance(ours, MMVAE):
        options["learn_prior"] = False
    if isinstance(ours, MMVAEPlus):
        options["modalities_specific_dim"] = ours.private_dim
    if isinstance(ours, MVAE):
        options["k"] = ours.random_subsets
    if isinstance(ours, MVTCAE):
        options["alpha"] = ours.alpha
    config = configuration(
        n_modalities=len(ours.modalities),
        latent_dim=ours.prior.dim,
        input_dims=dict(ours.shapes),
        decoders_dist=dict.fromkeys(ours.modalities, "laplace"),
        decoder_dist_params={m: {"scale": ours.likelihoods[m].scale} for m in ours.modalities},
        uses_likelihood_rescaling=True,
        rescale_factors=dict(ours.rescale),
        beta=ours.beta,
        **options,
    )
    if exact and isinstance(ours, MMVAE | MMVAEPlus):
        kind = type(name, (kind,), {"pz_params": property(_standard)})
    theirs = kind(config, *_networks(ours, exact))
    if isinstance(ours, MMVAEPlus):
        with torch.no_grad():
            for m, raw in zip(ours.modalities, ours.auxiliary, strict=True):
                theirs.logvars_priors[m].copy_(raw)
    return theirs.to(next(ours.encoders.parameters()).dtype)


def _standard(theirs: Any) -> tuple[Tensor, Tensor]:
    mean = theirs.mean_priors["shared"] if hasattr(theirs, "mean_priors") else theirs.prior_mean
    return mean, torch.ones_like(mean)


def _networks(ours: MultimodalVAE, exact: bool) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    bases = peers.load("pythae.models.nn.base_architectures")
    output = peers.load("pythae.models.base.base_utils").ModelOutput
    # Of a normal posterior MultiVae takes exp(raw / 2), but for MMVAE+, where it can take our softplus.
    converted = exact and ours.posterior_law == "normal" and not isinstance(ours, MMVAEPlus)
    private = ours.private_dim if exact else 0

    class Encoder(bases.BaseEncoder):  # type: ignore[misc, name-defined]
        def __init__(self, shared: nn.Module, private: nn.Module | None) -> None:
            super().__init__()
            self.shared, self.private = deepcopy(shared), deepcopy(private)
            self.latent_dim, self.style_dim = ours.prior.dim, ours.private_dim

        def forward(self, x: Tensor) -> Any:
            loc, raw = self.shared(x)
            found = {"embedding": loc, "log_covariance": 2.0 * scale_from("normal", raw).log() if converted else raw}
            if self.private is not None:
                found |= dict(zip(("style_embedding", "style_log_covariance"), self.private(x), strict=True))
            return output(**found)

    class Decoder(bases.BaseDecoder):  # type: ignore[misc, name-defined]
        def __init__(self, shared: nn.Module) -> None:
            super().__init__()
            self.shared, self.latent_dim = deepcopy(shared), ours.private_dim + ours.prior.dim

        def forward(self, u: Tensor) -> Any:
            return output(reconstruction=self.shared(u.roll(private, -1) if private else u))

    owned = dict(ours.private_encoders.items()) if isinstance(ours, MMVAEPlus) else {}
    encoders = {m: Encoder(ours.encoders[m], owned.get(m)) for m in ours.modalities}
    return encoders, {m: Decoder(ours.decoders[m]) for m in ours.modalities}


def parameters(ours: MultimodalVAE, theirs: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every parameter of our networks by name, and the one of theirs that is its copy; r_n's scales by modality."""
    for m in ours.modalities:
        parts = [(f"encoders.{m}", ours.encoders[m], theirs.encoders[m].shared)]
        parts += [(f"decoders.{m}", ours.decoders[m], theirs.decoders[m].shared)]
        if isinstance(ours, MMVAEPlus):
            parts += [(f"private_encoders.{m}", ours.private_encoders[m], theirs.encoders[m].private)]
        for name, mine, copy in parts:
            for (key, p), q in zip(mine.named_parameters(), copy.parameters(), strict=True):
                yield f"{name}.{key}", p, q


# Shared noise --------------------------------------------------------------------------------------------------------


@contextmanager
def recorded() -> Iterator[list[Tensor]]:
    """The noise that our code draws, [steps, rows, d] for each draw."""
    drawn: list[Tensor] = []
    draw = ops.draw

    def kept(*arguments: Any, **options: Any) -> Tensor:
        drawn.append(draw(*arguments, **options))
        return drawn[-1]

    ops.draw = kept
    try:
        yield drawn
    finally:
        ops.draw = draw


def slices(experts: int, rows: int) -> Tensor:
    """The component from which MultiVae's MoPoE decodes each row of complete data, as we count them: int64 [B].

    Equal slices of the batch, in the order of its subsets; the last takes what is left, or all of a small batch.
    """
    subsets = peers.multivae_order(experts).argsort()
    each = int(torch.floor(rows * (1.0 / len(subsets) * torch.ones(()))))
    place = torch.arange(rows) // each if each else torch.full((rows,), len(subsets))
    return subsets[place.clamp_max(len(subsets) - 1)]


def as_asked(ours: MultimodalVAE, drawn: Sequence[Tensor]) -> list[Tensor]:
    """Our draws in the order in which MultiVae's code asks for its own."""
    count, samples, rows = len(ours.modalities), ours.samples, drawn[0].shape[1]
    if isinstance(ours, MMVAE):
        return list(drawn[0].view(samples, count, rows, -1).unbind(1))
    if isinstance(ours, MMVAEPlus):
        z, w = (noise.view(samples, count, rows, -1) for noise in drawn[:2])
        cross = drawn[2].view(count, samples, count, rows, -1)  # of whom is decoded, K, from whose z
        others = [[cross[n, :, m] for n in range(count) if n != m] for m in range(count)]
        return [noise for m in range(count) for noise in (z[:, m], w[:, m], *others[m])]
    return list(drawn[0])


@contextmanager
def replayed(noise: Iterable[Tensor]) -> Iterator[None]:
    """torch's Normal and Laplace draw loc + scale * noise, of one tensor after the other. Errors: RuntimeError."""
    left = list(noise)

    def rsample(self: Any, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        if not left or left[0].numel() != shape.numel():
            raise RuntimeError(f"noise: expected {list(shape)}, got {list(left[0].shape) if left else 'no more'}")
        return self.loc + self.scale * left.pop(0).view(shape).to(self.loc.dtype)

    kinds = (torch.distributions.Normal, torch.distributions.Laplace)
    before = [kind.rsample for kind in kinds]
    try:
        for kind in kinds:
            kind.rsample = rsample
        yield
        if left:
            raise RuntimeError(f"noise: {len(left)} tensors are left")
    finally:
        for kind, method in zip(kinds, before, strict=True):
            kind.rsample = method


def summed(ours: MultimodalVAE) -> bool:
    """Whether MultiVae's loss is summed over rows, where ours is their mean."""
    return isinstance(ours, MMVAE | MMVAEPlus)


# What is timed -------------------------------------------------------------------------------------------------------


def loss(theirs: Any, inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    """Its objective, of data that is complete."""
    batch = peers.load("multivae.data.datasets.base").MultimodalBaseDataset(dict(inputs))
    return lambda: theirs(batch, epoch=_WARM).loss


def coherence(
    theirs: Any,
    data: Mapping[str, Tensor],
    labels: Tensor,
    classifiers: Mapping[str, nn.Module],
    *,
    batch_size: int = 512,
) -> Call:
    """CoherenceEvaluator.cross_coherences: from each of the 2^M - 2 subsets to every modality outside it.

    For every subset it goes through the data anew: encode, one draw of z, decode and classify the modalities that are
    not in the subset, their accuracy averaged over classes. The call gives {"m0_m1_to_m2": accuracy}. It counts by
    `Accuracy` below instead of torchmetrics' class of the same meaning, and says nothing.
    """
    module = peers.load("multivae.metrics.coherences.coherences")
    module.MulticlassAccuracy = Accuracy
    config = peers.load("multivae.metrics.coherences.coherences_config").CoherenceEvaluatorConfig
    dataset = peers.load("multivae.data.datasets.base").MultimodalBaseDataset(dict(data), labels)
    evaluator = module.CoherenceEvaluator(
        theirs, dict(classifiers), dataset, eval_config=config(batch_size=batch_size, num_classes=int(labels.max()) + 1)
    )
    evaluator.logger.handlers.clear()
    evaluator.logger.propagate = False

    @torch.no_grad()
    def call() -> dict[str, float]:
        evaluator.metrics = {}
        evaluator.cross_coherences()
        return {name: float(value) for name, value in evaluator.metrics.items() if "_to_" in name}

    return call


class Accuracy:
    """As torchmetrics' MulticlassAccuracy(num_classes, average=None): the share of each class that is recognised."""

    def __init__(self, num_classes: int, average: None = None) -> None:
        self.right, self.all = (torch.zeros(num_classes, dtype=torch.int64) for _ in range(2))

    def to(self, device: Any) -> Accuracy:
        self.right, self.all = self.right.to(device), self.all.to(device)
        return self

    def __call__(self, scores: Tensor, labels: Tensor) -> None:
        hits = labels[scores.argmax(-1) == labels]
        self.right += torch.bincount(hits, minlength=len(self.right))
        self.all += torch.bincount(labels, minlength=len(self.all))

    def compute(self) -> Tensor:
        return self.right / self.all.clamp_min(1)

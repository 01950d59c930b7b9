"""What the models share: encoders, decoders, priors and generation. Objectives stand in the models' own files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmebm.kernels import checks
from mmebm.likelihoods import LIKELIHOODS, Likelihood
from mmebm.networks import MLPDecoder, MLPEncoder
from mmebm.posteriors import Diagonal, MixtureOfExperts, scale_from
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream, choose, rng_state

from .estimators import ESTIMATORS


@dataclass(frozen=True)
class Objective:
    """One evaluation of a model's objective on a batch.

    `loss` is to be minimised (mean over rows); `value` is the bound it stands for, which with an energy prior lacks
    -log Z(alpha). `z` [.., d] are the posterior samples, detached, and `weights` [..] what each one's energy weighs in
    the objective, summing to 1: the positives of the energy's update.
    """

    loss: Tensor
    value: Tensor
    z: Tensor
    weights: Tensor
    metrics: dict[str, Tensor]


class MultimodalVAE(nn.Module):
    """Encoders q_m(z|x_m), a prior on the shared z [d], decoders p(x_m|z), and how to generate with them.

    `shapes`: modality name -> shape. `likelihoods` and `rescale`: per modality, or one for all. `encoders` and
    `decoders` default to multilayer perceptrons of widths `hidden`. `samples` is K, `beta` multiplies the whole
    KL(q || p), the energy included; `estimator` one of elbo, iwae, dreg.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        prior: Prior | EnergyPrior,
        *,
        posterior: str = "laplace",
        likelihoods: Mapping[str, Likelihood] | None = None,
        rescale: Mapping[str, float] | None = None,
        hidden: Sequence[int] = (400,),
        encoders: Mapping[str, nn.Module] | None = None,
        decoders: Mapping[str, nn.Module] | None = None,
        samples: int = 1,
        estimator: str = "elbo",
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        if not shapes:
            raise ValueError("shapes: expected at least one modality, got none")
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator: expected one of {', '.join(ESTIMATORS)}, got {estimator!r}")
        if samples < 1:
            raise ValueError(f"samples: expected K >= 1, got {samples}")
        if not beta > 0:
            raise ValueError(f"beta: expected a number > 0, got {beta}")
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.modalities = list(self.shapes)
        self.prior, self.posterior_law = prior, posterior
        self.samples, self.estimator, self.beta = samples, estimator, beta
        self.likelihoods = dict(
            likelihoods or {m: LIKELIHOODS["laplace"](len(s), 0.75) for m, s in self.shapes.items()}
        )
        self.rescale = dict(rescale or dict.fromkeys(self.modalities, 1.0))
        for name, mapping in (("likelihoods", self.likelihoods), ("rescale", self.rescale)):
            self._check_names(name, mapping, complete=True)
        self.encoders = nn.ModuleDict(encoders or {m: MLPEncoder(s, prior.dim, hidden) for m, s in self.shapes.items()})
        self.decoders = nn.ModuleDict(
            decoders or {m: MLPDecoder(self.decoder_dim, s, hidden) for m, s in self.shapes.items()}
        )

    @property
    def decoder_dim(self) -> int:
        return self.prior.dim

    def objective(self, inputs: Mapping[str, Tensor], stream: Stream, *, energy_weight: float = 1.0) -> Objective:
        """The model's training objective on a batch {modality: [B, *shape]}; noise is taken from `stream`."""
        raise TypeError(f"{type(self).__name__} defines no objective")

    @torch.no_grad()
    def positives(self, inputs: Mapping[str, Tensor], stream: Stream) -> tuple[Tensor, Tensor | None]:
        """Posterior samples [K, M, B, d] with the weights their energies have in the objective (None: equal ones)."""
        if self.estimator == "elbo":  # needs no decoder
            return self.posterior(inputs).rsample(self.samples, stream), None
        objective = self.objective(inputs, stream)
        return objective.z, objective.weights

    def model_parameters(self) -> list[nn.Parameter]:
        """Everything but the prior: what the first of the two optimisers moves."""
        return [p for name, p in self.named_parameters() if not name.startswith("prior.")]

    def log_prior(self, z: Tensor, energy_weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """log p_0(z) - energy_weight E(z) and E(z), the prior's own parameters held fixed: [.., d] -> [..] twice."""
        if isinstance(self.prior, EnergyPrior):
            energy = self.prior.energy_of(z, frozen=True)
            return self.prior.reference_log_prob(z, frozen=True) - energy_weight * energy, energy
        log_p = self.prior.log_prob(z)
        return log_p, torch.zeros_like(log_p)

    def log_likelihood(self, name: str, x: Tensor, u: Tensor, lead: torch.Size) -> Tensor:
        """log p(x | u) of one modality in one decoder call: x [B, *shape], u [R, ..] with R = prod(lead) -> lead."""
        decoded = self.decoders[name](u).unflatten(0, lead)  # [K, M, B, *shape]
        return self.likelihoods[name].log_prob(x, decoded)

    def measured(
        self, q: MixtureOfExperts, log_x: Mapping[str, Tensor], kl_reference: Tensor, energy: Tensor
    ) -> dict[str, Tensor]:
        """Scalars for the log: log-likelihoods, KL(q || p_0), E_q[E] and the posterior's root mean square.

        About 0, as that of the chains is: a posterior that drifts as a whole must show.
        """
        with torch.no_grad():
            metrics = {f"log_likelihood/{n}": value.mean() for n, value in log_x.items()}
            metrics |= {"kl_reference": kl_reference.mean(), "energy": energy.mean()}
            law_variance = 2.0 if self.posterior_law == "laplace" else 1.0
            square = q.experts.loc.square() + law_variance * q.experts.scale.square()
            return metrics | {"posterior_scale": square.mean().sqrt()}

    # Inference -------------------------------------------------------------------------------------------------------

    def posterior(self, inputs: Mapping[str, Tensor]) -> MixtureOfExperts:
        """q(z|X), one expert for each modality in `inputs`, in the model's order."""
        self.check_batch(inputs)
        outputs = [self.encoders[m](inputs[m]) for m in self.modalities if m in inputs]
        loc, raw = (torch.stack(each) for each in zip(*outputs, strict=True))  # [M, B, d]
        return MixtureOfExperts(Diagonal(loc, scale_from(self.posterior_law, raw), self.posterior_law))

    @torch.no_grad()
    def encode(
        self, inputs: Mapping[str, Tensor], cond_mod: str | Iterable[str] | None = None, *, seed: int | None = None,
        mean: bool = False, first_row: int = 0,
    ) -> Tensor:  # fmt: skip
        """One draw of q(z | x of `cond_mod`) per row, [B, d]; of a mixture's components one is chosen per row.

        `first_row` names the first row's noise, here and below, so that a batch can be split anywhere.
        """
        self._check_names("inputs", inputs)
        names = self._names("cond_mod", cond_mod, default=[m for m in self.modalities if m in inputs])
        missing = [m for m in names if m not in inputs]
        if missing:
            raise ValueError(f"inputs: expected the modalities of cond_mod, missing {', '.join(missing)}")
        mixture = self.posterior({m: inputs[m] for m in names})
        for m in names:
            bad = (~torch.isfinite(inputs[m].flatten(1))).any(1).nonzero().flatten()
            if len(bad):
                raise ValueError(f"inputs[{m!r}]: expected finite values, got NaN or infinity in row {int(bad[0])}")
        stream = Stream(int(rng_state(seed)[0]), device=mixture.experts.loc.device, first_chain=first_row)
        z = mixture.experts.loc if mean else mixture.rsample(1, stream)[0]  # [M, B, d]
        rows = torch.arange(z.shape[1], device=z.device)
        return z[choose(stream.take(1), len(rows), len(z)), rows]

    # Generation ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(
        self, z: Tensor, gen_mod: str | Iterable[str] | None = None, *, seed: int | None = None, first_row: int = 0
    ) -> dict[str, Tensor]:
        """Likelihood means of each modality from z [N, d]; private latents, where the model has them, from p(w)."""
        names = self._names("gen_mod", gen_mod, default=self.modalities)
        checks.tensor("z", z, (None, self.prior.dim))
        u = self.decoder_inputs(z, int(rng_state(seed)[0]), first_row)
        return {m: self.likelihoods[m].mean(self.decoders[m](u[m])) for m in names}

    def decoder_inputs(self, z: Tensor, seed: int, first_row: int = 0) -> dict[str, Tensor]:
        """What every decoder takes for shared latents z [N, d]."""
        return dict.fromkeys(self.modalities, z)

    def own_latents(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The middle of each given modality's private posterior [B, d_w], which its decoder takes first; none here."""
        return {}

    def reference(self) -> tuple[str, Tensor]:
        """The law and the scale [d] of p_0."""
        if isinstance(self.prior, EnergyPrior):
            return self.prior.reference, self.prior.reference_scale.detach()
        return self.prior.law, self.prior.scale

    @torch.no_grad()
    def generate(
        self, n_samples: int, gen_mod: str | Iterable[str] | None = None, *, steps: int | None = None,
        seed: int | None = None, first_row: int = 0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Joint samples {modality: [N, *shape]} (likelihood means); `steps` of the energy prior's chains."""
        checks.at_least("n_samples", n_samples, 0)
        seed = int(rng_state(seed)[0])
        if isinstance(self.prior, EnergyPrior):
            z = self.prior.sample(n_samples, steps=steps, seed=seed, first_chain=first_row)
        elif steps is None:
            z = self.prior.sample(n_samples, seed=seed, first_chain=first_row)
        else:
            raise ValueError(f"steps: {type(self.prior).__name__} is drawn without chains")
        return self.decode(z, gen_mod, seed=seed, first_row=first_row)

    @torch.no_grad()
    def cross_generate(
        self, inputs: Mapping[str, Tensor], cond_mod: str | Iterable[str], gen_mod: str | Iterable[str] | None = None,
        *, seed: int | None = None, first_row: int = 0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Each of `gen_mod` given `cond_mod`: z from the posterior, private latents from the prior."""
        seed = int(rng_state(seed)[0])
        z = self.encode(inputs, cond_mod, seed=seed, first_row=first_row)
        return self.decode(z, gen_mod, seed=seed, first_row=first_row)

    # Checks ----------------------------------------------------------------------------------------------------------

    def _check_names(self, argument: str, names: Iterable[str], complete: bool = False) -> None:
        names = list(names)
        unknown = [n for n in names if n not in self.shapes]
        if unknown:
            raise ValueError(
                f"{argument}: unknown modality {', '.join(unknown)}; this model has {', '.join(self.shapes)}"
            )
        if complete and (missing := [m for m in self.modalities if m not in names]):
            raise ValueError(f"{argument}: expected every modality, missing {', '.join(missing)}")

    def _names(self, argument: str, names: str | Iterable[str] | None, default: list[str]) -> list[str]:
        chosen = default if names is None else [names] if isinstance(names, str) else list(names)
        self._check_names(argument, chosen)
        if not chosen:
            raise ValueError(f"{argument}: expected at least one modality, got none")
        return chosen

    def check_batch(self, inputs: Mapping[str, Tensor], complete: bool = False) -> int:
        """The number of rows, once names, types, shapes and row counts are right; `complete`: all modalities, a row."""
        self._check_names("inputs", inputs, complete)
        if not inputs:
            raise ValueError("inputs: expected at least one modality, got none")
        for m, x in inputs.items():
            expected = f"inputs[{m!r}]: expected floating [B, {', '.join(map(str, self.shapes[m]))}]"
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise TypeError(f"{expected}, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
            if not x.dim() or tuple(x.shape[1:]) != self.shapes[m]:
                raise ValueError(f"{expected}, got {list(x.shape)}")
        rows = {m: x.shape[0] for m, x in inputs.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"inputs: expected equally many rows in every modality, got {rows}")
        if complete and not all(rows.values()):
            raise ValueError("inputs: expected at least one row, got none")
        return next(iter(rows.values()))

"""What the models share: encoders, decoders, priors and generation. Objectives stand in the models' own files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmebm.kernels import checks
from mmebm.likelihoods import LIKELIHOODS, Likelihood
from mmebm.networks import decoded, make_decoder, make_encoder
from mmebm.posteriors import Diagonal, MixtureOfExperts
from mmebm.priors import EnergyPrior, Prior
from mmebm.sampling.streams import Stream, choose, rng_state

from .estimators import ESTIMATORS
from .masks import Masks, encoded, mean_over, ranked


class SubsetDraws(NamedTuple):
    """z [C, B, d], and which of the C stands for each of S subsets in each row: int64 [S, B]."""

    z: Tensor
    of: Tensor


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
    `decoders` default to those of `networks` (one name, or one for each modality; "auto" goes by shape), of which
    multilayer perceptrons have widths `hidden`; any module serves that returns what those of `mmebm.networks` do.
    `samples` is K, `beta` multiplies the whole KL(q || p), the energy included; `estimator` one of elbo, iwae, dreg.

    `masks`, wherever they are taken, tell for each modality which rows have it, bool [B]; a modality that is not named
    is there in every row if it is among the inputs, and in none if it is not. What is missing is neither encoded nor
    decoded, its values are not looked at, and M is a row's own number of modalities. A row that has none adds nothing
    to an objective, and its posterior is the prior.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        prior: Prior | EnergyPrior,
        *,
        posterior: str = "laplace",
        likelihoods: Mapping[str, Likelihood] | None = None,
        rescale: Mapping[str, float] | None = None,
        networks: str | Mapping[str, str] = "auto",
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
        self.networks = {m: "auto" for m in self.modalities} | (
            dict.fromkeys(self.modalities, networks) if isinstance(networks, str) else dict(networks)
        )
        self._check_names("networks", self.networks)
        self.hidden = tuple(hidden)
        self.encoders = nn.ModuleDict(encoders or self._new_encoders(prior.dim))
        self.decoders = nn.ModuleDict(
            decoders
            or {
                m: make_decoder(self.networks[m], s, self.private_dim + prior.dim, self.hidden, self.private_dim)
                for m, s in self.shapes.items()
            }
        )

    def _new_encoders(self, dim: int, private: bool = False) -> dict[str, nn.Module]:
        return {m: make_encoder(self.networks[m], s, dim, self.hidden, private) for m, s in self.shapes.items()}

    @property
    def private_dim(self) -> int:
        """Of every modality's private latents, which a decoder takes first."""
        return 0

    def objective(
        self, inputs: Mapping[str, Tensor], stream: Stream, *, masks: Masks = None, energy_weight: float = 1.0
    ) -> Objective:
        """The model's training objective on a batch {modality: [B, *shape]}; noise is taken from `stream`."""
        raise TypeError(f"{type(self).__name__} defines no objective")

    @torch.no_grad()
    def positives(
        self, inputs: Mapping[str, Tensor], stream: Stream, *, masks: Masks = None
    ) -> tuple[Tensor, Tensor | None]:
        """Posterior samples [K, M, B, d] with the weights their energies have in the objective (None: equal ones)."""
        if self.estimator == "elbo":  # needs no decoder
            q = self.posterior(inputs, masks)
            z = q.rsample(self.samples, stream)
            return z, None if q.present is None else q.shares().expand(z.shape[:-1]) / self.samples
        objective = self.objective(inputs, stream, masks=masks)
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

    def decoder_output(self, name: str, u: Tensor) -> Tensor:
        """What the decoder of a modality gives for u [R, ..]: [R, *shape]."""
        return decoded(self.decoders[name](u))

    def log_likelihood(self, name: str, x: Tensor, u: Tensor, lead: torch.Size, where: Tensor | None = None) -> Tensor:
        """log p(x | u) of one modality in one decoder call: x [B, *shape], u [R, ..] with R = prod(lead) -> lead.

        0, and not computed, where `where` (bool, broadcast to lead) is False.
        """
        if where is None:
            return self.likelihoods[name].log_prob(x, self.decoder_output(name, u).unflatten(0, lead))
        at = where.expand(lead).flatten().nonzero().flatten()
        seen = self.likelihoods[name].log_prob(x[at % lead[-1]], self.decoder_output(name, u[at]))
        return seen.new_zeros(lead.numel()).index_copy(0, at, seen).view(lead)

    def pairs(self, inputs: Mapping[str, Tensor], present: Tensor | None) -> dict[str, Tensor | None]:
        """For each modality among the inputs, of which experts and rows it is decoded: bool [C, B], None for all."""
        names = [m for m in self.modalities if m in inputs]
        if present is None:
            return dict.fromkeys(names)
        return {m: present & seen for m, seen in zip(names, present, strict=True)}

    def measured(
        self,
        q: MixtureOfExperts,
        log_x: Mapping[str, Tensor],
        kl_reference: Tensor,
        energy: Tensor,
        wheres: Mapping[str, Tensor | None] | None = None,
    ) -> dict[str, Tensor]:
        """Scalars for the log: log-likelihoods, KL(q || p_0), E_q[E] and the posterior's root mean square.

        The first three of each are [.., C, B] by component and row, or [.., B]; `wheres` tells of log_x what was there.
        The last is about 0, as that of the chains is: a posterior that drifts as a whole must show.
        """
        with torch.no_grad():
            metrics = {f"log_likelihood/{n}": mean_over(v, (wheres or {}).get(n)) for n, v in log_x.items()}
            metrics |= {"kl_reference": mean_over(kl_reference, q.present), "energy": mean_over(energy, q.present)}
            law_variance = 2.0 if self.posterior_law == "laplace" else 1.0
            square = q.experts.loc.square() + law_variance * q.experts.scale.square()
            return metrics | {"posterior_scale": mean_over(square.mean(-1), q.present).sqrt()}

    # Inference -------------------------------------------------------------------------------------------------------

    def experts(
        self, encoders: nn.ModuleDict, inputs: Mapping[str, Tensor], masks: Masks = None
    ) -> tuple[Diagonal, Tensor | None]:
        """What `encoders` make of the inputs, [C, B, d] for the C modalities among them in the model's order.

        And who has them, bool [C, B], or None where all rows have all: experts of what is missing are standard.
        """
        names = [m for m in self.modalities if m in inputs]
        present = None if masks is None else self.presence(inputs, masks)
        chosen = [encoders[m] for m in names], [inputs[m] for m in names]
        return encoded(*chosen, present, self.posterior_law), present

    def posterior(self, inputs: Mapping[str, Tensor], masks: Masks = None) -> MixtureOfExperts:
        """q(z|X), one expert for each modality in `inputs`, in the model's order."""
        self.check_batch(inputs, masks)
        return MixtureOfExperts(*self.experts(self.encoders, inputs, masks))

    def conditional(self, inputs: Mapping[str, Tensor], masks: Masks = None) -> MixtureOfExperts:
        """What z is drawn from when modalities are generated from those in `inputs`."""
        return self.posterior(inputs, masks)

    def presence(self, inputs: Mapping[str, Tensor], masks: Masks) -> Tensor:
        """Who has each of the modalities among the inputs, in the model's order: bool [C, B]."""
        names = [m for m in self.modalities if m in inputs]
        first = inputs[names[0]]
        everywhere = torch.ones(len(first), dtype=torch.bool, device=first.device)
        return torch.stack([(masks or {}).get(m, everywhere) for m in names])

    @torch.no_grad()
    def encode(
        self, inputs: Mapping[str, Tensor], cond_mod: str | Iterable[str] | None = None, *, masks: Masks = None,
        seed: int | None = None, mean: bool = False, first_row: int = 0,
    ) -> Tensor:  # fmt: skip
        """One draw per row, [B, d]: of q(z|X), or of what z is generated from given `cond_mod`.

        Of a mixture's components one is chosen per row; a row that has none of the modalities is drawn from the prior.
        `mean` takes the component's mean. `first_row` names the first row's noise, here and below, so that a batch can
        be split anywhere.
        """
        self._check_names("inputs", inputs)
        names = self._names("cond_mod", cond_mod, default=[m for m in self.modalities if m in inputs])
        missing = [m for m in names if m not in inputs]
        if missing:
            raise ValueError(f"inputs: expected the modalities of cond_mod, missing {', '.join(missing)}")
        given, masks = {m: inputs[m] for m in names}, self._masks_of(masks, names)
        rows = self.check_batch(given, masks)
        for m in names:
            bad = (~torch.isfinite(inputs[m].flatten(1))).any(1)
            bad = (bad if masks is None or m not in masks else bad & masks[m]).nonzero().flatten()
            if len(bad):
                raise ValueError(f"inputs[{m!r}]: expected finite values, got NaN or infinity in row {int(bad[0])}")
        nobody = None if masks is None else ~self.presence(given, masks).any(0)
        seed = int(rng_state(seed)[0])
        if nobody is not None and bool(nobody.all()):
            return self._prior_draws(rows, None, seed, first_row)
        mixture = (self.posterior if cond_mod is None else self.conditional)(given, masks)
        stream = Stream(seed, device=mixture.experts.loc.device, first_chain=first_row)
        z = mixture.experts.loc if mean else mixture.rsample(1, stream)[0]  # [C, B, d]
        if mixture.present is None:
            component = choose(stream.take(1), rows, len(z))
        else:
            unit = choose(stream.take(1), rows, 1 << 24).double() / (1 << 24)
            component = ranked(mixture.present, (unit * mixture.present.sum(0)).long())
        z = z[component, torch.arange(rows, device=z.device)]
        if nobody is None or not bool(nobody.any()):
            return z
        return torch.where(nobody.unsqueeze(-1), self._prior_draws(rows, None, seed, first_row), z)

    @torch.no_grad()
    def subset_draws(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[int], stream: Stream, masks: Masks = None
    ) -> SubsetDraws:
        """One draw of what is generated from, for every subset of modalities (bit m for the m-th) and row.

        Each encoder runs once. Of a mixture a subset's draw is that of one of its members, so that subsets share them;
        rows that lack a member draw from the others.
        """
        q = self.posterior(inputs, masks)
        z = q.rsample(1, stream)[0]  # [M, B, d]
        return SubsetDraws(z, self._one_of_each(q, [[s >> m & 1 for m in range(len(z))] for s in subsets], stream))

    def _one_of_each(self, q: MixtureOfExperts, members: Sequence[Sequence[int]], stream: Stream) -> Tensor:
        """A component of q for every set of them (a row of `members`, [S][C]) and row, chosen uniformly: [S, B]."""
        rows, device = q.experts.loc.shape[1], q.experts.loc.device
        chosen = torch.tensor(members, dtype=torch.bool, device=device).unsqueeze(-1)  # [S, C, 1]
        chosen = chosen.expand(-1, -1, rows) if q.present is None else chosen & q.present
        unit = torch.stack([choose(stream.take(1), rows, 1 << 24) for _ in members]).double() / (1 << 24)
        return torch.stack([ranked(c, (u * c.sum(0)).long()) for c, u in zip(chosen, unit, strict=True)])

    # Generation ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(
        self, z: Tensor, gen_mod: str | Iterable[str] | None = None, *, seed: int | None = None, first_row: int = 0
    ) -> dict[str, Tensor]:
        """Likelihood means of each modality from z [N, d]; private latents, where the model has them, from p(w)."""
        names = self._names("gen_mod", gen_mod, default=self.modalities)
        checks.tensor("z", z, (None, self.prior.dim))
        u = self.decoder_inputs(z, int(rng_state(seed)[0]), first_row)
        return {m: self.likelihoods[m].mean(self.decoder_output(m, u[m])) for m in names}

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
        return self.decode(
            self._prior_draws(n_samples, steps, seed, first_row), gen_mod, seed=seed, first_row=first_row
        )

    def _prior_draws(self, rows: int, steps: int | None, seed: int, first_row: int) -> Tensor:
        if isinstance(self.prior, EnergyPrior):
            return self.prior.sample(rows, steps=steps, seed=seed, first_chain=first_row)
        if steps is not None:
            raise ValueError(f"steps: {type(self.prior).__name__} is drawn without chains")
        return self.prior.sample(rows, seed=seed, first_chain=first_row)

    @torch.no_grad()
    def cross_generate(
        self, inputs: Mapping[str, Tensor], cond_mod: str | Iterable[str], gen_mod: str | Iterable[str] | None = None,
        *, masks: Masks = None, seed: int | None = None, first_row: int = 0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Each of `gen_mod` given `cond_mod`: z from the posterior, private latents from the prior."""
        seed = int(rng_state(seed)[0])
        z = self.encode(inputs, cond_mod, masks=masks, seed=seed, first_row=first_row)
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

    def _masks_of(self, masks: Masks, names: Iterable[str]) -> Masks:
        """The masks of these modalities alone; None where they lack nothing."""
        if masks is None:
            return None
        self._check_names("masks", masks)
        return {m: masks[m] for m in names if m in masks} or None

    def check_batch(self, inputs: Mapping[str, Tensor], masks: Masks = None, complete: bool = False) -> int:
        """The number of rows, once names, types, shapes and row counts are right; `complete`: all modalities, a row.

        With masks, a modality may also be missing altogether.
        """
        self._check_names("inputs", inputs, complete and masks is None)
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
        count = next(iter(rows.values()))
        for m, mask in (masks or {}).items():
            self._check_names("masks", [m])
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (count,):
                got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
                raise ValueError(f"masks[{m!r}]: expected bool [{count}], got {got}")
            if m not in inputs and bool(mask.any()):
                raise ValueError(f"masks[{m!r}]: expected the modality among the inputs, they have {', '.join(inputs)}")
        return count

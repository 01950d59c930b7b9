"""DReG by its gradients: weighted by w outside the proposals, by w^2 along their paths, densities of q held fixed.

d loss / d theta = -(1 / M B) sum_{m,b,k} w_k d log w_k / d theta        decoders, auxiliary priors
d loss / d phi   = -(1 / M B) sum_{m,b,k} w_k^2 (d log w_k / d z) (d z / d phi)      encoders, q_j detached
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Laplace, Normal

from mmebm import likelihoods
from mmebm.energy import EnergyMLP
from mmebm.kernels import ops
from mmebm.models import MMVAE, MMVAEPlus, MultimodalVAE
from mmebm.models.estimators import estimate
from mmebm.priors import EnergyPrior, StandardLaplace, StandardNormal
from mmebm.sampling import Stream

SHAPES = {"a": (1, 3, 3), "b": (4,)}
NAMES = list(SHAPES)
M, K, B, D, D_W, BETA = 2, 3, 2, 3, 2, 1.5
RESCALE = {"a": 0.4, "b": 0.7}
SEED = 17
LAWS = {"laplace": Laplace, "normal": Normal}


def tiny(name: str, prior: str, posterior: str, estimator: str = "dreg") -> MultimodalVAE:
    private = {"private_dim": D_W} if name == "mmvaeplus" else {}
    priors = {"laplace": StandardLaplace(D), "energy": EnergyPrior(EnergyMLP(D, (8,)), "laplace", bound=2.0)}
    model = {"mmvae": MMVAE, "mmvaeplus": MMVAEPlus}[name](
        SHAPES, priors[prior], likelihoods={"a": likelihoods.Laplace(3), "b": likelihoods.Normal(1)}, hidden=(8,),
        rescale=RESCALE, posterior=posterior, samples=K, estimator=estimator, beta=BETA, **private,
    )  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return model.double()


def batch() -> dict[str, Tensor]:
    return {m: torch.randn(B, *shape, dtype=torch.float64) for m, shape in SHAPES.items()}


def noise(step: int, dim: int, b: int, posterior: str) -> Tensor:
    return ops.draw(torch.tensor([SEED, step, b]), 1, 1, dim, law=posterior, purpose=4)[0, 0].double()


def location_and_scale(posterior: str, output: tuple[Tensor, Tensor], b: int) -> tuple[Tensor, Tensor]:
    loc, raw = output[0][b], output[1][b]
    scale = torch.softmax(raw, -1) * len(raw) if posterior == "laplace" else torch.log1p(raw.exp())
    return loc, scale + 1e-6


def log_prior(model: MultimodalVAE, z: Tensor) -> Tensor:
    if not isinstance(model.prior, EnergyPrior):
        return Laplace(torch.zeros_like(z), torch.ones_like(z)).log_prob(z).sum()
    log_p = Laplace(torch.zeros_like(z), model.prior.log_scale.detach().exp()).log_prob(z).sum()
    first, last = model.prior.energy.layers
    h = first.weight.detach() @ z + first.bias.detach()
    e = (last.weight.detach() @ (h * torch.sigmoid(h)) + last.bias.detach())[0]
    return log_p - 2.0 * torch.tanh(e / 2.0)


def expected_gradients(model: MultimodalVAE, x: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Every per-sample gradient on its own, then the sums of the file's head; and the weights [K, M, B]."""
    posterior, plus = model.posterior_law, isinstance(model, MMVAEPlus)
    law = LAWS[posterior]
    named = {n: p for n, p in model.named_parameters() if not n.startswith("prior.")}
    inner = {n: p for n, p in named.items() if n.startswith(("decoders.", "auxiliary"))}
    outer = {n: p for n, p in named.items() if n not in inner}
    total = {n: torch.zeros_like(p) for n, p in named.items()}
    weights = torch.zeros(K, M, B, dtype=torch.float64)

    for m, b in product(range(M), range(B)):
        log_w, draws = [], []
        for k in range(K):
            loc, scale = location_and_scale(posterior, model.encoders[NAMES[m]](x[NAMES[m]]), b)
            z_path = loc + scale * noise(k * M + m, D, b, posterior)
            z = z_path.detach().requires_grad_()
            paths, leaves = [z_path], [z]
            mixture = []
            for j in NAMES:
                held = [t.detach() for t in location_and_scale(posterior, model.encoders[j](x[j]), b)]
                mixture.append(law(*held).log_prob(z).sum())
            value = BETA * (log_prior(model, z) - torch.stack(mixture).logsumexp(0) + torch.tensor(M).log())
            if plus:
                w_loc, w_scale = location_and_scale(posterior, model.private_encoders[NAMES[m]](x[NAMES[m]]), b)
                w_path = w_loc + w_scale * noise(K * M + k * M + m, D_W, b, posterior)
                w = w_path.detach().requires_grad_()
                paths, leaves = [*paths, w_path], [*leaves, w]
                p_w = law(torch.zeros_like(w), torch.ones_like(w)).log_prob(w).sum()
                value = value + BETA * (p_w - law(w_loc.detach(), w_scale.detach()).log_prob(w).sum())
            for n, name in enumerate(NAMES):
                u = z
                if plus and n == m:
                    u = torch.cat((w, z))
                elif plus:
                    raw = model.auxiliary[n]
                    r = torch.softmax(raw, 0) * D_W if posterior == "laplace" else torch.log1p(raw.exp())
                    u = torch.cat(((r + 1e-6) * noise(2 * K * M + (n * K + k) * M + m, D_W, b, posterior), z))
                decoded = model.decoders[name](u.unsqueeze(0))[0]
                value = (
                    value + RESCALE[name] * {"a": Laplace, "b": Normal}[name](decoded, 1.0).log_prob(x[name][b]).sum()
                )
            log_w.append(value)
            draws.append((paths, leaves))
        w_k = torch.stack(log_w).detach().softmax(0)
        weights[:, m, b] = w_k
        for k, (paths, leaves) in enumerate(draws):
            grads = torch.autograd.grad(log_w[k], [*inner.values(), *leaves], allow_unused=True)
            for n, g in zip(inner, grads, strict=False):
                if g is not None:
                    total[n] -= w_k[k] * g / (M * B)
            for path, g in zip(paths, grads[len(inner) :], strict=True):
                through = torch.autograd.grad(path, list(outer.values()), g, allow_unused=True)
                for n, h in zip(outer, through, strict=True):
                    if h is not None:
                        total[n] -= w_k[k] ** 2 * h / (M * B)
    return total, weights


@pytest.mark.parametrize("posterior", ["laplace", "normal"])
@pytest.mark.parametrize("prior", ["laplace", "energy"])
@pytest.mark.parametrize("name", ["mmvae", "mmvaeplus"])
def test_every_group_has_its_own_weights(name: str, prior: str, posterior: str) -> None:
    model, x = tiny(name, prior, posterior), batch()
    expected, weights = expected_gradients(model, x)
    # Neither uniform nor one-hot, or w, w^2 and 1/K could not be told apart.
    assert float(weights.max(0).values.min()) > 1.1 / K and float(weights.max(0).values.min()) < 0.95
    found = model.objective(x, Stream(SEED))
    found.loss.backward()
    for n, g in expected.items():
        assert float(g.abs().max()) > 1e-4, n
        torch.testing.assert_close(
            model.get_parameter(n).grad, g, rtol=1e-9, atol=1e-11, msg=lambda s, n=n: f"{n}: {s}"
        )
    assert all(p.grad is None for n, p in model.named_parameters() if n.startswith("prior."))
    torch.testing.assert_close(found.weights, weights / (M * B), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["mmvae", "mmvaeplus"])
def test_weights_of_the_positives(name: str) -> None:
    x = batch()
    of = {e: tiny(name, "energy", "laplace", e) for e in ("elbo", "iwae", "dreg")}
    for model in of.values():
        model.load_state_dict(of["dreg"].state_dict())
    weights = {e: model.objective(x, Stream(SEED)).weights for e, model in of.items()}
    for each in weights.values():
        assert each.shape == (K, M, B)
        assert float(each.sum()) == pytest.approx(1.0, abs=1e-12)
    assert torch.equal(weights["iwae"], weights["dreg"])
    assert float(weights["dreg"].std()) > 0.01
    torch.testing.assert_close(weights["dreg"].sum(0), torch.full((M, B), 1.0 / (M * B), dtype=torch.float64))
    torch.testing.assert_close(weights["elbo"], torch.full((K, M, B), 1.0 / (K * M * B), dtype=torch.float64))


@pytest.mark.parametrize("name", ["mmvae", "mmvaeplus"])
def test_with_one_sample_dreg_is_the_path_derivative_of_the_elbo(name: str) -> None:
    x = batch()
    dreg, elbo = tiny(name, "energy", "laplace"), tiny(name, "energy", "laplace", "elbo")
    elbo.load_state_dict(dreg.state_dict())
    dreg.samples = elbo.samples = 1
    a, b = dreg.objective(x, Stream(SEED)), elbo.objective(x, Stream(SEED))
    torch.testing.assert_close(a.value, b.value)
    a.loss.backward()
    b.loss.backward()
    for (n, p), q in zip(dreg.named_parameters(), elbo.parameters(), strict=True):
        if n.startswith("decoders."):
            torch.testing.assert_close(p.grad, q.grad)
        elif n.startswith("encoders."):
            assert not torch.allclose(p.grad, q.grad)  # elbo keeps the score of q, whose mean alone is 0


@pytest.mark.parametrize("estimator", ["elbo", "iwae", "dreg"])
def test_estimates_stay_finite_for_far_weights(estimator: str) -> None:
    log_w = torch.tensor([[-9e4, 3e4], [-9.1e4, -1e30], [-9e4, 3e4]], requires_grad=True)
    surrogate, value, weights = estimate(log_w, estimator)
    surrogate.sum().backward()
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(log_w.grad).all())
    torch.testing.assert_close(weights.sum(0), torch.ones(2))


class Leaves(nn.Module):
    """An encoder whose outputs are free parameters, one row each, so that gradients come per row."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.full((rows, dim), 0.6, dtype=torch.float64))
        self.raw = nn.Parameter(torch.full((rows, dim), 0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc, self.raw


def test_dreg_and_iwae_agree_in_the_mean() -> None:
    """Both are unbiased for one Gaussian expert; 4 coordinates at 4.5 standard errors err for one seed in 30,000."""
    rows, dim = 20_000, 2
    x = {"only": torch.tensor([[1.2, -0.7, 0.4]], dtype=torch.float64).expand(rows, 3)}
    gradients = {}
    for estimator in ("iwae", "dreg"):
        torch.manual_seed(3)
        model = MMVAE(
            {"only": (3,)}, StandardNormal(dim), posterior="normal", estimator=estimator, samples=K, hidden=(4,),
            likelihoods={"only": likelihoods.Normal(1, 0.8)}, encoders={"only": Leaves(rows, dim)},
        ).double()  # fmt: skip
        model.objective(x, Stream(SEED)).loss.backward()
        leaves = model.encoders["only"]
        gradients[estimator] = rows * torch.cat((leaves.loc.grad, leaves.raw.grad), 1)
    difference = gradients["dreg"] - gradients["iwae"]
    error = difference.std(0) / rows**0.5
    assert bool((difference.mean(0).abs() < 4.5 * error).all())
    # The test has power: errors are small beside the gradients themselves.
    assert bool((error < 0.05 * gradients["dreg"].mean(0).abs().max()).all())
    assert bool((gradients["dreg"].mean(0).abs() > 10 * error).any())

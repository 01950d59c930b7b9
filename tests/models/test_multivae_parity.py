"""MultiVae 1.0.3 computes the same losses and gradients in float64, on our weights, inputs and noise.

What it does otherwise, and is therefore left out or replaced here:
- `poe` of MoPoE and MVTCAE adds 1e-8 to variances, where we stay in logarithms: with 0 put there, rounding is all that
  differs; as shipped, about 1e-8 over the smallest variance.
- MoPoE sums the subsets' divergences in a float32 tensor: its code runs under a default dtype of float64.
- MoPoE cuts batches in fixed slices, ours begin at random: our rows take its components here.
- MMVAE knows a `beta` and never uses it.
- Priors of MMVAE and MMVAE+ have scale softmax(0) d + 1e-6, not 1 (`multivae.model` corrects it).
- What serves evaluation alone: MMVAE+'s joint NLL drops a modality, MMVAE's and MoPoE's take one component for all
  samples; MMVAE's and MMVAE+'s `encode` choose one modality for a whole batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.contenders import multivae, peers
from mmebm.likelihoods import Laplace
from mmebm.models import MMVAE, MVAE, MVTCAE, MMVAEPlus, MoPoE, MultimodalVAE
from mmebm.priors import StandardLaplace, StandardNormal
from mmebm.sampling.streams import Stream

pytestmark = pytest.mark.skipif(not (peers.FOLDER / ".stamp").exists(), reason="the peers of bench are not installed")

SHAPES = {"a": (3, 4, 4), "b": (2, 5), "c": (7,), "d": (1, 3, 3)}
D, ROWS = 6, 37
PLAIN = {"mvae": MVAE, "mopoe": MoPoE, "mvtcae": MVTCAE}
IMPORTANCE = [("elbo", 1), ("iwae", 4), ("dreg", 4)]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def no_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mopoe", "mvtcae"):
        module = peers.load(f"multivae.models.{name}.{name}_model")
        monkeypatch.setattr(module, "poe", partial(module.poe, eps=0.0))


def build(kind: type[MultimodalVAE], law: str = "normal", **options: Any) -> MultimodalVAE:
    """Weights wide enough for posteriors that differ from the prior and from each other."""
    prior = StandardNormal(D) if law == "normal" else StandardLaplace(D)
    model = kind(
        SHAPES, prior, posterior=law, hidden=(12,), networks="mlp",
        likelihoods={m: Laplace(len(s), 0.5 + 0.1 * len(s)) for m, s in SHAPES.items()},
        rescale={"a": 1.0, "b": 4.8, "c": 0.7, "d": 2.0}, **options,
    ).double()  # fmt: skip
    for p in model.parameters():
        p.data.mul_(2.0)
    if isinstance(model, MMVAEPlus):
        model.auxiliary.data.normal_()
    if isinstance(model, MoPoE):
        model.components = lambda *_: multivae.slices(len(SHAPES), ROWS)  # type: ignore[method-assign]
    return model


def batch() -> dict[str, Tensor]:
    return {m: torch.rand(ROWS, *shape) for m, shape in SHAPES.items()}


def differences(ours: MultimodalVAE, theirs: Any = None, loss: Any = None) -> dict[str, float]:
    """Of the loss, relative; of every parameter's gradient, relative to its largest entry."""
    theirs, inputs = theirs or multivae.model(ours), batch()
    with multivae.recorded() as drawn:
        mine = ours.objective(inputs, Stream(7)).loss
    mine.backward()
    with multivae.replayed(multivae.as_asked(ours, drawn)):
        other = multivae.loss(theirs, inputs)() / (ROWS if multivae.summed(ours) else 1)
    other.backward()
    found = {"loss": float((mine - other).detach().abs() / other.detach().abs())}
    for name, p, q in multivae.parameters(ours, theirs):
        assert p.grad is not None and q.grad is not None and bool(p.grad.any()), name
        found[name] = float((p.grad - q.grad).abs().max() / q.grad.abs().max())
    if isinstance(ours, MMVAEPlus):
        assert ours.auxiliary.grad is not None
        for m, gradient in zip(SHAPES, ours.auxiliary.grad, strict=True):
            reference = theirs.logvars_priors[m].grad[0]
            found[f"auxiliary.{m}"] = float((gradient - reference).abs().max() / reference.abs().max())
    return found


def assert_close(found: dict[str, float], tolerance: float) -> None:
    worst = max(found, key=lambda name: found[name])
    assert found[worst] < tolerance, f"{worst}: {found[worst]:.3g}"


# Sums of hundreds of terms of either sign: some thousand roundings of 1.1e-16.
ROUNDING = 1e-12


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("beta", [1.0, 2.5])
@pytest.mark.usefixtures("no_epsilon")
def test_products(name: str, beta: float) -> None:
    options = {"alpha": 0.7} if name == "mvtcae" else {}
    assert_close(differences(build(PLAIN[name], beta=beta, **options)), ROUNDING)


@pytest.mark.parametrize("name", ["mopoe", "mvtcae"])
def test_their_epsilon_is_what_differs(name: str) -> None:
    ours = build(PLAIN[name])
    smallest = float(ours.posterior(batch()).experts.scale.detach().min()) ** 2
    found = differences(ours)
    assert max(found.values()) > ROUNDING
    assert_close(found, 100 * 1e-8 / smallest)


def test_mvae_of_drawn_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """They draw k without repetition, we with: seed 7 draws three different ones."""
    ours = build(MVAE, random_subsets=3)
    drawn = ours.subsets(Stream(7))[1 + len(SHAPES) :]  # type: ignore[operator]
    theirs = multivae.model(ours)
    known = [sum(1 << list(SHAPES).index(m) for m in subset) for subset in theirs.subsets]
    assert len(set(drawn)) == 3 and set(drawn) <= set(known)
    monkeypatch.setattr(
        sys.modules["multivae.models.mvae.mvae_model"], "choice", lambda *_, **__: [known.index(s) for s in drawn]
    )
    assert_close(differences(ours, theirs), ROUNDING)


@pytest.mark.parametrize("law", ["laplace", "normal"])
@pytest.mark.parametrize(("estimator", "samples"), IMPORTANCE)
def test_mixtures(law: str, estimator: str, samples: int) -> None:
    assert_close(differences(build(MMVAE, law, estimator=estimator, samples=samples)), ROUNDING)


@pytest.mark.parametrize("law", ["laplace", "normal"])
@pytest.mark.parametrize(("estimator", "samples"), IMPORTANCE)
@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_mixtures_with_private_latents(law: str, estimator: str, samples: int, beta: float) -> None:
    ours = build(MMVAEPlus, law, estimator=estimator, samples=samples, beta=beta, private_dim=3)
    assert_close(differences(ours), ROUNDING)


def test_coherence_is_counted_by_class() -> None:
    ours = build(MVAE)
    data, labels = batch(), torch.randint(0, 3, (ROWS,))
    classifiers = {m: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3)) for m in SHAPES}
    for m, classifier in classifiers.items():
        classifier(data[m])
    theirs = multivae.model(ours)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributions.Normal, "rsample", lambda self, *_: self.loc)
        found = multivae.coherence(theirs, data, labels, classifiers, batch_size=10)()
    assert len(found) == sum(len(SHAPES) - s.bit_count() for s in range(1, 15))
    q = ours.posterior({m: data[m] for m in ("a", "c")})
    scores = classifiers["b"](ours.decode(q.experts.loc[0])["b"])
    right = [float((scores.argmax(-1) == labels)[labels == c].double().mean()) for c in range(3)]
    assert found["a_c_to_b"] == pytest.approx(sum(right) / 3)


def test_slices_of_small_batches() -> None:
    """Fewer rows than subsets: all are decoded from the full subset, which is their MoPoE's degenerate case."""
    assert multivae.slices(4, 14).tolist() == [14] * 14
    assert multivae.slices(3, 15).tolist() == [s - 1 for s in (1, 2, 4, 3, 5, 6, 7) for _ in range(2)] + [6]


def test_noise_that_does_not_fit_is_refused() -> None:
    normal = torch.distributions.Normal(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(RuntimeError, match=r"noise: expected \[2, 3\], got \[5\]"), multivae.replayed([torch.ones(5)]):
        normal.rsample()
    with pytest.raises(RuntimeError, match="noise: 1 tensors are left"), multivae.replayed([torch.ones(2, 3)] * 2):
        assert bool((normal.rsample() == 1.0).all())
    assert not bool((normal.rsample() == 1.0).all())

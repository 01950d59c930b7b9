"""Rows that lack modalities: objectives, positives and posteriors of all six models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmebm import likelihoods
from mmebm.energy import EnergyMLP
from mmebm.kernels import ops
from mmebm.models import MODELS, MultimodalVAE
from mmebm.models.masks import ranked
from mmebm.posteriors import bitmask
from mmebm.priors import EnergyPrior
from mmebm.sampling import Stream
from mmebm.training.config import NORMAL_MODELS

SHAPES = {"a": (3,), "b": (2, 2), "c": (4,)}
ROWS, D, W = 6, 3, 2
EXACT = {"rtol": 1e-9, "atol": 1e-9}
# MoPoE's default counts p_0 in where all modalities of the model are there, which a smaller model changes.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("mmvae", {}),
    ("mmvae", {"estimator": "iwae", "samples": 3}),
    ("mmvae", {"estimator": "dreg", "samples": 2}),
    ("mmvaeplus", {}),
    ("mmvaeplus", {"estimator": "dreg", "samples": 2}),
    ("mvae", {}),
    ("mvae", {"random_subsets": 2}),
    ("mopoe", {"choice": "categorical", "prior_expert": "never"}),
    ("mopoe", {"prior_expert": "never"}),
    ("mvtcae", {}),
    ("mmjsd", {"choice": "categorical"}),
    ("mmjsd", {"choice": "categorical", "variant": "with_prior"}),
]
# Subsets drawn among those of all modalities, and places in a batch, are others in a smaller model or batch.
SPLIT = [c for c in CASES if c != ("mvae", {"random_subsets": 2}) and c != ("mopoe", {"prior_expert": "never"})]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in CASES]
each_case = pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
each_split = pytest.mark.parametrize(
    ("name", "options"), SPLIT, ids=[i for c, i in zip(CASES, IDS, strict=True) if c in SPLIT]
)
Masks = dict[str, Tensor]


def build(name: str, options: dict[str, Any], shapes: dict[str, tuple[int, ...]] = SHAPES) -> MultimodalVAE:
    torch.manual_seed(0)
    normal = name in NORMAL_MODELS
    prior = EnergyPrior(EnergyMLP(D, (8,), "tanh"), "normal" if normal else "laplace", 0.7, steps=5)
    more = {"private_dim": W} if name == "mmvaeplus" else {}
    built = MODELS[name](
        SHAPES, prior, posterior="normal", hidden=(8,), beta=1.5, rescale={"a": 1.7, "b": 0.6, "c": 1.0},
        likelihoods={m: likelihoods.Normal(len(s), 0.5) for m, s in SHAPES.items()}, **more, **options,
    ).double()  # fmt: skip
    if shapes is SHAPES:
        return built
    small = MODELS[name](
        shapes, built.prior, posterior="normal", hidden=(8,), beta=1.5, rescale={m: built.rescale[m] for m in shapes},
        likelihoods={m: built.likelihoods[m] for m in shapes}, **more, **options,
    ).double()  # fmt: skip
    for part in ("encoders", "decoders", "private_encoders"):
        if hasattr(built, part):
            setattr(small, part, nn.ModuleDict({m: getattr(built, part)[m] for m in shapes}))
    return small


def batch(rows: int = ROWS) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {m: torch.randn(rows, *s, dtype=torch.float64, generator=g) for m, s in SHAPES.items()}


def rows_of(x: dict[str, Tensor], at: slice) -> dict[str, Tensor]:
    return {m: value[at] for m, value in x.items()}


def masks_of(**seen: list[int]) -> Masks:
    return {m: torch.tensor(v, dtype=torch.bool) for m, v in seen.items()}


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw is its law's middle, every choice the first: what is left is the formula."""
    draw = ops.draw
    monkeypatch.setattr(ops, "draw", lambda *args, **options: torch.zeros_like(draw(*args, **options)))
    for module in ("normal", "mvae"):
        first = lambda rng, n, count: torch.zeros(n, dtype=torch.int64)  # noqa: E731
        monkeypatch.setattr(f"mmebm.models.{module}.choose", first)


@each_case
def test_masks_that_hide_nothing_change_nothing(name: str, options: dict[str, Any], without_noise: None) -> None:
    model, x = build(name, options), batch()
    plain = model.objective(x, Stream(3))
    masked = model.objective(x, Stream(3), masks={m: torch.ones(ROWS, dtype=torch.bool) for m in SHAPES})
    for field in ("loss", "value", "z", "weights", "metrics"):
        torch.testing.assert_close(getattr(masked, field), getattr(plain, field), **EXACT)


@each_split
def test_a_modality_that_nobody_has_leaves_the_model_without_it(
    name: str, options: dict[str, Any], without_noise: None
) -> None:
    model, x = build(name, options), batch()
    small = build(name, options, {m: s for m, s in SHAPES.items() if m != "b"})
    if name == "mmvaeplus":
        with torch.no_grad():
            small.auxiliary.copy_(model.auxiliary[[0, 2]])  # type: ignore[operator,index]
    x["b"].fill_(torch.nan)
    lacking = masks_of(b=[0] * ROWS)
    rest = {m: x[m] for m in small.modalities}
    wanted = small.objective(rest, Stream(3))
    for inputs, masks in ((x, lacking), (rest, masks_of(a=[1] * ROWS))):
        found = model.objective(inputs, Stream(3), masks=masks)
        torch.testing.assert_close(found.loss, wanted.loss, **EXACT)
        torch.testing.assert_close(found.weights.sum(), torch.ones(()).double())
        for key in ("kl_reference", "energy", "log_likelihood/a", "posterior_scale"):
            torch.testing.assert_close(found.metrics[key], wanted.metrics[key], **EXACT)
        found.loss.backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        assert not any(p.grad is not None and p.grad.any() for p in model.encoders["b"].parameters())


@each_split
def test_each_row_counts_what_it_has(name: str, options: dict[str, Any], without_noise: None) -> None:
    """The mean over all rows that have anything, each one's term being as if all rows were like it."""
    model, x = build(name, options), batch()
    masks = masks_of(a=[1, 1, 1, 1, 0, 0], b=[1, 1, 0, 0, 0, 0], c=[1, 1, 1, 1, 1, 0])
    groups = {"abc": slice(0, 2), "ac": slice(2, 4), "c": slice(4, 5)}
    for m, value in x.items():
        value[~masks[m]] = torch.nan
    found = model.objective(x, Stream(3), masks=masks)
    total = torch.zeros(()).double()
    for names, at in groups.items():
        part = {m: v for m, v in rows_of(x, at).items() if m in names}
        each = {m: torch.ones(len(v), dtype=torch.bool) for m, v in part.items()}
        total = total + (at.stop - at.start) * model.objective(part, Stream(3), masks=each).loss
    torch.testing.assert_close(found.loss, total / 5.0, **EXACT)
    torch.testing.assert_close(found.weights.sum(), torch.ones(()).double())
    assert not bool(found.weights[..., 5].any()), "a row with nothing is no positive"
    assert bool(torch.isfinite(found.z).all())


@each_case
def test_positives_are_the_objectives(name: str, options: dict[str, Any]) -> None:
    model, x = build(name, options), batch()
    masks = masks_of(a=[1, 1, 1, 1, 0, 0], b=[1, 0, 0, 0, 0, 0], c=[1, 1, 0, 1, 1, 0])
    found = model.objective(x, Stream(3), masks=masks)
    z, weights = model.positives(x, Stream(3), masks=masks)
    torch.testing.assert_close(z, found.z, **EXACT)
    assert weights is not None
    torch.testing.assert_close(weights.broadcast_to(found.weights.shape), found.weights, **EXACT)


@each_case
def test_a_row_with_nothing_is_drawn_from_the_prior(name: str, options: dict[str, Any]) -> None:
    model, x = build(name, options).float(), {m: v.float() for m, v in batch().items()}
    nobody = torch.tensor([0, 1, 0, 0, 0, 0], dtype=torch.bool)
    for m in SHAPES:
        x[m][nobody] = torch.nan
    masks = dict.fromkeys(SHAPES, ~nobody)
    z, prior = model.encode(x, masks=masks, seed=4), model.prior.sample(ROWS, seed=4)
    torch.testing.assert_close(z[nobody], prior[nobody])
    assert bool(torch.isfinite(z).all()) and not bool((z[~nobody] == prior[~nobody]).any())
    torch.testing.assert_close(model.encode(x, masks=dict.fromkeys(SHAPES, nobody & ~nobody), seed=4), prior)
    made = model.cross_generate(x, ["a", "c"], "b", masks=masks, seed=4)["b"]
    assert bool(torch.isfinite(made).all())


@each_case
def test_a_row_is_drawn_from_what_it_has(name: str, options: dict[str, Any]) -> None:
    """Rows that lack b, among others, are as rows of a batch without b."""
    model, x = build(name, options), batch()
    seen = torch.tensor([1, 0, 1, 0, 1, 0], dtype=torch.bool)
    q = model.posterior(x, {"b": seen})
    without = model.posterior({m: x[m] for m in ("a", "c")})
    z = torch.randn(ROWS, D, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z)[~seen], without.log_prob(z)[~seen], **EXACT)
    torch.testing.assert_close(q.log_prob(z)[seen], model.posterior(x).log_prob(z)[seen], **EXACT)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"d": torch.ones(ROWS, dtype=torch.bool)}, "masks: unknown modality d"),
        ({"a": torch.ones(ROWS)}, r"masks\['a'\]: expected bool \[6\]"),
        ({"a": torch.ones(2, dtype=torch.bool)}, r"masks\['a'\]: expected bool \[6\], got torch.bool \[2\]"),
    ],
)
def test_masks_that_do_not_fit(masks: Masks, message: str) -> None:
    model = build("mmvae", {})
    with pytest.raises(ValueError, match=message):
        model.objective(batch(), Stream(0), masks=masks)
    with pytest.raises(ValueError, match=message):
        model.encode(batch(), masks=masks)


def test_a_mask_of_what_is_not_given() -> None:
    model, x = build("mopoe", {}), batch()
    del x["b"]
    with pytest.raises(ValueError, match=r"masks\['b'\]: expected the modality among the inputs, they have a, c"):
        model.objective(x, Stream(0), masks={"b": torch.ones(ROWS, dtype=torch.bool)})


def test_the_components_a_row_has_are_decoded_equally_often() -> None:
    model, x = build("mopoe", {}), batch(40)
    seen = torch.arange(40) % 2 == 0
    q = model.posterior(x, {"b": seen})
    stream = Stream(5)
    for choice in ("categorical", "slices"):
        drawn = torch.stack([model.components(7, 40, q.present, stream, choice) for _ in range(400)])  # type: ignore[operator]
        assert bool(q.present[drawn, torch.arange(40)].all())  # type: ignore[index]
        for rows, count in ((seen, 7), (~seen, 3)):
            share = torch.bincount(drawn[:, rows].flatten(), minlength=7) / drawn[:, rows].numel()
            kept = share[share > 0]
            assert len(kept) == count and (kept - 1.0 / count).abs().max() < 0.03


def test_ranks_and_bits() -> None:
    present = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    assert ranked(present, torch.tensor([1, 1, 0])).tolist() == [1, 2, 2]
    assert bitmask(present).tolist() == [3, 6, 4]

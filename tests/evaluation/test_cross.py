"""Cross coherence and errors of all subsets, computed again row by row; and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmebm.data import MultimodalDataset
from mmebm.evaluation.classifiers import Classifiers
from mmebm.evaluation.cross import cross_by_subset, subset_latents
from mmebm.evaluation.intervals import bootstrap_interval
from mmebm.models import MODELS, MultimodalVAE
from mmebm.models.normal import NormalVAE
from mmebm.priors import StandardLaplace, StandardNormal
from mmebm.sampling import Stream
from mmebm.training.config import NORMAL_MODELS

from .untrained import untrained

NAMES, CLASSES, D, SEED = ("a", "b", "c"), 4, 3, 5
SHAPES = {m: (3, 8, 8) for m in NAMES}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("mmvae", {}),
    ("mmvaeplus", {"private_dim": 2}),
    ("mmvaeplus", {"private_dim": 2, "test_private": "auxiliary"}),
    ("mvae", {}),
    ("mopoe", {}),
    ("mopoe", {"conditional": "mixture"}),
    ("mvtcae", {}),
    ("mmjsd", {}),
    ("mmjsd", {"variant": "with_prior"}),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in CASES]
each_case = pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)


def build(name: str, options: dict[str, Any]) -> MultimodalVAE:
    torch.manual_seed(2)
    normal = name in NORMAL_MODELS
    prior = StandardNormal(D) if normal else StandardLaplace(D)
    model = MODELS[name](SHAPES, prior, posterior="normal" if normal else "laplace", hidden=(16,), **options)
    with torch.no_grad():  # untrained decoders are nearly constant: classes would be too
        for decoder in model.decoders.values():
            decoder.body[-2].weight.mul_(8.0)
        for encoder in model.encoders.values():
            encoder.body[-1].weight.mul_(4.0)
    return model.eval()


def dataset(rows: int, masked: bool = False) -> MultimodalDataset:
    random = torch.Generator().manual_seed(rows)
    pixels = {m: torch.rand(rows, *SHAPES[m], generator=random) for m in NAMES}
    labels = torch.randint(CLASSES, (rows,), generator=random)
    masks = {m: torch.rand(rows, generator=random) < 0.75 for m in NAMES} if masked else None
    return MultimodalDataset(pixels, labels, "toy", "test", masks=masks)


@pytest.fixture(scope="module")
def classifiers() -> Classifiers:
    return untrained(SHAPES, CLASSES, dict.fromkeys(NAMES, 0.95), 0.9)


@each_case
@pytest.mark.parametrize("masked", [False, True], ids=["complete", "masked"])
def test_every_pair_is_what_the_images_say(
    name: str, options: dict[str, Any], masked: bool, classifiers: Classifiers
) -> None:
    model, data = build(name, options), dataset(40, masked)
    assert data.labels is not None
    found = cross_by_subset(model, data, classifiers, rows=30, seed=SEED)
    rows = torch.arange(30)
    inputs, masks, labels = data.batch(rows), data.observed(rows), data.labels[:30].numpy()
    present = np.ones((3, 30), bool) if masks is None else torch.stack([masks[m] for m in NAMES]).numpy()
    subsets = list(range(1, 7))
    draws = model.subset_draws(inputs, subsets, Stream(SEED), masks)
    u = model.decoder_inputs(draws.z.flatten(0, 1), SEED)
    by_size: dict[int, list[float]] = {1: [], 2: []}
    pairs = {(p.given, p.target): p for p in found.pairs}
    for i, s in enumerate(subsets):
        given = tuple(m for k, m in enumerate(NAMES) if s >> k & 1)
        has = np.logical_and.reduce([present[k] for k in range(3) if s >> k & 1])
        for t, target in enumerate(NAMES):
            if s >> t & 1 and given != (target,):
                assert (given, target) not in pairs
                continue
            at = draws.of[i] * 30 + rows
            decoded = model.decoders[target](u[target][at]).detach()
            guessed = classifiers.logits(target, decoded).argmax(1).numpy()
            pair = pairs.pop((given, target))
            assert pair.micro == pytest.approx((guessed == labels)[has].mean())
            classes = [
                (guessed == labels)[has & (labels == k)].mean() for k in range(CLASSES) if (has & (labels == k)).any()
            ]
            assert pair.macro == pytest.approx(np.mean(classes))
            both = has & present[t]
            x = inputs[target].numpy()[both]
            assert pair.rmse == pytest.approx(np.sqrt(np.square(decoded.numpy()[both] - x).mean()), rel=1e-5)
            log_p = -np.abs(decoded.numpy()[both] - x).reshape(len(x), -1).sum(1) / 0.75 - 192 * np.log(1.5)
            assert pair.log_likelihood == pytest.approx(log_p.mean(), rel=1e-5)
            if given != (target,):
                by_size[len(given)].append(pair.micro)
    assert not pairs and found.n == 30
    for size, values in by_size.items():
        assert found.by_size[size].micro == pytest.approx(np.mean(values)) and found.by_size[size].pairs == len(values)
        low, high = found.by_size[size].interval
        assert low < found.by_size[size].micro < high
    assert {m: set(row) for m, row in found.matrix().items()} == {m: set(NAMES) for m in NAMES}
    errors = [p.rmse for p in found.others() if len(p.given) == 2 and p.target == "a"]
    assert found.errors()[2]["a"]["rmse"] == pytest.approx(np.mean(errors))


@each_case
def test_a_subsets_draw_has_its_conditional_law(name: str, options: dict[str, Any]) -> None:
    """The draws' moments are those of `conditional` given the subset alone."""
    model, data = build(name, options), dataset(3)
    one = {m: x[:1].expand(4000, *x.shape[1:]) for m, x in data.batch(torch.arange(3)).items()}
    subsets = list(range(1, 7))
    draws = model.subset_draws(one, subsets, Stream(1))
    for i, s in enumerate(subsets):
        z = draws.z[draws.of[i], torch.arange(4000)].double()
        q = model.conditional({m: one[m][:1] for k, m in enumerate(NAMES) if s >> k & 1}).experts
        loc, scale = q.loc[:, 0].double(), q.scale[:, 0].double()  # [C, d]
        variance = scale.square() * (2.0 if q.law == "laplace" else 1.0)
        mean = loc.mean(0)
        total = (variance + (loc - mean).square()).mean(0)
        assert ((z.mean(0) - mean).abs() < 5.0 * (total / 4000).sqrt()).all()
        torch.testing.assert_close(z.var(0), total, rtol=0.3, atol=0.0)


def test_encoders_run_once(monkeypatch: pytest.MonkeyPatch, classifiers: Classifiers) -> None:
    model, data = build("mopoe", {}), dataset(20)
    calls = []
    for m in NAMES:
        model.encoders[m].register_forward_hook(lambda *_, m=m: calls.append(m))
    cross_by_subset(model, data, classifiers, seed=SEED)
    assert sorted(calls) == sorted(NAMES)


def test_without_labels_or_classifiers_errors_are_left(classifiers: Classifiers) -> None:
    model, data = build("mvtcae", {}), dataset(20)
    blank = MultimodalDataset(data.modalities, None, "toy", "test")
    one = Classifiers({"b": classifiers.networks["b"]}, {"b": 0.95}, 0.9, 0.0)
    for rows, judges, judged in ((blank, classifiers, set()), (data, None, set()), (data, one, {"b"})):
        found = cross_by_subset(model, rows, judges, seed=SEED)
        assert {p.target for p in found.pairs if p.micro is not None} == judged
        assert set(found.by_size) == ({1, 2} if judged else set())
        assert all(p.rmse > 0 for p in found.pairs)


def test_one_modality_has_nothing_to_cross() -> None:
    model = MODELS["mmvae"]({"a": (2,)}, StandardLaplace(D))
    data = MultimodalDataset({"a": torch.zeros(2, 2)}, None, "toy", "test")
    with pytest.raises(ValueError, match="model: expected two modalities or more"):
        cross_by_subset(model, data)


@pytest.mark.parametrize("kind", ["mmvae", "mopoe"])
def test_latents_of_all_subsets(kind: str) -> None:
    model, data = build(kind, {}), dataset(20, masked=True)
    rows = torch.arange(3, 15)
    z, has = subset_latents(model, data, rows, SEED)
    assert z.shape == (7, 12, D) and has.shape == (7, 12) and data.masks is not None
    assert torch.equal(has[4], (data.masks["a"] & data.masks["c"])[rows])
    if isinstance(model, NormalVAE):
        draws = model.subset_draws(data.batch(rows), [5], Stream(SEED), data.observed(rows))
        assert draws.z.shape == (1, 12, D)


# Intervals -----------------------------------------------------------------------------------------------------------


def test_intervals_cover_as_often_as_they_say() -> None:
    random, covered = torch.Generator().manual_seed(0), 0
    for i in range(200):
        values = (torch.rand(120, generator=random) < 0.3).double()
        low, high = bootstrap_interval(values, seed=i)
        covered += low <= 0.3 <= high
    assert 178 <= covered <= 199  # 95% of 200: 190 ± 3.1, and the percentile interval covers a little less


def test_an_intervals_width_is_the_standard_errors() -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    low, high = bootstrap_interval(values)
    assert (high - low) == pytest.approx(2 * 1.96 * float(values.std()) / 4000**0.5, rel=0.1)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < float(values.mean()) < narrow[1] < high
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)


@pytest.mark.parametrize("values", [torch.zeros(0), torch.zeros(2, 2)])
def test_intervals_of_nothing(values: Tensor) -> None:
    with pytest.raises(ValueError, match=r"values: expected \[N\] with N > 0"):
        bootstrap_interval(values)
    with pytest.raises(ValueError, match="level: expected a number in"):
        bootstrap_interval(torch.zeros(3), level=1.0)

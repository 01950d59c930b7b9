"""Encoding, decoding, joint and cross generation: shapes, seeds, private latents, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mmebm import likelihoods
from mmebm.energy import EnergyMLP
from mmebm.models import MMVAE, MMVAEPlus, MultimodalVAE
from mmebm.posteriors import scale_from
from mmebm.priors import EnergyPrior, StandardLaplace, StandardNormal

SHAPES = {"image": (1, 4, 4), "sound": (5,), "bits": (2, 3)}
D, D_W = 3, 2
PRIORS = {
    "normal": lambda: StandardNormal(D),
    "laplace": lambda: StandardLaplace(D),
    "energy": lambda: EnergyPrior(EnergyMLP(D, (8,)), steps=4),
}


def tiny(name: str = "mmvaeplus", prior: str = "energy", posterior: str = "laplace") -> MultimodalVAE:
    each = {"image": likelihoods.Laplace(3), "sound": likelihoods.Normal(1), "bits": likelihoods.Bernoulli(2)}
    options = {"likelihoods": each, "hidden": (8,), "posterior": posterior}
    if name == "mmvae":
        return MMVAE(SHAPES, PRIORS[prior](), **options).eval()
    return MMVAEPlus(SHAPES, PRIORS[prior](), private_dim=D_W, **options).eval()


def batch(rows: int) -> dict[str, Tensor]:
    return {m: torch.rand(rows, *shape) for m, shape in SHAPES.items()}


def heard(model: MultimodalVAE) -> dict[str, Tensor]:
    """Filled with what every decoder is given."""
    inputs: dict[str, Tensor] = {}
    for m, decoder in model.decoders.items():
        decoder.register_forward_pre_hook(lambda module, args, m=m: inputs.update({m: args[0]}))
    return inputs


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[m], b[m]) for m in a)


@pytest.mark.parametrize("rows", [0, 1, 6])
@pytest.mark.parametrize("prior", list(PRIORS))
@pytest.mark.parametrize("name", ["mmvae", "mmvaeplus"])
def test_shapes(name: str, prior: str, rows: int) -> None:
    model, x = tiny(name, prior), batch(rows)
    full = {m: (rows, *shape) for m, shape in SHAPES.items()}
    z = model.encode(x, seed=1)
    assert z.shape == (rows, D) and not z.requires_grad
    for made in (
        model.generate(rows, seed=1),
        model.decode(z, seed=1),
        model.cross_generate(x, "image", seed=1),
        model.cross_generate(x, ["sound", "bits"], seed=1),
    ):
        assert {m: tuple(v.shape) for m, v in made.items()} == full
        assert all(bool(torch.isfinite(v).all()) and not v.requires_grad for v in made.values())
        assert bool(((made["bits"] >= 0) & (made["bits"] <= 1)).all())  # means, not logits
    assert list(model.generate(rows, "sound", seed=1)) == ["sound"]
    assert list(model.cross_generate(x, "sound", ["bits", "image"], seed=1)) == ["bits", "image"]


@pytest.mark.parametrize("prior", list(PRIORS))
@pytest.mark.parametrize("name", ["mmvae", "mmvaeplus"])
def test_a_seed_determines_everything(name: str, prior: str) -> None:
    model, x = tiny(name, prior), batch(5)
    calls = {
        "encode": lambda seed: {"z": model.encode(x, seed=seed)},
        "cross": lambda seed: model.cross_generate(x, ["image", "sound"], seed=seed),
        "joint": lambda seed: model.generate(5, seed=seed),
    }
    for call in calls.values():
        first = call(2**63 + 5)
        torch.rand(3)
        assert same(first, call(2**63 + 5))
        other = call(6)
        assert all(bool((first[m] != other[m]).any()) for m in first)
        # Without a seed torch's own generator decides.
        torch.manual_seed(9)
        unseeded = call(None)
        assert not same(unseeded, call(None))
        torch.manual_seed(9)
        assert same(unseeded, call(None))


def test_gen_mod_does_not_change_what_is_generated() -> None:
    model, x = tiny(), batch(4)
    everything, joint = model.cross_generate(x, "sound", seed=2), model.generate(4, seed=2)
    for m in SHAPES:
        assert torch.equal(model.cross_generate({"sound": x["sound"]}, "sound", m, seed=2)[m], everything[m])
        assert torch.equal(model.generate(4, [m], seed=2)[m], joint[m])


def test_rows_stand_alone() -> None:
    model, x = tiny(), batch(6)
    first = {m: v[:1] for m, v in x.items()}
    torch.testing.assert_close(model.encode(first, "image", seed=4), model.encode(x, "image", seed=4)[:1])
    joint, one = model.generate(6, seed=4), model.generate(1, seed=4)
    cross, lone = model.cross_generate(x, "image", seed=4), model.cross_generate(first, "image", seed=4)
    for m in SHAPES:
        torch.testing.assert_close(one[m], joint[m][:1])
        torch.testing.assert_close(lone[m], cross[m][:1])


def test_steps_are_the_energy_priors() -> None:
    model = tiny()
    with torch.no_grad():
        for p in model.prior.energy.parameters():
            p.mul_(3.0)
    assert same(model.generate(4, seed=1), model.generate(4, seed=1, steps=4))
    assert not same(model.generate(4, seed=1), model.generate(4, seed=1, steps=5))
    inputs = heard(model)
    model.generate(4, seed=1)
    assert torch.equal(inputs["image"][:, D_W:], model.prior.sample(4, seed=1, steps=4))


@pytest.mark.parametrize("posterior", ["laplace", "normal"])
def test_private_latents_are_standard_and_differ_by_modality_and_row(posterior: str) -> None:
    model, rows = tiny(posterior=posterior), 5000
    inputs = heard(model)
    z = torch.randn(rows, D)
    model.decode(z, seed=3)
    w = torch.stack([inputs[m][:, :D_W] for m in SHAPES])  # [M, N, d_w]
    assert all(torch.equal(inputs[m][:, D_W:], z) for m in SHAPES)
    # 2 M d_w = 12 means of N independent values, each at 5 standard errors.
    flat, n = w.double().permute(0, 2, 1).reshape(-1, rows), rows**0.5
    mean_of, spread_of = {"laplace": (1.0, 2.0), "normal": ((2 / torch.pi) ** 0.5, 1.0)}[posterior]
    assert bool((flat.mean(1).abs() < 5 * spread_of**0.5 / n).all())
    assert bool(((flat.abs().mean(1) - mean_of).abs() < 5 * (spread_of - mean_of**2) ** 0.5 / n).all())
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert float(correlation.abs().max()) < 5 / n
    assert len(w.reshape(-1, D_W).unique(dim=0)) == len(SHAPES) * rows
    model.decode(z, seed=4)
    assert not bool((inputs["image"][:, :D_W] == w[0]).any())


@pytest.mark.parametrize("posterior", ["laplace", "normal"])
@pytest.mark.parametrize("cond", [["image"], ["sound"], ["image", "bits"], list(SHAPES)])
def test_private_latents_share_no_noise_with_z(cond: list[str], posterior: str) -> None:
    model, rows = tiny(posterior=posterior), 500
    inputs, x = heard(model), batch(rows)
    model.cross_generate(x, cond, seed=3)
    z = inputs["image"][:, D_W:]
    for m in cond:
        loc, raw = model.encoders[m](x[m])
        noise = ((z - loc) / scale_from(posterior, raw)).detach()
        for target in SHAPES:
            w = inputs[target][:, :D_W]
            # Equal up to rounding where both came from one counter; by chance in ~1e-5 of the pairs.
            close = (noise.unsqueeze(1) - w.unsqueeze(2)).abs() < 1e-5
            assert float(close.double().mean()) < 0.01, (m, target)


@pytest.mark.parametrize("posterior", ["laplace", "normal"])
def test_encode_draws_from_the_experts(posterior: str) -> None:
    model, rows = tiny(posterior=posterior), 4000
    x = {m: torch.rand(1, *shape).expand(rows, *shape) for m, shape in SHAPES.items()}
    with torch.no_grad():
        for i, m in enumerate(("image", "bits")):
            model.encoders[m].body[-1].bias[:D] += 50.0 * (2 * i - 1)
    locs = {m: model.encoders[m](x[m])[0][0].detach() for m in SHAPES}
    means = model.encode(x, ["image", "bits"], seed=5, mean=True)
    # A matrix product may round equal rows in different ways.
    which, other = (torch.isclose(means, locs[m]).all(1) for m in ("bits", "image"))
    assert bool((which | other).all())
    assert abs(float(which.double().mean()) - 0.5) < 5 * 0.5 / rows**0.5
    torch.testing.assert_close(model.encode(x, "sound", mean=True), locs["sound"].expand(rows, D))

    z = model.encode(x, "sound", seed=5).double()
    scale = scale_from(posterior, model.encoders["sound"](x["sound"])[1][0]).detach().double()
    deviation = scale * (2.0**0.5 if posterior == "laplace" else 1.0)
    assert bool(((z.mean(0) - locs["sound"]).abs() < 5 * deviation / rows**0.5).all())
    # The standard error of a standard deviation: sqrt((kurtosis - 1) / 4 n) of it.
    kurtosis = 6.0 if posterior == "laplace" else 3.0
    assert bool(((z.std(0) / deviation - 1).abs() < 5 * ((kurtosis - 1) / (4 * rows)) ** 0.5).all())


def test_encode_takes_what_is_there() -> None:
    model, x = tiny(), batch(4)
    some = {m: x[m] for m in ("bits", "sound")}
    assert torch.equal(model.encode(some, seed=1), model.encode(x, ["sound", "bits"], seed=1))
    assert torch.equal(model.encode(x, ["bits", "sound"], seed=1), model.encode(x, ["sound", "bits"], seed=1))
    assert torch.equal(model.encode(x, ("sound", "sound"), seed=1), model.encode(x, "sound", seed=1))


def test_modules_of_ones_own() -> None:
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :D], torch.full_like(x[:, :D], -30.0)  # softplus(-30) = 9e-14: no spread but the floor

    class Decoder(nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            return 2.0 * u[:, :1].expand(-1, 5)

    model = MMVAE(
        {"s": (5,)}, StandardNormal(D), posterior="normal", encoders={"s": Encoder()}, decoders={"s": Decoder()}
    )
    x = torch.randn(3, 5)
    torch.testing.assert_close(
        model.cross_generate({"s": x}, "s")["s"], 2.0 * x[:, :1].expand(-1, 5), rtol=0, atol=1e-4
    )


def test_refusals() -> None:
    model, x = tiny(), batch(4)
    unknown = r"unknown modality smell; this model has image, sound, bits"
    with pytest.raises(ValueError, match=f"cond_mod: {unknown}"):
        model.cross_generate(x, "smell")
    with pytest.raises(ValueError, match=f"gen_mod: {unknown}"):
        model.cross_generate(x, "image", ["sound", "smell"])
    with pytest.raises(ValueError, match=f"gen_mod: {unknown}"):
        model.generate(2, "smell")
    with pytest.raises(ValueError, match=f"gen_mod: {unknown}"):
        model.decode(torch.zeros(2, D), "smell")
    with pytest.raises(ValueError, match=f"inputs: {unknown}"):
        model.encode(x | {"smell": x["image"]}, "image")
    with pytest.raises(ValueError, match=r"inputs: expected the modalities of cond_mod, missing sound, bits"):
        model.encode({"image": x["image"]}, ["image", "sound", "bits"])
    with pytest.raises(ValueError, match=r"inputs: expected equally many rows .* got \{'image': 4, 'sound': 3\}"):
        model.encode({"image": x["image"], "sound": x["sound"][:3]})
    with pytest.raises(ValueError, match=r"inputs\['image'\]: expected floating \[B, 1, 4, 4\], got \[4, 4, 4\]"):
        model.encode({"image": x["image"][:, 0]})
    with pytest.raises(ValueError, match=r"inputs\['image'\]: expected floating \[B, 1, 4, 4\], got \[\]"):
        model.encode({"image": torch.tensor(0.0)})
    with pytest.raises(TypeError, match=r"inputs\['image'\]: expected floating \[B, 1, 4, 4\], got torch.uint8"):
        model.encode({"image": x["image"].to(torch.uint8)})
    with pytest.raises(TypeError, match=r"inputs\['sound'\]: expected floating \[B, 5\], got list"):
        model.encode({"sound": [[0.0] * 5]})
    with pytest.raises(ValueError, match="cond_mod: expected at least one modality, got none"):
        model.encode({})
    with pytest.raises(ValueError, match="cond_mod: expected at least one modality, got none"):
        model.cross_generate(x, [])
    with pytest.raises(ValueError, match="gen_mod: expected at least one modality, got none"):
        model.generate(2, [])
    with pytest.raises(ValueError, match="steps: StandardLaplace is drawn without chains"):
        tiny(prior="laplace").generate(2, steps=5)
    with pytest.raises(ValueError, match="n_samples: expected an integer >= 0, got -1"):
        model.generate(-1)
    for wrong in (torch.zeros(2, D + 1), torch.zeros(D), torch.zeros(1, 2, D)):
        with pytest.raises(ValueError, match=rf"z: expected shape \[\*, {D}\], got float32"):
            model.decode(wrong)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_pixels_that_are_not_finite_are_named(bad: float) -> None:
    model, x, name = tiny(), batch(4), "sound"
    x[name][2, 0] = bad
    message = rf"inputs\['{name}'\]: expected finite values, got NaN or infinity in row 2"
    for call in (lambda: model.encode(x, seed=0), lambda: model.cross_generate(x, name, seed=0)):
        with pytest.raises(ValueError, match=message):
            call()
    model.encode(x, "image", seed=0)  # what is not asked for may be anything

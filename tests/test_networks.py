"""The papers' networks: sizes as published, shapes, batches of one, what is chosen for a shape, and others' modules."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mmebm import likelihoods
from mmebm.models import MMVAE, MMVAEPlus, MultimodalVAE
from mmebm.networks import (
    NETWORKS,
    CaptionDecoder,
    CaptionEncoder,
    ResNetDecoder,
    ResNetEncoder,
    choose_network,
    make_decoder,
    make_encoder,
)
from mmebm.priors import StandardNormal
from mmebm.sampling import Stream


def size(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_residual_networks_have_the_published_sizes() -> None:
    """Of MMVAE+'s code, PolyMNIST with 32 + 32 latents and CUB with 48 + 16."""
    encoder, decoder = ResNetEncoder((3, 28, 28), 32), ResNetDecoder(64, (3, 28, 28))
    assert (size(encoder), size(decoder)) == (1_473_024, 1_485_251)
    assert 5 * (2 * size(encoder) + size(decoder)) == 22_156_495
    assert size(ResNetEncoder((3, 64, 64), 48), ResNetEncoder((3, 64, 64), 16)) == 8_552_448
    assert size(ResNetDecoder(64, (3, 64, 64))) == 4_276_931


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        ("mlp", (2, 5)),
        ("mnist", (1, 28, 28)),
        ("svhn", (3, 32, 32)),
        ("conv", (3, 28, 28)),
        ("conv", (1, 17, 30)),
        ("resnet", (3, 28, 28)),
        ("resnet", (1, 12, 20)),
        ("caption", (32, 40)),
        ("caption", (8, 71)),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_what_goes_in_and_comes_out(network: str, shape: tuple[int, ...], rows: int) -> None:
    torch.manual_seed(0)
    encoder = make_encoder(network, shape, 6, (16,)).eval()
    decoder = make_decoder(network, shape, 9, (16,), private=3).eval()
    x = torch.rand(rows, *shape)
    loc, raw = encoder(x)
    assert loc.shape == raw.shape == (rows, 6)
    assert decoder(torch.randn(rows, 9)).shape == (rows, *shape)
    torch.testing.assert_close(encoder(x[:1])[0], loc[:1], rtol=1e-3, atol=1e-5)
    if network in ("mnist", "svhn"):
        assert decoder(torch.randn(rows, 9)).min() > 0.0 and decoder(torch.randn(rows, 9)).max() < 1.0


def test_a_caption_decoder_keeps_private_and_shared_apart() -> None:
    torch.manual_seed(0)
    decoder = CaptionDecoder(5, (16, 12), private=2).eval()
    u = torch.randn(4, 5, requires_grad=True)
    assert decoder.own is not None
    decoder.own(u[:, :2]).sum().backward()
    assert u.grad is not None and bool((u.grad[:, 2:] == 0).all())
    assert CaptionDecoder(5, (16, 12)).own is None
    assert size(CaptionEncoder((32, 12), 4, shallow=True)) < size(CaptionEncoder((32, 12), 4))


@pytest.mark.parametrize(
    ("shape", "network"),
    [
        ((3, 28, 28), "resnet"),
        ((3, 64, 64), "resnet"),
        ((3, 32, 32), "svhn"),
        ((3, 16, 16), "mlp"),
        ((1, 28, 28), "mlp"),
        ((32, 1590), "caption"),
        ((8, 71), "mlp"),
        ((216,), "mlp"),
    ],
)
def test_what_is_chosen_for_a_shape(shape: tuple[int, ...], network: str) -> None:
    assert choose_network(shape) == network
    assert type(make_encoder("auto", shape, 2, (4,))) is type(make_encoder(network, shape, 2, (4,)))


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        ("transformer", (3,), f"network: expected auto or one of {', '.join(NETWORKS)}, got 'transformer'"),
        ("resnet", (5,), r"network: 'resnet' takes pictures \[C, H, W\], got \[5\]"),
        ("caption", (9, 4), r"'caption' takes words \[L, V\] with L a multiple of 8, got \[9, 4\]"),
        ("svhn", (3, 28, 28), r"shape: the SVHN network takes pictures \[3, 32, 32\], got \[3, 28, 28\]"),
    ],
)
def test_networks_that_do_not_fit(network: str, shape: tuple[int, ...], message: str) -> None:
    for make in (make_encoder, make_decoder):
        with pytest.raises(ValueError, match=message):
            make(network, shape, 2, (4,))


class Both(nn.Module):
    """One tensor [B, 2 dim]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Answer(nn.Module):
    """As decoders of other libraries answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, u: Tensor) -> SimpleNamespace:
        return SimpleNamespace(reconstruction=self.layer(u))


def other_modules(encoder: nn.Module, decoder: nn.Module) -> MultimodalVAE:
    return MMVAE(
        {"a": (4,)}, StandardNormal(3), posterior="normal", likelihoods={"a": likelihoods.Normal(1)},
        encoders={"a": encoder}, decoders={"a": decoder},
    )  # fmt: skip


def test_any_module_serves() -> None:
    model = other_modules(Both(), Answer())
    model.objective({"a": torch.randn(5, 4)}, Stream(0)).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.generate(2, seed=0)["a"].shape == (2, 4)


def test_modules_that_answer_something_else() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor) -> object:
            return x, x, x

    with pytest.raises(TypeError, match=r"encoder: expected it to return \(loc, raw scale\) or one tensor of both"):
        other_modules(Three(), Answer()).encode({"a": torch.randn(2, 4)})
    with pytest.raises(TypeError, match="decoder: expected it to return a tensor, got tuple"):
        other_modules(Both(), Three()).decode(torch.randn(2, 3))


def test_a_model_takes_one_network_or_one_for_each_modality() -> None:
    shapes = {"picture": (3, 16, 16), "words": (16, 9), "numbers": (7,)}
    model = MMVAEPlus(shapes, StandardNormal(4), private_dim=2, posterior="normal", networks={"picture": "conv"})
    kinds = {m: type(d).__name__ for m, d in model.decoders.items()}
    assert kinds == {"picture": "ConvDecoder", "words": "CaptionDecoder", "numbers": "MLPDecoder"}
    assert type(model.private_encoders["words"]).__name__ == "CaptionEncoder"
    with pytest.raises(ValueError, match="networks: unknown modality sound"):
        MMVAE(shapes, StandardNormal(4), networks={"sound": "mlp"})

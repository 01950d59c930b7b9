"""The classifiers coherence is measured with: how good they are, and when they are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmebm.data import MultimodalDataset, load
from mmebm.data.mnist_svhn_text import ALPHABET, place_words
from mmebm.evaluation import classifiers as module
from mmebm.evaluation.classifiers import Classifiers, load_or_train
from mmebm.evaluation.evaluate import evaluate
from mmebm.likelihoods import Categorical, Laplace
from mmebm.models import MMVAE
from mmebm.priors import StandardLaplace

TWO = ("m0", "m3")


def part(split: str, size: int, names: tuple[str, ...] = TWO, shuffled: bool = False) -> MultimodalDataset:
    data = load("digits", split, size=size)
    assert data.labels is not None
    labels = data.labels[torch.randperm(size)] if shuffled else data.labels
    return MultimodalDataset({m: data.modalities[m] for m in names}, labels, "digits", split)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifiers, Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEPS", 250)
        patch.setattr(module, "EPOCHS", 1)
        return load_or_train(part("train", 6000), part("test", 600), cache_dir=folder), folder


def test_accuracy_is_measured_on_the_test_split(trained: tuple[Classifiers, Path]) -> None:
    found, _ = trained
    test = part("test", 600)
    assert test.labels is not None
    assert set(found.accuracy) == set(TWO) and found.seconds > 0 and found.n_classes == 10
    predictions = {m: found.predict(m, x) for m, x in test.modalities.items()}
    for m, predicted in predictions.items():
        assert found.accuracy[m] == pytest.approx(float((predicted == test.labels).float().mean()))
        assert found.accuracy[m] > 0.93
    assert found.agreement == pytest.approx(float((predictions["m0"] == predictions["m3"]).float().mean()))


def test_cached_classifiers_are_the_same(trained: tuple[Classifiers, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found, folder = trained
    monkeypatch.setattr(module, "_train", lambda *_: pytest.fail("trained again"))
    again = load_or_train(part("train", 6000), part("test", 600), cache_dir=folder)
    images = part("test", 600).modalities["m3"]
    assert torch.equal(again.logits("m3", images), found.logits("m3", images))
    assert again.accuracy == found.accuracy and again.agreement == found.agreement and again.seconds == 0
    monkeypatch.setenv("MMEBM_CACHE_DIR", str(folder))
    assert load_or_train(part("train", 6000), part("test", 600)).accuracy == found.accuracy
    record = json.loads(next((folder / "classifiers").glob("*.json")).read_text())
    assert record["train"] == part("train", 6000).fingerprint() and record["accuracy"] == found.accuracy
    assert len(list((folder / "classifiers").iterdir())) == 2  # nothing temporary left


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 5999}, {"test": 599}])
def test_other_data_or_seed_is_not_served_from_the_cache(
    trained: tuple[Classifiers, Path], change: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trained(Exception):
        pass

    def refuse(*_: object) -> None:
        raise Trained

    monkeypatch.setattr(module, "_train", refuse)
    train, test = part("train", change.get("train", 6000)), part("test", change.get("test", 600))
    with pytest.raises(Trained):
        load_or_train(train, test, seed=change.get("seed", 0), cache_dir=trained[1])


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_damaged_cache_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(module, "STEPS", 1)
    monkeypatch.setattr(module, "EPOCHS", 0)
    monkeypatch.setattr(module, "MINIMUM_ACCURACY", 0.0)
    train, test = part("train", 200), part("test", 50)
    first = load_or_train(train, test, cache_dir=tmp_path)
    next((tmp_path / "classifiers").glob(f"*.{suffix}")).write_bytes(b"{}")
    with pytest.warns(UserWarning, match="unreadable, classifiers are trained again"):
        second = load_or_train(train, test, cache_dir=tmp_path)
    images = test.modalities["m0"]
    assert torch.equal(first.logits("m0", images), second.logits("m0", images))  # the seed decides
    assert not torch.equal(
        load_or_train(train, test, seed=1, cache_dir=tmp_path).logits("m0", images), first.logits("m0", images)
    )


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "STEPS", 1)
    monkeypatch.setattr(module, "EPOCHS", 0)
    monkeypatch.setattr(module, "MINIMUM_ACCURACY", 0.0)
    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="disk full"):
        load_or_train(part("train", 200), part("test", 50), cache_dir=tmp_path)
    assert not list((tmp_path / "classifiers").iterdir())


def test_shuffled_labels_are_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 60)
    monkeypatch.setattr(module, "EPOCHS", 0)
    with pytest.raises(
        ValueError, match=r"classifier of 'm1': expected a test accuracy of at least 0.90, got 0.*refused"
    ):
        load_or_train(part("train", 2000, ("m1",), shuffled=True), part("test", 300, ("m1",)), cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_a_refused_record_is_refused_from_the_cache_too(trained: tuple[Classifiers, Path]) -> None:
    found, _ = trained
    for accuracy in (0.8999, float("nan")):
        with pytest.raises(ValueError, match=r"'m3': expected a test accuracy of at least 0\.90"):
            Classifiers(found.networks, {"m0": 0.99, "m3": accuracy}, 0.9, 0.0)


def test_decoder_means_are_clamped(trained: tuple[Classifiers, Path]) -> None:
    found, _ = trained
    images = part("test", 600).modalities["m0"]
    means = images.float() / 255
    assert torch.equal(found.logits("m0", images), found.logits("m0", means))
    outside = torch.where(means < 0.05, means - 3, torch.where(means > 0.95, means + 3, means))
    inside = torch.where(means < 0.05, 0.0, torch.where(means > 0.95, 1.0, means))
    assert (outside - inside).abs().max() > 2
    assert torch.equal(found.logits("m0", outside), found.logits("m0", inside))


def test_features_lead_to_the_logits(trained: tuple[Classifiers, Path]) -> None:
    found, _ = trained
    images = load("digits", "test", size=1100).modalities["m0"]  # more than one chunk
    features = found.features("m0", images)
    assert features.shape == (1100, 64) and not features.requires_grad
    torch.testing.assert_close(found.networks["m0"].head(features), found.logits("m0", images))
    torch.testing.assert_close(found.features("m0", images[1050:]), features[1050:])


def test_images_are_checked(trained: tuple[Classifiers, Path]) -> None:
    found, _ = trained
    with pytest.raises(ValueError, match="name: expected one of m0, m3, got 'm1'"):
        found.predict("m1", torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"images of 'm0': expected \[N, 3, 16, 16\] with N > 0, got \[2, 3, 28, 28\]"):
        found.predict("m0", torch.zeros(2, 3, 28, 28))
    with pytest.raises(TypeError, match=r"expected uint8 or floats, got torch\.int64"):
        found.predict("m0", torch.zeros(2, 3, 16, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected finite values"):
        found.predict("m0", torch.full((2, 3, 16, 16), torch.nan))


def test_datasets_are_checked(tmp_path: Path) -> None:
    train, test = part("train", 100), part("test", 50)
    unlabelled = MultimodalDataset(train.modalities, None, "digits", "train")
    with pytest.raises(ValueError, match="train: expected a labelled dataset"):
        load_or_train(unlabelled, test, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="test: expected train's modalities"):
        load_or_train(train, part("test", 50, ("m0",)), cache_dir=tmp_path)
    vectors = MultimodalDataset({"v": torch.zeros(10, 5)}, torch.zeros(10, dtype=torch.int64), "toy", "train")
    with pytest.raises(ValueError, match=r"'v': expected images \[C, H, W\] of at least 8 x 8 pixels, got \[5\]"):
        load_or_train(vectors, vectors, cache_dir=tmp_path)


def test_torchs_generator_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 1)
    monkeypatch.setattr(module, "EPOCHS", 0)
    monkeypatch.setattr(module, "MINIMUM_ACCURACY", 0.0)
    before = torch.get_rng_state()
    load_or_train(part("train", 200), part("test", 50), cache_dir=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_all_five_modalities_are_recognised(tmp_path: Path) -> None:
    found = load_or_train(load("digits", "train"), load("digits", "test"), cache_dir=tmp_path)
    assert len(found.accuracy) == 5 and min(found.accuracy.values()) > 0.95
    assert found.agreement > 0.88


def spelled(split: str, size: int) -> MultimodalDataset:
    data = part(split, size, ("m0",))
    assert data.labels is not None
    text = torch.from_numpy(place_words(data.labels.numpy(), np.random.default_rng(size)))
    modalities = {"m0": data.modalities["m0"], "text": text}
    return MultimodalDataset(modalities, data.labels, "spelled", split, vocabularies={"text": list(ALPHABET)})


def test_words_are_judged_by_what_they_spell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 300)
    monkeypatch.setattr(module, "EPOCHS", 1)
    train, test = spelled("train", 3000), spelled("test", 400)
    assert module.judged(train) == ["m0", "text"]
    found = load_or_train(train, test, cache_dir=tmp_path)
    assert found.accuracy["text"] > 0.99 and test.labels is not None
    rows = torch.arange(400)
    one_hot = test.batch(rows)["text"]
    assert torch.equal(found.predict("text", 0.6 * one_hot + 0.4 / one_hot.shape[-1]), test.labels), (
        "probabilities will do"
    )
    again = load_or_train(train, test, cache_dir=tmp_path)
    assert again.seconds == 0.0 and torch.equal(again.logits("text", one_hot), found.logits("text", one_hot))
    with pytest.raises(ValueError, match=r"images of 'text': expected \[N, 8, 71\] with N > 0, got \[400, 8\]"):
        found.predict("text", one_hot[..., 0])

    likelihoods = {"m0": Laplace(3, 0.3), "text": Categorical(2)}
    model = MMVAE(train.shapes, StandardLaplace(4), hidden=(16,), likelihoods=likelihoods)
    result = evaluate(model, train, test, found, samples=30, cross_rows=20, components=2, latents=100, probe_rows=100)
    assert result["joint"]["prior"]["n"] == 30 and set(result["joint"]["prior"]["frechet"]) == {"m0", "text"}
    assert {s["from"][0]: set(s["to"]) for s in result["cross"]["subsets"]} == {"m0": {"text"}, "text": {"m0"}}


def test_sentences_are_not_judged() -> None:
    data = spelled("train", 50)
    words = [f"word{i}" for i in range(71)]
    data = MultimodalDataset(data.modalities, data.labels, "words", "train", vocabularies={"text": words})
    assert module.judged(data) == ["m0"]

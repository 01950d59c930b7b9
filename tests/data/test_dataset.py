"""What a dataset refuses, and what it hands out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmebm.data import MultimodalDataset, load


def images(n: int = 6) -> Tensor:
    return (torch.arange(n * 3 * 4 * 4) % 256).to(torch.uint8).reshape(n, 3, 4, 4)


def make(modalities: dict[str, Tensor], labels: Tensor | None = None) -> MultimodalDataset:
    return MultimodalDataset(modalities, labels, "toy", "train")


def test_batches_are_float_in_the_unit_interval() -> None:
    pixels = images()
    vectors = torch.randn(6, 5)
    data = make({"image": pixels, "vector": vectors}, torch.arange(6))
    batch = data.batch(torch.tensor([4, 0, 4]))
    assert len(data) == 6
    assert data.shapes == {"image": (3, 4, 4), "vector": (5,)}
    assert batch["image"].dtype == torch.float32
    torch.testing.assert_close(batch["image"], pixels[[4, 0, 4]].double().div(255).float())
    torch.testing.assert_close(batch["vector"], vectors[[4, 0, 4]])


@pytest.mark.parametrize("index", [torch.tensor([0.0]), torch.tensor([True] * 6), torch.tensor(0), [0, 1]])
def test_batch_refuses_what_is_no_list_of_rows(index: object) -> None:
    with pytest.raises(TypeError, match="index: expected an int64 tensor"):
        make({"a": images()}).batch(index)  # type: ignore[arg-type]


def test_batch_refuses_rows_beyond_the_end() -> None:
    with pytest.raises(IndexError):
        make({"a": images()}).batch(torch.tensor([6]))


def test_no_modalities() -> None:
    with pytest.raises(ValueError, match="'toy': expected at least one, got none"):
        make({})


def test_no_rows() -> None:
    with pytest.raises(ValueError, match=r"'toy', split 'train'.*empty"):
        make({"a": images(0), "b": torch.zeros(0, 2)})


def test_unequal_rows_name_both_modalities_and_counts() -> None:
    with pytest.raises(ValueError, match="'a' with 6 and 'c' with 5"):
        make({"a": images(6), "b": images(6), "c": images(5)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_name_modality_and_first_row(bad: float) -> None:
    values = torch.zeros(6, 2, 2)
    values[3, 1, 0] = values[5, 0, 0] = bad
    with pytest.raises(ValueError, match=r"'v' of 'toy'.* 2 of 6 rows, the first is row 3"):
        make({"a": images(), "v": values})


@pytest.mark.parametrize("bad", [torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)])
def test_other_dtypes_are_refused(bad: Tensor) -> None:
    with pytest.raises(TypeError, match=r"'v' of 'toy': expected uint8 images or float32 values, got torch\."):
        make({"v": bad})


def test_arrays_and_flat_bytes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"'v' of 'toy': expected a torch.Tensor, got ndarray"):
        make({"v": images().numpy()})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"expected uint8 images \[N, C, H, W\], got shape \[6, 48\]"):
        make({"v": images().flatten(1)})


def test_labels_are_checked() -> None:
    with pytest.raises(ValueError, match=r"labels of 'toy': expected shape \[6\].*got \[5\]"):
        make({"a": images()}, torch.arange(5))
    with pytest.raises(TypeError, match=r"labels of 'toy': expected int64, got torch\.int32"):
        make({"a": images()}, torch.arange(6, dtype=torch.int32))
    with pytest.raises(TypeError, match="labels of 'toy': expected an int64 tensor or None, got list"):
        make({"a": images()}, [0] * 6)  # type: ignore[arg-type]


def test_fingerprint_follows_the_content() -> None:
    one = make({"a": images(), "b": torch.ones(6, 2)}, torch.arange(6))
    same = make({"b": torch.ones(6, 2), "a": images()}, torch.arange(6))
    assert one.fingerprint() == same.fingerprint()

    pixels = images()
    pixels[5, 2, 3, 3] += 1
    others = [
        make({"a": pixels, "b": torch.ones(6, 2)}, torch.arange(6)),
        make({"a": images(), "b": torch.ones(6, 2)}, torch.arange(6).flip(0)),
        make({"a": images(), "b": torch.ones(6, 2)}),
        make({"a": images(), "c": torch.ones(6, 2)}, torch.arange(6)),
        make({"a": images(), "b": torch.ones(6, 2, 1)}, torch.arange(6)),
    ]
    prints = [one.fingerprint(), *(other.fingerprint() for other in others)]
    assert len(set(prints)) == len(prints)


def test_unknown_names_and_splits_list_what_there_is() -> None:
    with pytest.raises(
        ValueError, match=r"name: expected one of arrays, cub, digits, mfeat, mnist_svhn, .*, got .mnist."
    ):
        load("mnist", "train")
    with pytest.raises(ValueError, match="split: expected one of train, validation, test, got 'val'"):
        load("digits", "val")
    with pytest.raises(TypeError, match="colour"):
        load("digits", "train", colour=True)


def test_codes_come_as_one_hot_rows_of_their_vocabulary() -> None:
    codes = torch.tensor([[0, 2], [1, 1]], dtype=torch.int16)
    data = MultimodalDataset({"text": codes}, None, "toy", "train", vocabularies={"text": ["a", "b", "c"]})
    assert data.shapes == {"text": (2, 3)}
    expected = torch.tensor([[[0, 1, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]]]).float()
    torch.testing.assert_close(data.batch(torch.tensor([1, 0]))["text"], expected)
    with pytest.raises(ValueError, match=r"'text' of 'toy': expected codes in \[0, 2\), got 2 in row 0"):
        MultimodalDataset({"text": codes}, None, "toy", "train", vocabularies={"text": ["a", "b"]})


def test_what_a_row_lacks_is_zero_and_its_value_is_not_looked_at() -> None:
    values = torch.ones(3, 2)
    values[1] = float("nan")
    seen = torch.tensor([True, False, True])
    data = MultimodalDataset({"a": values, "b": images(3)}, None, "toy", "train", masks={"a": seen})
    rows = torch.tensor([1, 2])
    torch.testing.assert_close(data.batch(rows)["a"], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    observed = data.observed(rows)
    assert observed is not None
    assert {m: x.tolist() for m, x in observed.items()} == {"a": [False, True], "b": [True, True]}
    whole = MultimodalDataset({"b": images(3)}, None, "toy", "train", masks={"b": torch.ones(3, dtype=torch.bool)})
    assert whole.observed(rows) is None
    fewer = MultimodalDataset({"a": values, "b": images(3)}, None, "toy", "train", masks={"a": ~seen & False})
    assert data.fingerprint() != fewer.fingerprint()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"c": torch.ones(6, dtype=torch.bool)}, "masks of 'toy': unknown modality c; there are a"),
        ({"a": torch.ones(6)}, "mask of 'a' of 'toy': expected bool"),
        ({"a": torch.ones(5, dtype=torch.bool)}, r"mask of 'a' of 'toy': expected shape \[6\], got \[5\]"),
    ],
)
def test_masks_that_do_not_fit(masks: dict[str, Tensor], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        MultimodalDataset({"a": images()}, None, "toy", "train", masks=masks)

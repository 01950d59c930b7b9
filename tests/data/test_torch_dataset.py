"""Rows of other people's datasets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from mmebm.data import from_dataset

N = 6
PICTURES = torch.arange(N * 12).to(torch.uint8).reshape(N, 3, 2, 2)
VECTORS = torch.randn(N, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rows() -> list[dict[str, Any]]:
    return [{"image": PICTURES[i], "sound": VECTORS[i]} for i in range(N)]


class Rows(Dataset[Any]):
    """Like MultiVae's datasets; a mask says that odd rows lack sound, whose values are not to be looked at."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        if i >= N:
            raise IndexError(i)
        sound = VECTORS[i] if i % 2 == 0 else torch.full((5,), float("nan"))
        masks = {"image": torch.tensor(True), "sound": torch.tensor(i % 2 == 0)}
        return SimpleNamespace(data={"image": PICTURES[i], "sound": sound}, labels=torch.tensor(i), masks=masks)


def test_rows_are_stacked() -> None:
    found = from_dataset(rows(), "train", name="mine")
    assert found.shapes == {"image": (3, 2, 2), "sound": (5,)} and found.labels is None and found.masks is None
    assert (found.name, found.split) == ("mine", "train")
    assert torch.equal(found.modalities["image"], PICTURES)
    assert torch.equal(found.modalities["sound"], VECTORS.float())


def test_labels_and_arrays() -> None:
    pairs = [({"sound": VECTORS[i].numpy()}, np.int64(i)) for i in range(N)]
    found = from_dataset(pairs, "test")
    assert torch.equal(found.modalities["sound"], VECTORS.float())
    assert found.labels is not None and found.labels.tolist() == list(range(N))


@pytest.mark.parametrize("as_mapping", [False, True])
def test_rows_with_masks(as_mapping: bool) -> None:
    whole: Any = [vars(Rows()[i]) for i in range(N)] if as_mapping else Rows()
    found = from_dataset(whole, "train")
    assert found.labels is not None and found.labels.tolist() == list(range(N))
    observed = found.observed(torch.arange(N))
    assert observed is not None and observed["sound"].tolist() == [True, False] * 3 and observed["image"].all()
    assert (found.batch(torch.tensor([1]))["sound"] == 0).all()


def test_rows_that_lack_a_modality() -> None:
    given: list[Any] = rows()
    given[0]["sound"] = None
    given[2] = SimpleNamespace(data={"image": PICTURES[2]}, masks={"sound": False})
    found = from_dataset(given, "train")
    assert found.masks is not None and found.masks["sound"].tolist() == [False, True, False, True, True, True]
    assert torch.equal(found.modalities["sound"][3], VECTORS[3].float())


def test_codes() -> None:
    given = [{"text": torch.tensor([0, i % 2])} for i in range(N)]
    found = from_dataset(given, "train", vocabularies={"text": ["a", "b"]})
    assert found.shapes == {"text": (2, 2)}
    with pytest.raises(ValueError, match=r"'text' of 'dataset': expected codes in \[0, 1\), got 1 in row 1"):
        from_dataset(given, "train", vocabularies={"text": ["a"]})


@pytest.mark.parametrize(("row", "error", "message"), [
    ({"image": PICTURES[0]}, ValueError, "row 3 of 'mine': expected modalities image, sound as in row 0, got no"),
    (rows()[0] | {"smell": VECTORS[0]}, ValueError, "row 3 of 'mine': .* as in row 0, got 'smell' too"),
    (rows()[0] | {"sound": VECTORS[0, :4]}, ValueError, r"row 3 of 'mine', 'sound': expected shape \[5\] .*got \[4\]"),
    (rows()[0] | {"sound": PICTURES[0]}, TypeError, "row 3 of 'mine', 'sound': expected torch.float32 as before, got"),
    (rows()[0] | {"sound": torch.arange(5)}, TypeError, "row 3 of 'mine', 'sound': expected uint8 .*got torch.int64"),
    (rows()[0] | {"sound": [1.0]}, TypeError, "row 3 of 'mine', 'sound': expected a tensor or an array, got list"),
    (rows()[0] | {"sound": np.array(["a"] * 5)}, TypeError, "row 3 of 'mine', 'sound': expected numbers that torch"),
    (VECTORS[0], TypeError, "row 3 of 'mine': expected {modality: values}, .*got Tensor"),
    ((rows()[0], 1), ValueError, "row 0 of 'mine': expected a label as other rows have, got none"),
    ((rows()[0], -1), ValueError, "row 3 of 'mine': expected a label >= 0, got -1"),
    ((rows()[0], 0.5), TypeError, "row 3 of 'mine': expected an integer label, got 0.5"),
    ((rows()[0], True), TypeError, "row 3 of 'mine': expected an integer label, got True"),
    (SimpleNamespace(data=rows()[0], masks={"sound": 2}), ValueError, "row 3 of 'mine', mask of 'sound': expected"),
    (SimpleNamespace(data=rows()[0], masks={"smell": True}), ValueError, "row 3 of 'mine': .*got 'smell' too"),
    (rows()[0] | {"sound": VECTORS[0] / 0}, ValueError, "'sound' of 'mine': expected finite values, .*is row 3"),
])  # fmt: skip
def test_rows_that_do_not_fit_are_named(row: Any, error: type[Exception], message: str) -> None:
    given: list[Any] = rows()
    given[3] = row
    with pytest.raises(error, match=message):
        from_dataset(given, "train", name="mine")


def test_what_is_no_dataset() -> None:
    with pytest.raises(TypeError, match="dataset: expected a length and rows by number, got generator"):
        from_dataset((row for row in rows()), "train")
    with pytest.raises(ValueError, match="dataset 'dataset', split 'train': expected at least one row"):
        from_dataset([], "train")
    with pytest.raises(ValueError, match="dataset 'dataset': expected 'a' in at least one row, got none"):
        from_dataset([{"a": None, "b": VECTORS[0]}], "train")


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (np.uint64(2**63), ValueError, r"expected a label below 2\*\*63, got 9223372036854775808"),
        (torch.tensor(True), TypeError, r"expected an integer label, got tensor\(True\)"),
        (np.array([1.5]), TypeError, "expected an integer label"),
    ],
)
def test_labels_that_are_none(label: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_dataset([({"sound": VECTORS[0]}, label)])


def test_small_unsigned_labels_and_masks_of_words() -> None:
    found = from_dataset([({"sound": VECTORS[0]}, np.uint64(3))])
    assert found.labels is not None and found.labels.tolist() == [3] and found.split == "train"
    with pytest.raises(TypeError, match="expected True or False, got 'yes'"):
        from_dataset([{"data": {"sound": VECTORS[0]}, "masks": {"sound": "yes"}}])

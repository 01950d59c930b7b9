"""Words, the vocabulary, and the way back from codes to a sentence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmebm.data.captions import encode, sentence, tokens, vocabulary


@pytest.mark.parametrize(("text", "words"), [
    ("This bird, Small & grey.", ["this", "bird", ",", "small", "&", "grey", "."]),
    ("a blue-grey bird's bill", ["a", "blue-grey", "bird", "'s", "bill"]),
    ("black/white (webbed) feet", ["black", "/", "white", "(", "webbed", ")", "feet"]),
    ("  ", []),
])  # fmt: skip
def test_words(text: str, words: list[str]) -> None:
    assert tokens(text) == words


def test_the_vocabulary_keeps_what_comes_more_often_in_order_of_appearance() -> None:
    said = [["b", "a", "c"], ["a", "b", "a"], ["b", "a", "d"]]
    assert vocabulary(said, 2) == ["<exc>", "<pad>", "<eos>", "b", "a"]
    assert vocabulary(said, 3) == ["<exc>", "<pad>", "<eos>", "a"]
    assert vocabulary(said, 0)[3:] == ["b", "a", "c", "d"]


def test_codes_end_with_eos_and_are_padded_or_cut() -> None:
    codes = {"<exc>": 0, "<pad>": 1, "<eos>": 2, "a": 3, "b": 4}
    assert encode(["a", "x"], codes, 5) == [3, 0, 2, 1, 1]
    assert encode(["a", "b", "a", "b", "a"], codes, 5) == [3, 4, 3, 4, 2]
    assert encode([], codes, 3) == [2, 1, 1]


@pytest.mark.parametrize("text", ["a small bird, with (webbed) feet.", "it's body isn't grey; is it?"])
def test_a_sentence_comes_back_from_its_codes(text: str) -> None:
    words = vocabulary([tokens(text)], 0)
    codes = torch.tensor(encode(tokens(text), {word: code for code, word in enumerate(words)}, 20))
    assert sentence(codes, words) == text
    assert sentence(codes.tolist(), words) == text
    assert sentence(F.one_hot(codes, len(words)).float(), words) == text


def test_codes_of_no_sentence() -> None:
    words = vocabulary([["a"]], 0)
    with pytest.raises(
        ValueError, match=r"codes: expected integers \[L\] or scores \[L, 4\], got torch.float32 \[2, 3\]"
    ):
        sentence(torch.zeros(2, 3), words)
    with pytest.raises(ValueError, match="codes: expected 0 to 3, got 4 at place 1"):
        sentence([3, 4], words)

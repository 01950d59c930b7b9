"""Sentences as codes of a vocabulary: words, the vocabulary, and the way back.

As in MMVAE's and MMVAE+'s preprocessing of the CUB captions (Shi et al., NeurIPS 2019), whose words come from nltk.
The words here need no download, and differ from nltk's where a word has an apostrophe (doesn't is doesn 't, not does
n't; cannot is one word), at quotation marks, which stay as they are, and at slashes and inner full stops, which part
words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import Tensor

__all__ = ["SPECIALS", "encode", "sentence", "tokens", "vocabulary"]

EXC, PAD, EOS = range(3)
SPECIALS = ("<exc>", "<pad>", "<eos>")
_TOKEN = re.compile(r"\w+(?:-\w+)*|'\w+|[^\w\s]")
_CLOSING = re.compile(r" (?=[.,;:!?)'])|(?<=\() ")


def tokens(text: str) -> list[str]:
    """Lower-case words, inner hyphens kept, and punctuation marks; an apostrophe begins a new token."""
    return _TOKEN.findall(text.lower())


def vocabulary(sentences: Iterable[Sequence[str]], minimum: int) -> list[str]:
    """<exc>, <pad>, <eos>, then the words that come more than `minimum` times, in order of first appearance."""
    counts: Counter[str] = Counter()
    for words in sentences:
        counts.update(words)
    return [*SPECIALS, *(word for word, n in counts.items() if n > minimum)]


def encode(words: Sequence[str], codes: dict[str, int], length: int) -> list[int]:
    """The codes of the first length - 1 words, <eos>, and <pad> up to `length`; a word without a code is <exc>."""
    known = [codes.get(word, EXC) for word in words[: length - 1]]
    return [*known, EOS, *[PAD] * (length - 1 - len(known))]


def sentence(codes: Tensor | Sequence[int], words: Sequence[str]) -> str:
    """The text that codes stand for, up to <eos>; a vocabulary of single characters has no spaces between them.

    Args:
        codes: integers [L], or scores [L, V] (one-hot rows, probabilities), whose largest is taken.
        words: the vocabulary, a dataset's `vocabularies["caption"]`.

    Raises:
        ValueError: codes of another shape, or beyond the vocabulary.
    """
    if isinstance(codes, Tensor):
        if codes.ndim == 2 and codes.shape[1] == len(words):
            codes = codes.argmax(1)
        if codes.ndim != 1 or codes.is_floating_point():
            raise ValueError(
                f"codes: expected integers [L] or scores [L, {len(words)}], got {codes.dtype} {list(codes.shape)}"
            )
        codes = codes.tolist()
    found = []
    for place, code in enumerate(codes):
        if not 0 <= code < len(words):
            raise ValueError(f"codes: expected 0 to {len(words) - 1}, got {code} at place {place}")
        if words[code] == SPECIALS[EOS]:
            break
        if words[code] != SPECIALS[PAD]:
            found.append(words[code])
    if all(len(word) == 1 for word in words):
        return "".join(found)
    return _CLOSING.sub("", " ".join(found))

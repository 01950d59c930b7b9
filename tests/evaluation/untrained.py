"""Classifiers that were never trained: some function of the images, which is all that arithmetic needs."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mmebm.evaluation.classifiers import Classifiers, DigitClassifier


def untrained(
    shapes: Mapping[str, tuple[int, ...]], classes: int, accuracy: Mapping[str, float], agreement: float
) -> Classifiers:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        networks = {m: DigitClassifier(shape, classes) for m, shape in shapes.items()}
        for network in networks.values():
            network.head.weight.data.mul_(20.0)
            network.head.bias.data.zero_()
    return Classifiers(networks, accuracy, agreement, 0.0)

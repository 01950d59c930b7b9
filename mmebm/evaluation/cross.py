"""What every subset of modalities tells of the others: coherence and reconstruction, in one pass over the data.

For each batch the encoders run once, one operator makes all subsets' posteriors, every target is decoded from what the
subsets drew, and counts are summed up as they come. Of a mixture of experts, whose subsets share their members' draws,
a target is decoded once for each member.

Protocol: one draw of z a row and subset, private latents from p(w), likelihood means. A target is asked for where it is
not among the given, and of itself alone, which no average counts. Micro: the fraction of rows of the source's class;
macro: averaged over classes first (as MultiVae 1.0.3 does). Source: Sutter et al., ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mmebm.data import MultimodalDataset
from mmebm.models import MultimodalVAE
from mmebm.sampling.streams import Stream

from .classifiers import Classifiers
from .intervals import bootstrap_interval

__all__ = ["CrossResult", "Pair", "Size", "cross_by_subset", "subset_latents"]

_BATCH = 256


@dataclass(frozen=True)
class Pair:
    """One target given some modalities, over `n` rows that have them (and the target, for the errors).

    `micro` and `macro` are fractions of rows of the right class, None without a classifier or labels; `rmse` the root
    mean square error of the likelihood's mean, `log_likelihood` the mean of log p(x | z) over one draw, in nats; None
    where no errors were asked for.
    """

    given: tuple[str, ...]
    target: str
    n: int
    micro: float | None
    macro: float | None
    rmse: float | None
    log_likelihood: float | None


@dataclass(frozen=True)
class Size:
    """Coherence averaged over the pairs of one number of given modalities; `interval` of micro, by rows."""

    micro: float
    macro: float
    interval: tuple[float, float]
    pairs: int


@dataclass(frozen=True)
class CrossResult:
    """All pairs, and by number of given modalities: coherence, and each target's mean error and log-likelihood."""

    pairs: list[Pair]
    by_size: dict[int, Size] = field(default_factory=dict)
    n: int = 0

    def others(self) -> list[Pair]:
        """The pairs whose target is not among the given."""
        return [pair for pair in self.pairs if pair.target not in pair.given]

    def matrix(self) -> dict[str, dict[str, float | None]]:
        """Source -> target -> the micro coherence, the target's own included."""
        found: dict[str, dict[str, float | None]] = {}
        for pair in self.pairs:
            if len(pair.given) == 1:
                found.setdefault(pair.given[0], {})[pair.target] = pair.micro
        return found

    def errors(self) -> dict[int, dict[str, dict[str, float]]]:
        """Number of given modalities -> target -> mean over subsets of rmse and log_likelihood."""
        found: dict[int, dict[str, list[Pair]]] = {}
        for pair in self.others():
            if pair.rmse is None:
                continue
            found.setdefault(len(pair.given), {}).setdefault(pair.target, []).append(pair)
        return {
            size: {
                target: {name: _mean([getattr(p, name) for p in pairs]) for name in ("rmse", "log_likelihood")}
                for target, pairs in targets.items()
            }
            for size, targets in sorted(found.items())
        }


class _Batch(NamedTuple):
    target: str
    subsets: list[int]  # places in the list of all subsets, [S]
    decoded: Tensor  # a decoder's outputs for what these subsets need, [C, B, *shape]
    of: Tensor  # which of the C each subset has, int64 [S, B]
    present: Tensor  # who has all the modalities of a subset, bool [S, B]
    inputs: dict[str, Tensor]
    seen: Tensor  # who has the target, bool [B]
    rows: slice


@torch.no_grad()
def cross_by_subset(
    model: MultimodalVAE,
    data: MultimodalDataset,
    classifiers: Classifiers | None = None,
    *,
    rows: int | None = None,
    seed: int = 0,
    errors: bool = True,
) -> CrossResult:
    """Every target from every subset of the other modalities, on the first `rows` rows (default: all).

    Without classifiers, or for modalities they do not judge, coherence is left out; `errors` are a fifth of the time.
    """
    count = len(data) if rows is None else min(rows, len(data))
    subsets = list(range(1, (1 << len(model.modalities)) - 1))
    if not subsets:
        raise ValueError(f"model: expected two modalities or more, got {model.modalities}")
    tally = _Tally(model, data, classifiers, subsets, count, errors)
    for batch in _batches(model, data, subsets, count, seed):
        tally.add(batch)
    return tally.result(seed)


def _batches(
    model: MultimodalVAE, data: MultimodalDataset, subsets: list[int], count: int, seed: int
) -> Iterator[_Batch]:
    # What does not have the target, and the target alone.
    outside = {
        t: [i for i, s in enumerate(subsets) if not s >> m & 1 or s == 1 << m] for m, t in enumerate(model.modalities)
    }
    for start in range(0, count, _BATCH):
        rows = slice(start, min(count, start + _BATCH))
        index = torch.arange(rows.start, rows.stop)
        inputs, masks = data.batch(index), data.observed(index)
        present = model.presence(inputs, masks)  # [M, B]
        draws = model.subset_draws(inputs, subsets, Stream(seed, device=data.device, first_chain=start), masks)
        flat = draws.z.flatten(0, 1)
        u = model.decoder_inputs(flat, seed, start * len(draws.z))
        complete = torch.stack([present[[m for m in range(len(present)) if s >> m & 1]].all(0) for s in subsets])
        for m, (target, chosen) in enumerate(outside.items()):
            of = draws.of[chosen]
            needed, of = torch.unique(of, return_inverse=True)
            from_z = u[target].unflatten(0, draws.z.shape[:2])
            from_z = from_z if len(needed) == len(from_z) else from_z[needed]
            decoded = model.decoder_output(target, from_z.flatten(0, 1)).unflatten(0, from_z.shape[:2])
            yield _Batch(target, chosen, decoded, of, complete[chosen], inputs, present[m], rows)


class _Tally:
    """Sums over rows by subset and target."""

    def __init__(
        self,
        model: MultimodalVAE,
        data: MultimodalDataset,
        classifiers: Classifiers | None,
        subsets: list[int],
        rows: int,
        errors: bool,
    ) -> None:
        self.model, self.subsets, self.errors = model, subsets, errors
        self.labels = None if classifiers is None or data.labels is None else data.labels[:rows]
        self.classifiers = classifiers
        shape = (len(subsets), len(model.modalities))
        classes = 1 if classifiers is None else classifiers.n_classes
        device = data.device
        self.right = torch.zeros(*shape, classes, dtype=torch.int64, device=device)
        self.asked = torch.zeros(*shape, classes, dtype=torch.int64, device=device)
        self.square = torch.zeros(shape, dtype=torch.float64, device=device)
        self.log_p = torch.zeros(shape, dtype=torch.float64, device=device)
        self.compared = torch.zeros(shape, dtype=torch.int64, device=device)
        # Of each row, by number of given modalities: right answers and questions.
        sizes = len(model.modalities)
        self.row_right = torch.zeros(sizes, rows, dtype=torch.int64, device=device)
        self.row_asked = torch.zeros(sizes, rows, dtype=torch.int64, device=device)

    def judged(self, target: str) -> bool:
        return self.labels is not None and self.classifiers is not None and target in self.classifiers.networks

    def add(self, batch: _Batch) -> None:
        t = self.model.modalities.index(batch.target)
        at = torch.tensor(batch.subsets, device=batch.of.device)
        likelihood, x = self.model.likelihoods[batch.target], batch.inputs[batch.target]
        made = likelihood.mean(batch.decoded)
        if self.errors:
            both = batch.present & batch.seen
            square = (made - x).square().flatten(2).mean(-1).gather(0, batch.of)
            log_p = likelihood.log_prob(x, batch.decoded).gather(0, batch.of)
            self.square[at, t] += torch.where(both, square, 0.0).sum(1).double()
            self.log_p[at, t] += torch.where(both, log_p, 0.0).sum(1).double()
            self.compared[at, t] += both.sum(1)
        if not self.judged(batch.target):
            return
        assert self.labels is not None and self.classifiers is not None
        labels = self.labels[batch.rows]
        predicted = self.classifiers.predict(batch.target, made.flatten(0, 1)).unflatten(0, made.shape[:2])
        right = (predicted == labels).gather(0, batch.of) & batch.present  # [S, B]
        # In float64, which counts as exactly: GPUs have no products of integers.
        by_class = torch.nn.functional.one_hot(labels, self.right.shape[-1]).double()  # [B, n_classes]
        self.right[at, t] += (right.double() @ by_class).long()
        self.asked[at, t] += (batch.present.double() @ by_class).long()
        for size in range(1, len(self.row_right)):
            asked = [self.subsets[i].bit_count() == size and not self.subsets[i] >> t & 1 for i in batch.subsets]
            of_size = torch.tensor(asked, device=at.device)
            if bool(of_size.any()):
                self.row_right[size, batch.rows] += right[of_size].sum(0)
                self.row_asked[size, batch.rows] += batch.present[of_size].sum(0)

    def result(self, seed: int) -> CrossResult:
        names, pairs = self.model.modalities, []
        for i, s in enumerate(self.subsets):
            given = tuple(m for k, m in enumerate(names) if s >> k & 1)
            for t, target in enumerate(names):
                if (s >> t & 1 and s != 1 << t) or not int(self.compared[i, t] + self.asked[i, t].sum()):
                    continue
                n, right, asked = int(self.compared[i, t]), self.right[i, t].double(), self.asked[i, t]
                judged = self.judged(target) and bool(asked.sum())
                pairs.append(
                    Pair(
                        given=given,
                        target=target,
                        n=max(n, int(asked.sum())),
                        micro=float(right.sum() / asked.sum()) if judged else None,
                        macro=float((right / asked)[asked > 0].mean()) if judged else None,
                        rmse=float((self.square[i, t] / max(1, n)).sqrt()) if self.errors else None,
                        log_likelihood=float(self.log_p[i, t] / max(1, n)) if self.errors else None,
                    )
                )
        return CrossResult(pairs, self._sizes(pairs, seed), self.row_right.shape[1])

    def _sizes(self, pairs: list[Pair], seed: int) -> dict[int, Size]:
        found = {}
        others = [p for p in pairs if p.target not in p.given]
        for size in range(1, len(self.model.modalities)):
            micro = [p.micro for p in others if len(p.given) == size and p.micro is not None]
            macro = [p.macro for p in others if len(p.given) == size and p.macro is not None]
            asked = self.row_asked[size] > 0
            if micro:
                share = self.row_right[size][asked].double() / self.row_asked[size][asked]
                found[size] = Size(_mean(micro), _mean(macro), bootstrap_interval(share, seed=seed), len(micro))
        return found


@torch.no_grad()
def subset_latents(model: MultimodalVAE, data: MultimodalDataset, rows: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """One draw of z for every nonempty subset s and row, [S, N, d] at s - 1, and who has all of it, bool [S, N]."""
    subsets = list(range(1, 1 << len(model.modalities)))
    parts, complete = [], []
    for start in range(0, len(rows), 4096):
        index = rows[start : start + 4096]
        inputs, masks = data.batch(index), data.observed(index)
        present = model.presence(inputs, masks)
        draws = model.subset_draws(inputs, subsets, Stream(seed, device=data.device, first_chain=start), masks)
        at = draws.of.unsqueeze(-1).expand(-1, -1, draws.z.shape[-1])
        parts.append(draws.z.gather(0, at))
        complete.append(torch.stack([present[[m for m in range(len(present)) if s >> m & 1]].all(0) for s in subsets]))
    return torch.cat(parts, 1), torch.cat(complete, 1)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

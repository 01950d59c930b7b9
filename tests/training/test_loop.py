"""The training loop: repeatable, resumable bit for bit, and careful with folders and divergence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmebm import data as datasets
from mmebm.data import MultimodalDataset
from mmebm.models import MultimodalVAE
from mmebm.training import Run, TrainingDiverged, build_model, load, load_config, train
from mmebm.training.config import Config, overridden
from mmebm.training.loop import Trainer, batches

TINY = {
    "seed": 3,
    "model": {"latent_dim": 3, "private_dim": 2, "hidden": [8], "likelihood_scale": 0.5},
    "prior": {"hidden": [8], "steps": 5, "input_scale": 1.0},
    "train": {
        "updates": 20,
        "batch_size": 8,
        "log_every": 1,
        "checkpoint_every": 5,
        "decay": "cosine",
        "energy_start": 0,
        "energy_enters": 0,
        "energy_warmup": 0,
        "energy": {"chains": 16, "steps": 4, "reinitialise": 0.2, "repeats": 1, "step_size": 0.2},
    },
}


def config(*changes: str) -> Config:
    return overridden(json.loads(json.dumps(TINY)), changes)


def tiny_data(rows: int = 37) -> MultimodalDataset:
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (rows, 1, 4, 4), dtype=torch.uint8, generator=g)
    return MultimodalDataset({"image": images, "sound": torch.rand(rows, 5, generator=g)}, None, "tiny", "train")


def rows(folder: Path) -> list[dict[str, Any]]:
    found = Run.open(folder).rows()
    assert all(row.pop("updates_per_second") > 0 for row in found)
    return found


def weights(model: MultimodalVAE) -> dict[str, Tensor]:
    return {n: v.clone() for n, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


class Stopped(Exception):
    pass


def stop_at(update: int):
    def progress(done: int, row: dict[str, float]) -> None:
        if done == update:
            raise Stopped

    return progress


# Repeatable -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mmvae", "mmvaeplus"])
def test_a_seed_determines_a_run(tmp_path: Path, name: str) -> None:
    settings = config(f"model.name={name}")
    first = train(settings, tiny_data(), tmp_path / "a")
    torch.rand(5)
    assert same(weights(first), weights(train(settings, tiny_data(), tmp_path / "b")))
    found = rows(tmp_path / "a")
    assert found == rows(tmp_path / "b") and [row["update"] for row in found] == list(range(1, 21))
    assert all(math.isfinite(value) for row in found for value in row.values())
    other = train(config(f"model.name={name}", "seed=4"), tiny_data(), tmp_path / "c")
    assert all(a["loss"] != b["loss"] for a, b in zip(found, rows(tmp_path / "c"), strict=True))
    assert not any(
        torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True) if a.requires_grad
    )


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    train(config("train.updates=150", "train.learning_rate=0.01"), tiny_data(), tmp_path / "run")
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    before, after = torch.tensor(losses[:20]), torch.tensor(losses[-20:])
    error = (before.var() / 20 + after.var() / 20).sqrt()
    assert float(before.mean() - after.mean()) > 5 * float(error)


def test_training_leaves_torchs_generator_alone(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    train(config("train.updates=2"), tiny_data(), tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("estimator", ["elbo", "dreg"])
def test_the_models_noise_does_not_depend_on_the_energy(tmp_path: Path, estimator: str) -> None:
    """An energy trained beside a model that does not see it leaves the model as it is without one."""
    shared = (f"model.estimator={estimator}", "model.samples=2")
    alone = train(config("prior.name=laplace", *shared), tiny_data(), tmp_path / "alone")
    beside = train(config("train.energy_enters=none", *shared), tiny_data(), tmp_path / "beside")
    others = [n for n in alone.state_dict() if not n.startswith("prior.")]
    assert len(others) > 10
    assert all(torch.equal(alone.state_dict()[n], beside.state_dict()[n]) for n in others)
    for a, b in zip(rows(tmp_path / "alone"), rows(tmp_path / "beside"), strict=True):
        assert "E_gap" in b and "E_gap" not in a
        assert {k: b[k] for k in a if k != "energy"} == {k: v for k, v in a.items() if k != "energy"}
    seen = train(config(*shared), tiny_data(), tmp_path / "seen")
    assert not torch.equal(seen.state_dict()[others[0]], alone.state_dict()[others[0]])


def test_only_the_energys_update_moves_the_energy() -> None:
    settings = config("train.energy_start=2", "train.energy.repeats=2")
    model = build_model(settings, tiny_data().shapes)
    trainer, moved = Trainer(model, settings), []
    for index in batches(37, 8, 3):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        metrics = trainer.update(tiny_data().batch(index))
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert {n for n in before if not n.startswith("prior.")} <= changed
        moved.append(any(n.startswith("prior.") for n in changed))
        assert ("E_gap" in metrics) == moved[-1]
        if trainer.updates == 7:
            break
    assert moved == [False, False, True, True, True, True, True]
    assert trainer.energy.updates == 10 and trainer.energy.total == 2 * (settings.train.updates - 2)


def test_the_energy_goes_on_alone_after_the_models_last_update(tmp_path: Path) -> None:
    train(config("train.updates=12", "train.energy_finish=8"), tiny_data(), tmp_path / "run")
    assert [row["update"] for row in rows(tmp_path / "run")] == list(range(1, 21))
    assert ["grad_norm" in row for row in rows(tmp_path / "run")] == [True] * 12 + [False] * 8
    assert config("train.updates=12", "train.energy_finish=8", "prior.name=laplace").updates == 12
    settings = config("train.updates=3", "train.energy_finish=5")
    trainer = Trainer(build_model(settings, tiny_data().shapes), settings)
    for index, _ in zip(batches(37, 8, 3), range(3), strict=False):
        trainer.update(tiny_data().batch(index))
    moved = weights(trainer.model)
    trainer.update(tiny_data().batch(torch.arange(8)))
    changed = {n for n, v in weights(trainer.model).items() if not torch.equal(v, moved[n])}
    assert changed and all(n.startswith("prior.") for n in changed)


def test_energy_weight_starts_and_warms_up() -> None:
    def course(*changes: str) -> list[float]:
        trainer, found = Trainer(build_model(config(*changes), tiny_data().shapes), config(*changes)), []
        for trainer.updates in range(7):
            found.append(trainer.energy_weight())
        return found

    assert course() == course("train.energy_start=2") == [1.0] * 7
    assert course("train.energy_enters=2") == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert course("train.energy_enters=2", "train.energy_warmup=4") == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert course("train.energy_warmup=2") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert course("train.energy_enters=none") == [0.0] * 7


def test_energy_weight_reaches_the_objective() -> None:
    settings = config("train.energy_enters=1", "train.energy_warmup=2")
    trainer, given = Trainer(build_model(settings, tiny_data().shapes), settings), []
    objective = trainer.model.objective

    def spied(inputs: dict[str, Tensor], stream: object, *, masks: object, energy_weight: float) -> object:
        given.append(energy_weight)
        return objective(inputs, stream, masks=masks, energy_weight=energy_weight)

    trainer.model.objective = spied
    for index, _ in zip(batches(37, 8, 3), range(4), strict=False):
        trainer.update(tiny_data().batch(index))
    assert given == [0.0, 0.5, 1.0, 1.0]


def test_the_energys_positives_are_the_objectives() -> None:
    settings = config("model.samples=2", "model.estimator=iwae")
    trainer = Trainer(build_model(settings, tiny_data().shapes), settings)
    made, taken = [], []
    objective, step = trainer.model.objective, trainer.energy.step

    def spied(*args: object, **options: object) -> object:
        made.append(objective(*args, **options))
        return made[-1]

    trainer.model.objective = spied
    trainer.energy.step = lambda z, weights: taken.append((z, weights)) or step(z, weights)
    trainer.update(tiny_data().batch(torch.arange(8)))
    assert torch.equal(taken[0][0], made[0].z) and torch.equal(taken[0][1], made[0].weights)


def test_learning_rate_decays_over_the_run() -> None:
    rates = {}
    for decay in ("none", "cosine"):
        settings = config(f"train.decay={decay}", "train.updates=4", "train.learning_rate=0.5")
        trainer, rates[decay] = Trainer(build_model(settings, tiny_data().shapes), settings), []
        for _ in range(4):
            trainer.update(tiny_data().batch(torch.arange(8)))
            rates[decay].append(trainer.optimiser.param_groups[0]["lr"])
    assert rates["none"] == [0.5] * 4
    assert rates["cosine"] == pytest.approx(
        [0.5 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * i / 4))) for i in range(4)]
    )


# Resumed --------------------------------------------------------------------------------------------------------------

VARIANTS = {
    "plain": (),
    "laplace": ("prior.name=laplace", "train.amsgrad=false"),
    "fresh_chains": ("train.energy.persistent=false", "model.name=mmvae"),
    "late": ("train.energy_start=7", "train.energy_enters=9", "train.energy_warmup=6"),
    "free": ("prior.spectral_norm=none", "prior.learn_scale=true", "train.energy.decay=none"),
    "finish": ("train.updates=12", "train.energy_finish=8"),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, variant: str) -> None:
    settings = config(*VARIANTS[variant], "train.checkpoint_every=10")
    whole = train(settings, tiny_data(), tmp_path / "whole")
    with pytest.raises(Stopped):  # three updates past the checkpoint, whose rows have to go
        train(settings, tiny_data(), tmp_path / "parts", progress=stop_at(13))
    assert [row["update"] for row in rows(tmp_path / "parts")] == list(range(1, 14))
    torch.rand(7)
    resumed = train(settings, tiny_data(), tmp_path / "parts", resume=True)
    assert same(weights(whole), weights(resumed))
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    # Optimisers, chains and buffers too: what would make the next update differ.
    a, b = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "parts"))
    assert same(a, b) and same(*(load_file(tmp_path / run / "model.safetensors") for run in ("whole", "parts")))
    counters = [Run(tmp_path / run).counters() for run in ("whole", "parts")]
    assert counters[0] == counters[1] and counters[0]["updates"] == 20
    assert ("chains" in a) == (variant not in ("laplace", "fresh_chains"))
    buffers = [n for n in whole.state_dict() if n.endswith(("._u", "._v"))]
    assert bool(buffers) == (variant not in ("laplace", "free"))


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    done = train(config(), tiny_data(), tmp_path / "run")
    before = rows(tmp_path / "run")
    again = train(config(), tiny_data(), tmp_path / "run", resume=True)
    assert same(weights(done), weights(again)) and rows(tmp_path / "run") == before


def test_resuming_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a run folder, it has no config\.json"):
        train(config(), tiny_data(), tmp_path / "nowhere", resume=True)
    Run.create(tmp_path / "early", config(), tiny_data().shapes)
    with pytest.raises(FileNotFoundError, match="has no checkpoint to resume from"):
        train(config(), tiny_data(), tmp_path / "early", resume=True)
    with pytest.raises(FileNotFoundError, match="has no weights yet"):
        load(tmp_path / "early")


def test_a_run_stopped_at_once_starts_again_from_its_first_checkpoint(tmp_path: Path) -> None:
    whole = train(config(), tiny_data(), tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config(), tiny_data(), tmp_path / "early", progress=stop_at(2))
    assert Run(tmp_path / "early").counters()["updates"] == 0
    (tmp_path / "early" / "metrics.jsonl").open("a").write('{"update": 3, "lo')
    assert same(weights(whole), weights(train(config(), tiny_data(), tmp_path / "early", resume=True)))
    assert rows(tmp_path / "early") == rows(tmp_path / "whole")


def test_resuming_with_another_configuration(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(config(), tiny_data(), tmp_path / "run", progress=stop_at(7))
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match=r"resume: expected the configuration in .*run, got another one"):
        train(config("train.learning_rate=0.5"), tiny_data(), tmp_path / "run", resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


# Folders --------------------------------------------------------------------------------------------------------------


def test_a_run_is_loaded_as_it_was_trained(tmp_path: Path) -> None:
    settings = config()
    trained = train(settings, tiny_data(), tmp_path / "run")
    loaded = load(tmp_path / "run")
    assert not loaded.training and same(weights(trained), weights(loaded))
    x = tiny_data().batch(torch.arange(5))
    for call in (
        lambda m: {"z": m.encode(x, seed=1)},
        lambda m: m.generate(4, seed=1),
        lambda m: m.cross_generate(x, "image", seed=1),
    ):
        assert same(call(trained), call(loaded))
    run = Run.open(str(tmp_path / "run"))
    assert load_config(run.config) == settings and run.shapes() == tiny_data().shapes
    versions = json.loads((run.path / "environment.json").read_text())
    assert versions["torch"] == torch.__version__ and versions["mmebm"]
    assert not list(run.path.glob("*.tmp"))


def test_an_existing_folder_is_refused_and_forced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    train(config(), tiny_data(), folder)  # an empty folder will do
    (folder / "evaluation.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(FileExistsError, match=r"run: exists and is not empty; resume it, choose another, or force"):
        train(config("seed=4"), tiny_data(), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with pytest.raises(Stopped):
        train(config("seed=4"), tiny_data(), folder, force=True, progress=stop_at(2))
    new = ["checkpoint.safetensors", "config.json", "environment.json", "metrics.jsonl", "model.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == [*new, "notes.txt"]
    assert load_config(folder / "config.json").seed == 4 and len(rows(folder)) == 2


@pytest.mark.parametrize("content", [{"thesis.tex": "x"}, {"config.json": "{}", "model.safetensors": "another's"}])
def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    for force in (False, True):
        with pytest.raises(
            FileExistsError, match="is not a run folder; nothing in it was touched" if force else "force"
        ):
            train(config(), tiny_data(), tmp_path, force=force)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == content


def test_what_cannot_be_trained_leaves_no_folder(tmp_path: Path) -> None:
    for changes, message in (
        (("model.rescale.smell=2.0",), "model.rescale: unknown modality smell; the data has image, sound"),
        (("model.likelihood_scales.smell=2.0",), "model.likelihood_scales: unknown modality smell"),
        (('prior.reference_scale="matched"',), "prior.reference_scale: 'matched' is for priors fitted"),
    ):
        with pytest.raises(ValueError, match=message):
            train(config(*changes), tiny_data(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"name: expected one of arrays, .* polymnist, got 'imagenet'"):
        datasets.load("imagenet", "train")


def test_scales_and_rescaling_reach_the_model() -> None:
    model = build_model(
        config("model.rescale.sound=3.2", "model.likelihood_scales.image=0.1", "model.likelihood=normal"),
        tiny_data().shapes,
    )
    assert model.rescale == {"image": 1.0, "sound": 3.2}
    assert {m: repr(p) for m, p in model.likelihoods.items()} == {
        "image": "Normal(scale=0.1)",
        "sound": "Normal(scale=0.5)",
    }


# Divergence -----------------------------------------------------------------------------------------------------------


def test_nan_weights_stop_the_run_at_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Trainer.update

    def spoilt(self: Trainer, inputs: dict[str, Tensor], masks: object) -> dict[str, Tensor]:
        if self.updates == 6:
            with torch.no_grad():
                next(self.model.decoders.parameters()).fill_(math.nan)
        return update(self, inputs)

    monkeypatch.setattr(Trainer, "update", spoilt)
    with pytest.raises(TrainingDiverged, match=r"update 7: loss is nan.*keeps the checkpoint of update 5"):
        train(config(), tiny_data(), tmp_path / "run")
    assert [row["update"] for row in rows(tmp_path / "run")] == list(range(1, 8))
    assert isinstance(load(tmp_path / "run"), MultimodalVAE)
    # The last checkpoint before the damage, and nothing of what came after.
    assert Run(tmp_path / "run").counters()["updates"] == 5
    assert all(torch.isfinite(t).all() for t in weights(load(tmp_path / "run")).values())


def test_an_unheld_energy_is_stopped(tmp_path: Path) -> None:
    unheld = ("prior.spectral_norm=none", "train.energy.learning_rate=10.0", "train.energy.largest_gap=50.0")
    settings = config(*unheld, "train.updates=100")
    with pytest.raises(
        TrainingDiverged, match=r"update \d+: (E_gap|chain_scale|posterior_scale) is .*, over .* hold it"
    ):
        train(settings, tiny_data(), tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    assert last["update"] < 100
    assert Run(tmp_path / "run").counters()["updates"] == 0
    assert load(tmp_path / "run").generate(2, steps=1, seed=0)["sound"].shape == (2, 5)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": math.inf}, "update 0: loss is inf"),
        ({"loss": 1.0, "posterior_scale": 1001.0}, "posterior_scale is 1001, over 1000"),
        ({"chain_scale": 1.1e3}, "chain_scale is 1100, over 1000"),
        ({"E_gap": -1.1e3}, "E_gap is -1100, over 1000"),
    ],
)
def test_what_counts_as_divergence(metrics: dict[str, float], message: str) -> None:
    trainer = Trainer(build_model(config(), tiny_data().shapes), config())
    with pytest.raises(TrainingDiverged, match=message):
        trainer.check(metrics)
    trainer.check({"loss": -1e6, "posterior_scale": 999.0, "chain_scale": 999.0, "E_gap": -999.0, "kl_reference": 1e5})


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(12, 4), (13, 4), (3, 8), (1, 8), (1, 1), (8, 8)])
def test_every_epoch_is_a_permutation(n: int, size: int) -> None:
    per_epoch, size = max(1, n // size), min(n, size)
    stream = batches(n, size, seed=5)
    epochs = [torch.cat([next(stream) for _ in range(per_epoch)]) for _ in range(6)]
    for epoch in epochs:
        assert len(epoch) == per_epoch * size == len(epoch.unique())
        assert int(epoch.min()) >= 0 and int(epoch.max()) < n
    if n > 1:
        assert not all(torch.equal(epochs[0], epoch) for epoch in epochs[1:])
    whole = [b for b, _ in zip(batches(n, size, seed=5), range(20), strict=False)]
    for start in range(8):
        resumed = batches(n, size, 5, start)
        assert all(torch.equal(next(resumed), b) for b in whole[start:])


def test_seeds_order_differently_and_every_row_comes() -> None:
    assert not torch.equal(next(batches(50, 50, 0)), next(batches(50, 50, 1)))
    assert torch.equal(next(batches(50, 50, -7)), next(batches(50, 50, -7)))
    stream = batches(13, 4, 0)  # one row is left out of each epoch, another one every time
    assert set(torch.cat([next(stream) for _ in range(60)]).tolist()) == set(range(13))


@pytest.mark.parametrize("n", [1, 5])
def test_data_smaller_than_a_batch(tmp_path: Path, n: int) -> None:
    train(config(), tiny_data(n), tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 20


def test_one_row_of_one_modality(tmp_path: Path) -> None:
    alone = MultimodalDataset({"image": torch.rand(1, 1, 4, 4)}, None, "tiny", "train")
    model = train(config("train.updates=3"), alone, tmp_path / "run")
    assert model.generate(2, seed=0)["image"].shape == (2, 1, 4, 4)


def test_sparse_logging_keeps_the_last_update(tmp_path: Path) -> None:
    shown: list[int] = []
    train(config("train.log_every=8"), tiny_data(), tmp_path / "run", progress=lambda i, row: shown.append(i))
    assert [row["update"] for row in rows(tmp_path / "run")] == shown == [8, 16, 20]


def test_a_checkpoint_between_log_lines_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Trainer.update

    def spoilt(self: Trainer, inputs: dict[str, Tensor], masks: object) -> dict[str, Tensor]:
        metrics = update(self, inputs)
        return metrics | {"loss": torch.tensor(math.nan)} if self.updates >= 8 else metrics

    monkeypatch.setattr(Trainer, "update", spoilt)
    with pytest.raises(TrainingDiverged, match=r"update 10: loss is nan.*keeps the checkpoint of update 5"):
        train(config("train.log_every=20"), tiny_data(), tmp_path / "run")
    assert Run(tmp_path / "run").counters()["updates"] == 5

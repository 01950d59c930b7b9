"""Joint and cross generation in files: rows that depend on nothing but their number, and folders that resume."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor
from typer.testing import CliRunner

from mmebm import cli, data
from mmebm import generate as generation
from mmebm.data import MultimodalDataset
from mmebm.energy import EnergyMLP
from mmebm.generate import cross_generate, generate, refine
from mmebm.models import MMVAE
from mmebm.priors import EnergyPrior
from mmebm.training.run import load

BLOCK = 32


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BLOCK", BLOCK)


@pytest.fixture(scope="module")
def observed() -> MultimodalDataset:
    test = data.load("digits", "test")
    return MultimodalDataset({m: x[:50] for m, x in test.modalities.items()}, None, "fifty", "test")


def read(index: Path) -> dict[str, Tensor]:
    """Every row, in order, of a finished folder."""
    told = json.loads(index.read_text())
    found = []
    for stem in told["files"]:
        if told["format"] == "safetensors":
            found.append(load_file(index.parent / f"{stem}.safetensors"))
        else:
            arrays = {m: np.load(index.parent / f"{stem}-{m}.npy") for m in told["modalities"]}
            found.append({m: torch.from_numpy(a) for m, a in arrays.items()})
    return {m: torch.cat([f[m] for f in found]) for m in told["modalities"]}


def test_rows_do_not_hang_on_how_many_there_are(
    tiny_runs: dict[str, Path], observed: MultimodalDataset, tmp_path: Path
) -> None:
    run = tiny_runs["energy"]
    given = {"cond_mod": ["m0", "m2"], "gen_mod": ["m1", "m4"], "seed": 5}
    whole = read(cross_generate(run, tmp_path / "a", observed, rows=150, file_rows=64, **given))
    assert {m: x.shape for m, x in whole.items()} == {m: (150, *observed.shapes[m]) for m in ("m1", "m4")}
    fewer = read(cross_generate(run, tmp_path / "b", observed, rows=77, file_rows=32, **given))
    assert all(torch.equal(fewer[m], whole[m][:77]) for m in whole)
    assert not torch.equal(whole["m1"][:50], whole["m1"][50:100]), "the input again, other draws"
    other = read(cross_generate(run, tmp_path / "c", observed, rows=32, **given | {"seed": 6}))
    assert not torch.equal(other["m1"], whole["m1"][:32])
    joint = [
        read(generate(run, tmp_path / f"joint{rows}", rows=rows, steps=2, seed=3, file_rows=32)) for rows in (40, 90)
    ]
    assert all(torch.equal(joint[0][m], joint[1][m][:40]) for m in joint[0])


def test_rows_are_those_of_the_model(tiny_runs: dict[str, Path], observed: MultimodalDataset, tmp_path: Path) -> None:
    model = load(tiny_runs["energy"])
    x = observed.batch(torch.arange(BLOCK))
    expected = model.cross_generate({"m0": x["m0"]}, "m0", ["m3"], seed=4)
    index = cross_generate(tiny_runs["energy"], tmp_path / "a", observed, cond_mod="m0", gen_mod="m3", seed=4)
    found = read(index)
    assert len(found["m3"]) == len(observed) and list(found) == ["m3"]
    assert torch.equal(found["m3"][:BLOCK], expected["m3"])
    joint = read(generate(tiny_runs["laplace"], tmp_path / "b", rows=BLOCK, gen_mod="m2", seed=9))
    assert torch.equal(joint["m2"], load(tiny_runs["laplace"]).generate(BLOCK, "m2", seed=9)["m2"])


@pytest.mark.parametrize("file_format", ["safetensors", "npy"])
def test_shards_are_parts_of_the_whole(
    file_format: str, tiny_runs: dict[str, Path], observed: MultimodalDataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"cond_mod": "m0", "rows": 140, "file_rows": 32, "file_format": file_format}
    whole = read(cross_generate(tiny_runs["energy"], tmp_path / "whole", observed, **options))
    for shard in (2, 0, 1):
        index = cross_generate(tiny_runs["energy"], tmp_path / "parts", observed, shard=(shard, 3), **options)
    parts = read(index)
    assert list(parts) == ["m1", "m2", "m3", "m4"] and all(torch.equal(parts[m], whole[m]) for m in whole)
    written = {p.name for p in index.parent.iterdir()}
    assert written == {p.name for p in (tmp_path / "whole").iterdir()} and not any(".part" in n for n in written)


def test_what_was_cut_off_goes_on(
    tiny_runs: dict[str, Path], observed: MultimodalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"cond_mod": "m0", "gen_mod": ["m1", "m2"], "rows": 130, "file_rows": 32}
    whole = read(cross_generate(tiny_runs["energy"], tmp_path / "whole", observed, **options, file_format="npy"))
    calls = []

    class Cut(Exception):
        pass

    model = MMVAE.cross_generate

    def cut(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["first_row"])
        if len(calls) == 3:
            raise Cut
        return model(self, *args, **kwargs)

    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr("mmebm.models.base.MultimodalVAE.cross_generate", cut)
        with pytest.raises(Cut):
            cross_generate(tiny_runs["energy"], folder, observed, **options, file_format="npy")
        (folder / "part-000001-m2.npy").unlink()  # half of a file's modalities
        (folder / "part-000002-m1.part").write_bytes(b"half a file")
        calls.clear()
        calls.extend([-1] * 3)
        index = cross_generate(tiny_runs["energy"], folder, observed, **options, file_format="npy")
    assert calls[3:] == [32, 64, 96, 128], "what was whole is not made again"
    assert all(torch.equal(x, whole[m]) for m, x in read(index).items())


def test_inputs_of_every_kind_are_the_same(
    tiny_runs: dict[str, Path], observed: MultimodalDataset, tmp_path: Path
) -> None:
    folder = tmp_path / "npy"
    folder.mkdir()
    for m, x in observed.modalities.items():
        np.save(folder / f"{m}.npy", x.numpy())
    np.savez(tmp_path / "rows.npz", **{m: x.numpy() for m, x in observed.modalities.items()})
    save_file({m: x.contiguous() for m, x in observed.modalities.items()}, tmp_path / "rows.safetensors")
    found = [
        read(cross_generate(tiny_runs["energy"], tmp_path / f"out{i}", source, cond_mod=["m1", "m3"], gen_mod="m0"))
        for i, source in enumerate((observed, folder, tmp_path / "rows.npz", str(tmp_path / "rows.safetensors")))
    ]
    assert all(torch.equal(f["m0"], found[0]["m0"]) for f in found)


def test_images_as_bytes(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"rows": 40, "gen_mod": ["m0"], "steps": 1}
    exact = read(generate(tiny_runs["energy"], tmp_path / "a", **options))["m0"]
    index = generate(tiny_runs["energy"], tmp_path / "b", **options, dtype="uint8")
    found = read(index)["m0"]
    assert found.dtype == torch.uint8 and torch.equal(found, (exact.clamp(0, 1) * 255).round().to(torch.uint8))
    with safe_open(index.parent / "part-000000.safetensors", "pt") as file:
        assert file.metadata() == {"first": "0"}


def test_memory_does_not_grow_with_rows(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    def most() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    options: dict[str, Any] = {"gen_mod": ["m0"], "file_rows": 4 * BLOCK, "dtype": "uint8"}
    generate(tiny_runs["laplace"], tmp_path / "warm", rows=20 * BLOCK, **options)
    before = most()
    index = generate(tiny_runs["laplace"], tmp_path / "many", rows=600 * BLOCK, **options)
    assert len(json.loads(index.read_text())["files"]) == 150
    assert most() - before < 20_000, "kilobytes; the rows are 45 MB"


def test_refinement_moves_towards_what_is_observed(tiny_runs: dict[str, Path], observed: MultimodalDataset) -> None:
    model = load(tiny_runs["energy"])
    x = {m: v for m, v in observed.batch(torch.arange(20)).items() if m in ("m0", "m1")}
    z = model.encode(x, ["m0", "m1"], seed=1)
    own = model.own_latents(x)

    def likelihood(at: Tensor) -> Tensor:
        decoded = {m: model.decoders[m](torch.cat((own[m], at), -1)) for m in x}
        return sum(model.likelihoods[m].log_prob(x[m], decoded[m]) for m in x)  # type: ignore[return-value]

    moved = refine(model, x, z, 30, 0.02, seed=1)
    assert moved.shape == z.shape and (likelihood(moved) > likelihood(z)).float().mean() > 0.8
    parts = [refine(model, {m: v[s] for m, v in x.items()}, z[s], 3, 0.02, seed=1, first_row=s.start)
             for s in (slice(0, 7), slice(7, 20))]  # fmt: skip
    torch.testing.assert_close(torch.cat(parts), refine(model, x, z, 3, 0.02, seed=1), rtol=1e-4, atol=1e-4)
    z[3] = float("inf")
    assert bool(torch.isinf(refine(model, x, z, 2, 0.02)[3]).all()), "what is lost comes back as it was"


def test_refined_rows_by_file(tiny_runs: dict[str, Path], observed: MultimodalDataset, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cond_mod": ["m0"], "gen_mod": ["m1"], "rows": 40}
    plain = read(cross_generate(tiny_runs["energy"], tmp_path / "a", observed, **options))
    moved = read(cross_generate(tiny_runs["energy"], tmp_path / "b", observed, refine_steps=2, **options))
    assert moved["m1"].isfinite().all() and not torch.equal(moved["m1"], plain["m1"])


def test_the_command_line(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    runner, run = CliRunner(), str(tiny_runs["energy"])
    for shard in ("1/2", "2/2"):
        shown = runner.invoke(cli.app, [
            "cross-generate", run, "--from", "m0,m1", "--to", "m2", "--input", "digits:validation", "--rows", "40",
            "--output", str(tmp_path / "cross"), "--shard", shard, "--format", "npy", "--dtype", "uint8",
        ])  # fmt: skip
        assert shown.exit_code == 0, shown.output
    assert read(tmp_path / "cross" / "index.json")["m2"].shape == (40, 3, 16, 16)
    shown = runner.invoke(
        cli.app, ["generate", run, "--rows", "5", "--steps", "2", "--output", str(tmp_path / "joint")]
    )
    assert shown.exit_code == 0 and "generated:" in shown.output
    assert {len(x) for x in read(tmp_path / "joint" / "index.json").values()} == {5}
    shown = runner.invoke(cli.app, ["generate", run, "--rows", "5", "--output", str(tmp_path / "x"), "--shard", "3/2"])
    assert shown.exit_code == 1 and "--shard: expected i/n with 1 <= i <= n, got '3/2'" in str(shown.exception)


def test_refusals_write_nothing(tiny_runs: dict[str, Path], observed: MultimodalDataset, tmp_path: Path) -> None:
    run, out = tiny_runs["energy"], tmp_path / "out"
    for options, message in (
        ({"cond_mod": "m7"}, "cond_mod: unknown modality m7; the model has m0, m1, m2, m3, m4"),
        ({"cond_mod": "m0", "gen_mod": []}, "gen_mod: expected at least one modality, got none"),
        ({"cond_mod": "m0", "rows": -1}, "rows: expected >= 0, got -1"),
        ({"cond_mod": "m0", "shard": (2, 2)}, r"shard: expected \(i, n\) with 0 <= i < n, got \(2, 2\)"),
        ({"cond_mod": "m0", "file_rows": 33}, "file_rows: expected a multiple of 32, got 33"),
        ({"cond_mod": "m0", "file_format": "csv"}, "file_format: expected one of safetensors, npy, got 'csv'"),
        ({"cond_mod": "m0", "dtype": "int8"}, "dtype: expected one of float32, uint8, got 'int8'"),
        ({"cond_mod": "m0", "refine_steps": -1}, "refine_steps, refine_step_size: expected >= 0 and > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            cross_generate(run, out, observed, **options)
    with pytest.raises(ValueError, match=r"input: expected 'm0' \[N, 3, 16, 16\], got \[4, 5\]"):
        cross_generate(run, out, MultimodalDataset({"m0": torch.zeros(4, 5)}, None, "x", "test"), cond_mod="m0")
    with pytest.raises(ValueError, match="input: expected m1, it has m0"):
        cross_generate(run, out, MultimodalDataset({"m0": torch.zeros(4, 3, 16, 16)}, None, "x", "y"), cond_mod="m1")
    (tmp_path / "in").mkdir()
    with pytest.raises(FileNotFoundError, match=r"input: expected .*m0.npy, which .*in lacks"):
        cross_generate(run, out, tmp_path / "in", cond_mod="m0")
    (tmp_path / "in" / "m0.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"m0.npy: expected a plain array, got"):
        cross_generate(run, out, tmp_path / "in", cond_mod="m0")
    with pytest.raises(ValueError, match="steps: StandardLaplace is drawn without chains"):
        generate(tiny_runs["laplace"], out, rows=3, steps=4)
    assert not out.exists()
    generate(run, out, rows=3, steps=1)
    with pytest.raises(FileExistsError, match="holds another call's files, which differ in rows; choose another"):
        generate(run, out, rows=4, steps=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="is not empty and has no index; choose another"):
        generate(run, tmp_path / "full", rows=3)


def test_own_latents_are_the_middle_of_the_private_posterior() -> None:
    model = MMVAE({"only": (3,)}, EnergyPrior(EnergyMLP(2, (4,))), hidden=(4,))
    assert model.own_latents({"only": torch.zeros(2, 3)}) == {}
    law, scale = model.reference()
    assert law == "laplace" and torch.equal(scale, torch.ones(2))


def test_rows_may_lack_what_is_observed(tiny_runs: dict[str, Path], tmp_path: Path) -> None:
    """A row that has nothing is the prior's, one that has something is conditioned on that alone."""
    run = tiny_runs["energy"]
    model = load(run)
    rows, (first, second, *_) = 6, model.modalities
    pixels = {m: torch.rand(rows, *model.shapes[m]) for m in (first, second)}
    seen = torch.tensor([1, 1, 0, 0, 1, 0], dtype=torch.bool), torch.tensor([1, 0, 1, 0, 1, 0], dtype=torch.bool)
    masks = dict(zip((first, second), seen, strict=True))
    hidden = {m: torch.where(masks[m].view(-1, 1, 1, 1), x, torch.nan) for m, x in pixels.items()}
    source = MultimodalDataset(hidden, None, "toy", "test", masks=masks)
    index = cross_generate(run, tmp_path / "out", source, cond_mod=[first, second], seed=3)
    made = read(index)
    inputs = source.batch(torch.arange(rows))
    z = model.encode(inputs, [first, second], masks=source.observed(torch.arange(rows)), seed=3)
    target = next(m for m in model.modalities if m in made)
    wanted = model.decode(z, target, seed=3)[target]
    torch.testing.assert_close(made[target], wanted, rtol=1e-4, atol=1e-5)
    prior = model.prior.sample(rows, seed=3)
    nobody = ~(seen[0] | seen[1])
    torch.testing.assert_close(z[nobody], prior[nobody])
    refined = read(cross_generate(run, tmp_path / "more", source, cond_mod=[first, second], seed=3, refine_steps=2))
    assert all(bool(torch.isfinite(x).all()) for x in refined.values())

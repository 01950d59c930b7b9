"""Shared fixtures, and the rule that CI skips nothing silently: see allowed_skips.toml."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmebm.kernels import dispatch, native

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox")


def _runs_no_chains(backend: str) -> bool:
    """Whether no device here has it."""
    devices = ["cpu", *(["cuda"] if torch.cuda.device_count() else [])]
    return all(dispatch.unsupported(backend, "langevin", torch.device(d), torch.float32) for d in devices)


CONDITIONS: dict[str, Callable[[], bool]] = {
    "no_gpu": lambda: not torch.cuda.is_available(),
    "no_data": lambda: "MMEBM_DATA_DIR" not in os.environ,
    "no_browser": lambda: not any(map(shutil.which, BROWSERS)),
    "no_native": lambda: not native.available(),
    "no_triton": lambda: _runs_no_chains("triton"),
    "no_cuda": lambda: _runs_no_chains("cuda"),
    "no_nvcc": lambda: shutil.which("nvcc") is None or shutil.which("g++") is None,
    "no_gxx": lambda: shutil.which("g++") is None,
    "with_gpu": torch.cuda.is_available,
    "no_peers": lambda: not (Path(__file__).parents[1] / "build" / "peers" / ".stamp").exists(),
}

_skips = pytest.StashKey[list[tuple[str, str]]]()
_refused = pytest.StashKey[list[tuple[str, str]]]()


def allowed_reasons(path: Path) -> frozenset[str]:
    """The skip reasons whose condition holds in this environment."""
    table = tomllib.loads(path.read_text())
    if unknown := set(table) - set(CONDITIONS):
        raise ValueError(f"{path.name}: expected conditions among {sorted(CONDITIONS)}, got {sorted(unknown)}")
    return frozenset(reason for name, entry in table.items() if CONDITIONS[name]() for reason in entry["reasons"])


class _SkipRecorder:
    def __init__(self, config: pytest.Config) -> None:
        self.skips = config.stash[_skips]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._record(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._record(report)

    def _record(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skips.append((report.nodeid, reason.removeprefix("Skipped: ")))


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("MMEBM_STRICT_SKIPS") == "1":
        config.stash[_skips] = []
        config.pluginmanager.register(_SkipRecorder(config))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skips not in session.config.stash:
        return
    allowed = allowed_reasons(Path(__file__).with_name("allowed_skips.toml"))
    refused = [(test, reason) for test, reason in session.config.stash[_skips] if reason not in allowed]
    session.config.stash[_refused] = refused
    if refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if refused := config.stash.get(_refused, []):
        terminalreporter.section("skips this environment does not allow (tests/allowed_skips.toml)", red=True)
        for test, reason in refused:
            terminalreporter.line(f"{test}: {reason}", red=True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of downloaded datasets; a test that asks for it skips where MMEBM_DATA_DIR is not set."""
    if "MMEBM_DATA_DIR" not in os.environ:
        pytest.skip("MMEBM_DATA_DIR is not set")
    path = Path(os.environ["MMEBM_DATA_DIR"])
    if not path.is_dir():
        pytest.fail(f"MMEBM_DATA_DIR: expected a folder, got {path}")
    return path


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides of preset `digits` that make a run of a second; figures and classifiers see the real data."""
    return [
        "data.options.size=1200", "model.hidden=[16]", "model.latent_dim=4", "model.private_dim=4",
        "model.likelihood_scale=0.3", "prior.hidden=[8]", "prior.spectral_norm=2.0", "prior.steps=3",
        "prior.step_size=0.2", "train.updates=6", "train.batch_size=32", "train.energy_start=0",
        "train.energy_enters=0", "train.log_every=2", "train.checkpoint_every=3", "train.energy.chains=16",
        "train.energy.steps=2", "train.energy.repeats=1", "evaluate.samples=60", "evaluate.cross_rows=50",
        "evaluate.mixture_components=3", "evaluate.mixture_latents=200",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_runs(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """prior -> a trained run, "energy" and "laplace". Look, do not touch: every test shares them."""
    from mmebm import data
    from mmebm.training import load_config, train

    folder = tmp_path_factory.mktemp("runs")
    for name in ("energy", "laplace"):
        config = load_config("digits", [*tiny, f"prior.name={name}"])
        train(config, data.load("digits", "train", **config.data.options), folder / name)
    return {name: folder / name for name in ("energy", "laplace")}


@pytest.fixture(scope="session")
def _classifier_cache(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmebm import data
    from mmebm.evaluation import classifiers
    from mmebm.training import load_config

    folder = tmp_path_factory.mktemp("cache")
    options = load_config("digits", tiny).data.options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "STEPS", 150)
        patch.setattr(classifiers, "EPOCHS", 1)
        train, test = data.load("digits", "train", **options), data.load("digits", "test")
        classifiers.load_or_train(train, test, cache_dir=folder)
    return folder


@pytest.fixture
def classifier_cache(_classifier_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MMEBM_CACHE_DIR, here and in child processes: it holds the classifiers that tiny runs are measured with."""
    monkeypatch.setenv("MMEBM_CACHE_DIR", str(_classifier_cache))
    return _classifier_cache


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uninitialised floating tensors hold NaN: a kernel that leaves an element unwritten shows it."""

    def poisoned(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
            out = function(*args, **kwargs)
            if out.is_floating_point() or out.is_complex():
                with torch.no_grad():
                    out.fill_(float("nan"))
            return out

        return empty

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
    yield

"""Gathered runs and the page of them, made once for the tests of the report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmebm.evaluation import runs as measured
from mmebm.evaluation.report import gather as gathering
from mmebm.evaluation.report import write_report
from mmebm.evaluation.report.gather import Gathered, gather

from .pages import AWKWARD, Page


@contextmanager
def _few(cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMEBM_CACHE_DIR", str(cache))
        patch.setattr(gathering, "CHAINS", 40)
        patch.setattr(measured, "CHAINS", 40)
        yield


@pytest.fixture
def few_report_chains(_classifier_cache: Path) -> Iterator[None]:
    """Transitions of 40 chains, in the report and in the figures."""
    with _few(_classifier_cache):
        yield


@pytest.fixture(scope="session")
def folders(
    tiny_runs: dict[str, Path], _classifier_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """ "energy", measured and with an awkward name, and "laplace", not measured."""
    energy = Path(shutil.copytree(tiny_runs["energy"], tmp_path_factory.mktemp("report") / AWKWARD))
    with _few(_classifier_cache):
        measured.evaluate_run(energy)
    return {"energy": energy, "laplace": tiny_runs["laplace"]}


@pytest.fixture(scope="session")
def gathered(folders: dict[str, Path], _classifier_cache: Path) -> dict[str, Gathered]:
    """Look, do not touch."""
    with _few(_classifier_cache):
        return {name: gather(path, path.name) for name, path in folders.items()}


@pytest.fixture(scope="session")
def written(folders: dict[str, Path], _classifier_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with _few(_classifier_cache):
        return write_report(list(folders.values()), tmp_path_factory.mktemp("page") / "new" / "all.html")


@pytest.fixture(scope="session")
def page(written: Path) -> Page:
    return Page(written.read_text())

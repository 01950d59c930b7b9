"""Tier 9: each bug planted in the kernels makes a tier fail. `make mutants` runs that; here is what it stands on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mmebm.kernels import native

from . import mutants
from .mutants import NONE, ROOT, Mutant

PLANTED = mutants.named(mutants.HEADER.read_text())
SOURCES = [path for path in (ROOT / "csrc").rglob("*.[ch]pp") if path != mutants.HEADER]

needs_native = pytest.mark.skipif(not native.available(), reason="the native CPU module cannot be loaded")


# the header, the kernels and the page --------------------------------------------------------------------------------


def test_the_header_numbers_and_describes_every_bug() -> None:
    entries = re.findall(r"^  X\(", mutants.HEADER.read_text(), re.M)
    assert len(PLANTED) == len(entries) > 20
    assert [mutant.number for mutant in PLANTED] == list(range(1, len(PLANTED) + 1))
    for words in zip(*((mutant.name, mutant.sentence) for mutant in PLANTED), strict=True):
        assert len(set(words)) == len(words)
    assert all(len(mutant.sentence.split()) > 3 for mutant in PLANTED)


def test_every_bug_is_planted_and_no_other() -> None:
    used = Counter(name for path in SOURCES for name in re.findall(r"MMEBM_MUTANT\(\s*(\w+),", path.read_text()))
    assert set(used) == {mutant.name for mutant in PLANTED}


def test_the_page_lists_these_bugs_and_who_finds_them() -> None:
    listed = mutants.listed(mutants.PAGE.read_text())
    assert list(listed) == PLANTED
    assert [mutant for mutant, tiers in listed.items() if not tiers] == []


def test_the_page_has_every_tier() -> None:
    tiers = {found[1] for path in Path(__file__).parent.iterdir() if (found := re.match(r"test_t(\d)_", path.name))}
    page = mutants.PAGE.read_text()
    assert {f"T{n}" for n in tiers} == set(re.findall(r"^\| (T\d) \|", page, re.M))
    assert {f"T{n}" for n in tiers - {"9"}} == set(re.findall(r"T\d", mutants.split(page)[1].splitlines()[0]))


# the installed build -------------------------------------------------------------------------------------------------


@needs_native
def test_nothing_is_planted_in_the_installed_module() -> None:
    module = native._cpu()
    assert not hasattr(module, "choose_mutant") and not hasattr(module, "mutants")
    content = Path(str(module.__file__)).read_bytes()
    assert b"langevin_update" in content  # strings are to be found in it
    assert [mutant for mutant in PLANTED if mutant.sentence.encode() in content] == []


@needs_native
def test_the_installed_module_is_not_taken_for_one_with_bugs() -> None:
    environment = os.environ | {"MMEBM_MUTATED": str(native._cpu().__file__)}
    command = [sys.executable, "-m", "pytest", "-p", "tests.mutated", "--collect-only", "tests/statistics"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "MMEBM_MUTATED: expected a build with MMEBM_MUTANTS" in done.stdout + done.stderr


# the runner ----------------------------------------------------------------------------------------------------------

TWO = [Mutant(1, "sign", "the sign is wrong"), Mutant(2, "scale", "the scale is wrong")]
OUTCOMES = {
    NONE: {"T0": "passed", "T10": "passed", "T2": "passed"},
    TWO[1]: {"T0": "failed", "T10": "failed", "T2": "passed"},
    TWO[0]: {"T0": "passed", "T10": "passed", "T2": "failed"},
}


def test_the_matrix_reads_as_it_was_written() -> None:
    page = f"before\n\n{mutants.BEGIN}{mutants.matrix(OUTCOMES)}{mutants.END}\nafter | x |\n"
    assert mutants.listed(page) == {TWO[0]: ["T2"], TWO[1]: ["T0", "T10"]}
    assert list(mutants.listed(page)) == TWO
    assert "".join(mutants.split(page)) == page
    with pytest.raises(ValueError, match="expected the lines <!-- begin"):
        mutants.split(page.replace(mutants.END, ""))


def test_a_survivor_is_named() -> None:
    assert mutants.complaints(OUTCOMES) == []
    survived = OUTCOMES | {TWO[0]: dict.fromkeys(OUTCOMES[NONE], "passed")}
    assert mutants.complaints(survived) == ["mutant 1 survives: the sign is wrong"]


@pytest.mark.parametrize("word", ["failed", "not-run"])
def test_a_tier_that_proves_nothing_is_named(word: str) -> None:
    wrong = OUTCOMES | {NONE: OUTCOMES[NONE] | {"T2": word}}
    assert mutants.complaints(wrong) == [f"T2 {word} where nothing is planted"]
    assert mutants.complaints({NONE: {}}) == ["no tier has run"]


def test_outcomes_are_read_from_what_pytest_prints() -> None:
    text = "....\ntiers: T0=passed T1=failed T2=not-run\n1 failed, 3 passed"
    assert mutants.outcome_of(text) == {"T0": "passed", "T1": "failed", "T2": "not-run"}
    with pytest.raises(ValueError, match="expected one line that starts with tiers"):
        mutants.outcome_of("Segmentation fault")


def test_a_module_that_is_not_built_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`make mutants` builds it"):
        mutants.built(tmp_path)

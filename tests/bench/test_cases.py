"""Every registered case, tiny: it builds, its gate is green, and a wrong contender is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import cases
from bench.case import SUBJECT, Case, Contender, Family
from bench.contenders import mlp, peers
from bench.run import QUICK, Effort, rows

FAST = replace(QUICK, rounds=1, least=1, budget_s=0.0, sample_seconds=1e-6)
PEERS = ("torchebm", "MultiVae")


@pytest.fixture(autouse=True)
def _no_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(mlp, "COMPILER", "eager")
    monkeypatch.setattr("bench.contenders.limits.FMA_SECONDS", 1e-3)
    yield
    torch.set_num_threads(threads)


def measured(case: Case, effort: Effort = FAST) -> dict[str, dict[str, str]]:
    return {row["contender"]: row for row in rows(case, 1, effort, {})}


@pytest.mark.parametrize("family", cases.FAMILIES, ids=lambda family: family.build.__name__)
def test_the_gate_is_green(family: Family) -> None:
    case = family.build(**family.tiny)
    found = measured(case)
    assert list(found) == list(case.contenders)
    assert found[case.subject]["note"] == "" or case.contenders[case.subject].absent()
    for name, row in found.items():
        assert bool(row["rounds"]) != bool(row["note"]), name
        assert not row["note"].startswith("refused"), f"{name}: {row['note']}"


def test_peers_are_absent_only_where_they_are_not_installed() -> None:
    if not (peers.FOLDER / ".stamp").exists():
        pytest.skip("the peers of bench are not installed")
    for case in cases.every().values():
        for name in set(PEERS) & set(case.contenders):
            assert case.contenders[name].absent() is None


def test_names_are_unique_and_patterns_find_them() -> None:
    sizes = sum(len(family.sizes) for family in cases.FAMILIES)
    assert len(cases.every()) == sizes
    assert list(cases.matching(["langevin/16x64/*"])) == [f"langevin/16x64/B{B}" for B in (64, 512, 4096, 65536)]
    with pytest.raises(ValueError, match="case: expected a name or pattern of `python -m bench list`, got 'nothing'"):
        cases.matching(["nothing"])


def _family(name: str) -> Case:
    family = next(f for f in cases.FAMILIES if f.build.__name__ == name)
    return family.build(**family.tiny)


def with_contender(case: Case, name: str, contender: Contender) -> dict[str, dict[str, str]]:
    kept = {SUBJECT: case.contenders[SUBJECT], name: contender}
    return measured(replace(case, contenders=kept))


def test_a_wrong_value_is_refused_and_not_timed() -> None:
    case = _family("energy_and_grad")

    def wrong(x: object) -> object:
        right = case.contenders["eager autograd"].make(x)
        return lambda: (right()[0], right()[1] * 1.001)

    found = with_contender(case, "wrong", Contender(wrong))
    assert found[SUBJECT]["rounds"] and not found["wrong"]["rounds"]
    assert found["wrong"]["note"].startswith("refused: result 1: ")
    nan = with_contender(case, "wrong", Contender(lambda x: lambda: tuple(t * torch.nan for t in wrong(x)())))
    assert nan["wrong"]["note"].startswith("refused: result 0: 100.00% of the values")


def test_a_chain_with_the_wrong_step_is_refused_by_its_moments() -> None:
    case = _family("langevin")
    half = Contender(
        lambda x: case.contenders["eager autograd"].make(replace(x, convention=_smaller(x))), gate="moments"
    )
    assert "standard errors apart" in with_contender(case, "half", half)["half"]["note"]


def _smaller(x: object) -> object:
    from mmebm import short_run

    return short_run(0.9 * x.b)


def test_without_a_right_subject_nothing_is_timed() -> None:
    case = _family("update")
    broken = replace(case.contenders["eager"], make=lambda x: lambda: x.z0, checked=None)
    found = measured(replace(case, contenders=case.contenders | {SUBJECT: broken}))
    assert not any(row["rounds"] for row in found.values())
    assert found[SUBJECT]["note"].startswith("refused: result 0")
    assert found["eager"]["note"].startswith("not timed: mmebm is refused")


def test_one_that_raises_or_is_absent_says_so() -> None:
    case = _family("update")

    def broken(_: object) -> object:
        raise RuntimeError("no compiler")

    assert with_contender(case, "x", Contender(broken))["x"]["note"] == "refused: it raises RuntimeError: no compiler"
    late = Contender(lambda _: lambda: broken(None))
    assert with_contender(case, "x", late)["x"]["note"] == "refused: it raises RuntimeError: no compiler"
    absent = Contender(broken, absent=lambda: "not installed")
    assert with_contender(case, "x", absent)["x"]["note"] == "absent: not installed"


def test_slow_chains_run_fewer_steps_and_are_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.run._steps", lambda case, contender: 2 if contender.checked else case.steps)
    found = measured(_family("langevin"))
    assert found["eager autograd"]["scaled_from"] == found["torch.compile step"]["scaled_from"] == "K=2"
    assert found[SUBJECT]["scaled_from"] == found["torch.mm(4096,h,h)"]["scaled_from"] == ""


def test_a_row_says_on_what_and_with_what() -> None:
    found = rows(_family("langevin"), 1, FAST, {"revision": "abc"})[0]
    assert found["sizes"] == "B=200 d=5 h=9 L=2 K=4" and found["threads"] == 1 and found["revision"] == "abc"
    assert found["backend"] in ("cpu", "reference") and found["unit"] == "GFLOP/s"
    assert found["model"].startswith("1 flop + ") and found["limit"] == "FMA loop"


def test_the_folder_of_peers_is_that_of_the_makefile() -> None:
    root = Path(__file__).parents[2]
    assert f"PEERS := {peers.FOLDER.relative_to(root)}" in (root / "Makefile").read_text()

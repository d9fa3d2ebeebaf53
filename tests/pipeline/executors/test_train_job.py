"""Training in child processes: what they say, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.executors.train_job import train_with_processes
from stages.errors import DataError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_error_of_a_trainer_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], ranks: int) -> None:
    """By whoever started the job, from what is raised: not on the way as well."""
    with pytest.raises(DataError) as error:
        train_with_processes(str(tmp_path / "none"), ["train.steps=1"], ranks, tmp_path / "stop")
    said = f"training ended with status 1: {tmp_path / 'none'}: no such manifest; build one with `python -m pipeline"
    assert str(error.value).startswith(said)
    assert "no such manifest" not in capsys.readouterr().err

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_shades

ROOT = Path(__file__).parents[2]
PLACES = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


@pytest.mark.parametrize("kills", [(3, 1), pytest.param((200, 200), marks=pytest.mark.slow)], ids=str)
def test_killed_at_any_moment(tmp_path, kills):
    """So many of runs of one process, and of two; already the first few of this seed come before and after a save."""
    make_shades(tmp_path / "shades")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kills.py")), "shades", "5", *map(str, kills)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": PLACES, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(done.stdout)

"""What is installed where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMPORT_ALL = """
import importlib, json, sys
from importlib import metadata
from pathlib import Path

target, *names = sys.argv[1:]
sys.path.insert(0, target)
for name in names:
    module = importlib.import_module(name)
    assert Path(module.__file__).is_relative_to(target), module.__file__
(ours,) = metadata.distributions(path=[target])
import resnet_min
print(json.dumps({**resnet_min.build_info(), "metadata": dict(ours.metadata), "requires": ours.requires}))
"""


def test_a_source_distribution_has_no_tests(tmp_path):
    """Some of them, without what they import, would be of no use. The kernels' sources are there."""
    pytest.importorskip("setuptools", "77.0.3")
    ignored = shutil.ignore_patterns("*.so", "_build.json", "__pycache__", "*.egg-info")
    for name in ("csrc", "resnet_min", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    code = "from setuptools import build_meta; build_meta.build_sdist('made')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    (made,) = (tmp_path / "made").iterdir()
    with tarfile.open(made) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "csrc/module.cpp", "csrc/check.h", "resnet_min/model.py", "resnet_min/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_a_wheel_has_every_module(tmp_path):
    """Built without a compiler, to be quick, installed into an empty folder and imported from outside the checkout."""
    pytest.importorskip("setuptools", "77.0.3")
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("csrc", "resnet_min"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__", "build")
        )
    (source / "resnet_min" / "weights" / "resnet20-any.pt").write_bytes(b"weights")
    (source / "resnet_min" / "weights" / "resnet20-any.json").write_text("{}")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    environment = {**os.environ, "CXX": "no-compiler"}
    environment.pop("RESNET_MIN_REQUIRE_EXT", None)

    def python(*command):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    python(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "wheels", str(source))
    (wheel,) = (tmp_path / "wheels").iterdir()
    python(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel))

    files = (path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "resnet_min").rglob("*.py"))
    names = sorted(".".join(parts).removesuffix(".__init__") for parts in files)
    assert {"resnet_min", "resnet_min.model"} <= set(names)
    said = json.loads(python("-c", IMPORT_ALL, str(target), *names).splitlines()[-1])
    assert not said["extension"] and said["cpu"] == said["cuda"] == "no compiler at install"
    assert said["metadata"]["Name"] == "resnet-min" and said["metadata"]["License-Expression"] == "BSD-3-Clause"
    assert {"torch>=2.11", "scipy", 'pytest; extra == "test"'} <= set(said["requires"])
    assert (target / "resnet_min" / "py.typed").exists()
    packaged = {path.name for path in (target / "resnet_min" / "weights").iterdir()}
    assert packaged >= {path.name for path in (ROOT / "resnet_min" / "weights").iterdir()} - {"__pycache__"}
    assert packaged >= {"resnet20-any.pt", "resnet20-any.json"}
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} == {"resnet_min"}  # no tests, tools

"""What is built is whole: the wheel, installed where nothing of this checkout is, brings every module."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import teachonce

ROOT = Path(teachonce.__file__).parent
PACKAGES = ("schemas", "pipelines", "trainer")
IMPORT_ALL = """
import importlib, json, sys
print(json.dumps({name: importlib.import_module(name).__file__ for name in sys.argv[1:]}))
"""


def done(*command, cwd):
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def modules():
    """Every module of the three packages, and the command."""
    files = [
        file.relative_to(ROOT) for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))
    ]
    return ["teachonce", *(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files)]


def test_the_wheel_holds_every_module(tmp_path):
    """The environment has other packages' folders on its path, and of this project what the wheel has alone."""
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "teachonce.py", "README.md"):
        shutil.copy(ROOT / name, source)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "..", "."]
    done(sys.executable, *build, cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.rmtree(source)
    done(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
    (site,) = tmp_path.glob("env/lib/python*/site-packages")
    target = ["--quiet", "--no-deps", "--target", str(site)]
    done(sys.executable, "-m", "pip", "install", *target, str(wheel), cwd=tmp_path)
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    found = json.loads(done("env/bin/python", "-I", "-c", IMPORT_ALL, *modules(), cwd=tmp_path))
    assert len(found) > 150
    assert {name: file for name, file in found.items() if not Path(file).is_relative_to(site)} == {}
    assert all((site / package / "py.typed").exists() for package in PACKAGES)

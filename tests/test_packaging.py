"""What pyproject.toml names is what the repository holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOP = ("worldmodel", "envs", "agents", "training")


def test_every_package_is_listed_and_typed() -> None:
    on_disk = {
        str(init.parent.relative_to(ROOT)).replace("/", ".")
        for top in TOP
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(on_disk)
    assert all((ROOT / top / "py.typed").is_file() for top in TOP)

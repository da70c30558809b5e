"""What pyproject.toml names is what the repository holds."""

import re
import tomllib
from pathlib import Path

from envs.ids import EXTRAS

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


def test_every_extra_that_a_message_names_exists() -> None:
    sources = [path.read_text() for top in TOP for path in (ROOT / top).rglob("*.py")]
    named = {extra for text in sources for extra in re.findall(r"worldmodel\[(\w+)\]", text)}
    assert named >= {"atari", "crafter", "dmc", "minigrid", "mujoco"}
    assert named <= set(PROJECT["project"]["optional-dependencies"])
    assert set(EXTRAS.values()) <= set(PROJECT["project"]["optional-dependencies"])

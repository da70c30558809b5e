"""What pyproject.toml names is what the repository holds."""

import re
import tomllib
from pathlib import Path

from worldmodel.envs.ids import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOP = ("worldmodel", "envs", "agents", "training")


def folders(top: str) -> set[str]:
    """The import names of a package and of those in it; links to the others are not followed."""
    inits = [init for init in (ROOT / top).rglob("__init__.py") if not any(part.is_symlink() for part in init.parents)]
    names = {init.parent.relative_to(ROOT).as_posix().replace("/", ".") for init in inits}
    return names if top == "worldmodel" else {f"worldmodel.{name}" for name in names}


def test_every_package_is_listed_and_typed() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(name for top in TOP for name in folders(top))
    assert setuptools["package-dir"] == {top if top == "worldmodel" else f"worldmodel.{top}": top for top in TOP}
    assert (ROOT / "worldmodel/py.typed").is_file()


def test_every_extra_that_a_message_names_exists() -> None:
    sources = [path.read_text() for top in TOP for path in (ROOT / top).rglob("*.py")]
    named = {extra for text in sources for extra in re.findall(r"worldmodel\[(\w+)\]", text)}
    assert named >= {"atari", "crafter", "dmc", "minigrid", "mujoco"}
    assert named <= set(PROJECT["project"]["optional-dependencies"])
    assert set(EXTRAS.values()) <= set(PROJECT["project"]["optional-dependencies"])

"""Without a display, what draws is told how before it is imported; without a library to draw with, the rest works."""

import os
import subprocess
import sys

import pytest

from worldmodel.envs.rendering import headless

BARE = """
from worldmodel.envs import EnvConfig, make
from worldmodel.envs.rendering import headless
headless.find_library = lambda name: None
make(EnvConfig("{env}")).reset(seed=0)
try:
    make(EnvConfig("{env}", pixels=True))
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always something to draw with")
@pytest.mark.parametrize(
    ("there", "told"), [(("EGL", "OSMesa"), "egl"), (("OSMesa",), "osmesa"), ((), "disable")], ids=str
)
def test_mujoco_is_told_to_draw_with_what_is_there(
    there: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headless, "find_library", lambda name: name if name in there else None)
    for name in ("DISPLAY", "MUJOCO_GL", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    headless.draw_without_display()
    assert (os.environ["MUJOCO_GL"], os.environ["SDL_VIDEODRIVER"]) == (told, "dummy")


def test_what_somebody_has_said_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    headless.draw_without_display()
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("DISPLAY", ":0")
    headless.draw_without_display()
    assert "MUJOCO_GL" not in os.environ


def _fresh(code: str, **environment: str) -> str:
    """What a process prints that has imported nothing, and has neither a display nor been told how to draw."""
    given = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MUJOCO_GL")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**given, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always something to draw with")
@pytest.mark.parametrize(("env", "package"), [("HalfCheetah-v5", "imageio"), ("dmc:cartpole_swingup", "dm_control")])
def test_without_a_library_the_state_is_learned_from_and_the_package_named(env: str, package: str) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip(package)
    assert "cannot be rendered here" in (said := _fresh(BARE.format(env=env))) and headless.REMEDY in said


def test_a_library_that_was_asked_for_and_is_not_there_is_named() -> None:
    pytest.importorskip("mujoco")
    code = """
import builtins
real = builtins.__import__
def broken(name, *rest):
    if name.startswith("OpenGL"):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")  # PyOpenGL's way to say it
    return real(name, *rest)
builtins.__import__ = broken
from worldmodel.envs import EnvConfig, make
try:
    make(EnvConfig("HalfCheetah-v5"))
except ValueError as error:
    print(error)
"""
    said = _fresh(code, MUJOCO_GL="egl")
    assert "'HalfCheetah-v5' could not be created: AttributeError" in said and headless.REMEDY in said

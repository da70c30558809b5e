"""Drawing without a display: the environment variables that pygame and MuJoCo read when they are imported."""

import os
import sys
from ctypes.util import find_library

LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}  # value of MUJOCO_GL: the library that MuJoCo then loads

REMEDY = (
    "without a display, MuJoCo needs the system package libegl1 (with MUJOCO_GL=egl) or libosmesa6 (with "
    "MUJOCO_GL=osmesa) to draw. If nothing has to be drawn, set MUJOCO_GL=disable"
)


def draw_without_display() -> None:
    """Set how pygame and MuJoCo draw on Linux without a display, unless the user has set it.

    Call this before they are imported, since they read it only then. If there is no library for MuJoCo to draw with,
    drawing is disabled: otherwise importing it would fail.
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        if "MUJOCO_GL" not in os.environ:
            found = [name for name, library in LIBRARIES.items() if find_library(library)]
            os.environ["MUJOCO_GL"] = found[0] if found else "disable"

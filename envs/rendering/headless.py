"""Drawing where there is no display: what pygame and MuJoCo are told before they are imported."""

import os
import sys
from ctypes.util import find_library

LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}  # what MUJOCO_GL may be, and what MuJoCo then loads

REMEDY = (
    "where there is no display, MuJoCo draws with the system's package libegl1 (MUJOCO_GL=egl) or libosmesa6 "
    "(MUJOCO_GL=osmesa); MUJOCO_GL=disable is for what draws nothing"
)


def draw_without_display() -> None:
    """Tell them how to draw where there is no display, unless somebody has: they ask only once, when imported.

    Where MuJoCo could not draw at all it is told not to try: without that, it cannot be imported either.
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        if "MUJOCO_GL" not in os.environ:
            found = [name for name, library in LIBRARIES.items() if find_library(library)]
            os.environ["MUJOCO_GL"] = found[0] if found else "disable"

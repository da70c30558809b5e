"""An environment by its id: of Gymnasium, of a module of one's own, of a suite behind an extra."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from worldmodel.envs.rendering.headless import REMEDY, draw_without_display
from worldmodel.envs.suites import atari, crafter, dm_control

SUITES: dict[str, Callable[..., gym.Env[Any, Any]]] = {  # id prefix: what makes an environment of the rest of the id
    dm_control.PREFIX: dm_control.DMControl,
    atari.PREFIX: atari.game,
    crafter.PREFIX: crafter.Crafter,
}

PLUGINS = {  # id prefix: (module that registers the ids, what pip installs it from)
    "ALE/": ("ale_py", "worldmodel[atari]"),
    "BabyAI-": ("minigrid", "worldmodel[minigrid]"),
    "MiniGrid-": ("minigrid", "worldmodel[minigrid]"),
    "dm_control/": ("shimmy", "shimmy[dm-control]"),
}

EXTRAS = {"gymnasium.envs.box2d": "box2d", "gymnasium.envs.mujoco": "mujoco"}  # Gymnasium's own, by where they lie

MUJOCO = ("mujoco", "imageio")  # what Gymnasium's own robots import


def by_id(
    env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None = None, draw: bool = False
) -> gym.Env[Any, Any]:
    """The environment that an id names, with as few wrappers as it comes with.

    Args:
        kwargs: of its constructor.
        max_episode_steps: as `gymnasium.make` has it: None keeps the registered limit, -1 removes it.
        draw: whether its `render()` is to give pictures.
    Raises:
        ValueError: if it is unknown, not installed, or does not take `kwargs`; the message says what to do.
    """
    draw_without_display()
    given = {**kwargs, **({"render_mode": "rgb_array"} if draw else {})}
    for prefix, make in SUITES.items():
        if env_id.startswith(prefix):
            try:
                return make(env_id.removeprefix(prefix), **given, endless=max_episode_steps == -1)
            except TypeError as error:
                raise ValueError(f"environment '{env_id}' does not take kwargs {dict(kwargs)}: {error}") from error
            except ValueError:
                raise
            except Exception as error:
                raise ValueError(_broken(env_id, kwargs, error)) from error
    return _of_gymnasium(env_id, given, max_episode_steps)


def _of_gymnasium(env_id: str, given: Mapping[str, Any], max_episode_steps: int | None) -> gym.Env[Any, Any]:
    """`gymnasium.make`, with its many errors told as one kind."""
    name = _import_home(env_id)
    try:
        return gym.make(name, max_episode_steps=max_episode_steps, **given)
    except gym.error.DependencyNotInstalled as error:  # its message holds Gymnasium's pip command
        raise ValueError(f"environment '{env_id}' is not installed: {error}{_extra(name)}") from error
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise ValueError(_unknown(env_id, name)) from error
    except ImportError as error:
        remedy = ": pip install 'worldmodel[mujoco]'" if error.name in MUJOCO else _drawing(name)
        raise ValueError(f"environment '{env_id}' needs a package that is missing: {error}{remedy}") from error
    except AttributeError as error:
        raise ValueError(_broken(env_id, given, error) + _drawing(name)) from error
    except TypeError as error:
        raise ValueError(f"environment '{env_id}' does not take kwargs {dict(given)}: {error}") from error
    except gym.error.Error as error:
        raise ValueError(f"environment '{env_id}': {error}") from error
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(_broken(env_id, given, error)) from error


def _broken(env_id: str, given: Mapping[str, Any], error: Exception) -> str:
    """What to say of an environment whose own code fails: anything can go wrong in it."""
    with_kwargs = f" with kwargs {dict(given)}" if given else ""
    return f"environment '{env_id}' cannot be made{with_kwargs}: {type(error).__name__}: {error}"


def _extra(name: str) -> str:
    """What to install an environment of Gymnasium's own with, as the end of a sentence."""
    home = str(gym.spec(name).entry_point)
    found = [extra for module, extra in EXTRAS.items() if home.startswith(module)]
    return f"; here: pip install 'worldmodel[{found[0]}]'" if found else ""


def _drawing(name: str) -> str:
    """What an environment's import may lack that loads a library to draw with, as the end of a sentence."""
    return f": {REMEDY}" if ".mujoco" in str(gym.spec(name).entry_point) else ""


def _import_home(env_id: str) -> str:
    """Import the module that registers an id, where it has one; return the id without it."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # the module is the user's: anything can go wrong in it
            problem = f"{type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError) and error.name == module:
                problem += "; run the command in the folder that it lies in, or put that folder on PYTHONPATH"
            raise ValueError(f"module '{module}' of environment '{env_id}' cannot be imported: {problem}") from error
        return name
    for prefix, (plugin, package) in PLUGINS.items():
        if env_id.startswith(prefix):
            try:
                importlib.import_module(plugin)
            except ImportError as error:
                raise ValueError(
                    f"environment '{env_id}' is not installed: pip install '{package}' ({error})"
                ) from error
    return env_id


def _unknown(env_id: str, name: str) -> str:
    registered = {known.lower(): known for known in gym.registry}
    near = [registered[match] for match in difflib.get_close_matches(name.lower(), registered, n=3)]
    hint = f"did you mean {', '.join(near)}?" if near else "no registered id is near it."
    return f"unknown environment '{env_id}': {hint} An id of another package is written 'module:Id'"

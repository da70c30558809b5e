"""Make an environment from its id: an id of Gymnasium, of your own module, or of a suite in an optional extra."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from worldmodel.envs.rendering.headless import REMEDY, draw_without_display
from worldmodel.envs.suites import atari, crafter, dm_control

SUITES: dict[str, Callable[..., gym.Env[Any, Any]]] = {  # id prefix: a function of the rest of the id
    dm_control.PREFIX: dm_control.DMControl,
    atari.PREFIX: atari.game,
    crafter.PREFIX: crafter.Crafter,
}

PLUGINS = {  # id prefix: (module that registers the ids, requirement for pip)
    "ALE/": ("ale_py", "worldmodel[atari]"),
    "BabyAI-": ("minigrid", "worldmodel[minigrid]"),
    "MiniGrid-": ("minigrid", "worldmodel[minigrid]"),
    "dm_control/": ("shimmy", "shimmy[dm-control]"),
}

EXTRAS = {"gymnasium.envs.box2d": "box2d", "gymnasium.envs.mujoco": "mujoco"}  # module of Gymnasium: our extra

MUJOCO = ("mujoco", "imageio")  # packages that Gymnasium's MuJoCo environments import


def by_id(
    env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None = None, draw: bool = False
) -> gym.Env[Any, Any]:
    """Make the environment with the given id, without any wrappers of our own.

    Args:
        kwargs: keyword arguments of the environment's constructor.
        max_episode_steps: as in `gymnasium.make`: None keeps the registered limit, -1 removes it.
        draw: whether `render()` must return images.
    Raises:
        ValueError: if the environment is unknown, is not installed, or does not accept `kwargs`. The message says
            what to do.
    """
    draw_without_display()
    given = {**kwargs, **({"render_mode": "rgb_array"} if draw else {})}
    for prefix, make in SUITES.items():
        if env_id.startswith(prefix):
            try:
                return make(env_id.removeprefix(prefix), **given, endless=max_episode_steps == -1)
            except TypeError as error:
                raise ValueError(f"environment '{env_id}' does not accept kwargs {dict(kwargs)}: {error}") from error
            except ValueError:
                raise
            except Exception as error:
                raise ValueError(_broken(env_id, kwargs, error)) from error
    return _of_gymnasium(env_id, given, max_episode_steps)


def _of_gymnasium(env_id: str, given: Mapping[str, Any], max_episode_steps: int | None) -> gym.Env[Any, Any]:
    """Call `gymnasium.make`, and raise its many kinds of errors as ValueError."""
    name = _import_home(env_id)
    try:
        return gym.make(name, max_episode_steps=max_episode_steps, **given)
    except gym.error.DependencyNotInstalled as error:  # its message holds Gymnasium's pip command
        raise ValueError(f"environment '{env_id}' is not installed: {error}{_extra(name)}") from error
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise ValueError(_unknown(env_id, name)) from error
    except ImportError as error:
        remedy = ": pip install 'worldmodel[mujoco]'" if error.name in MUJOCO else _drawing(name)
        raise ValueError(f"environment '{env_id}' needs a package that is not installed: {error}{remedy}") from error
    except AttributeError as error:
        raise ValueError(_broken(env_id, given, error) + _drawing(name)) from error
    except TypeError as error:
        raise ValueError(f"environment '{env_id}' does not accept kwargs {dict(given)}: {error}") from error
    except gym.error.Error as error:
        raise ValueError(f"environment '{env_id}': {error}") from error
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(_broken(env_id, given, error)) from error


def _broken(env_id: str, given: Mapping[str, Any], error: Exception) -> str:
    """Return the message for an environment whose constructor raises an error of any kind."""
    with_kwargs = f" with kwargs {dict(given)}" if given else ""
    return f"environment '{env_id}' could not be created{with_kwargs}: {type(error).__name__}: {error}"


def _extra(name: str) -> str:
    """Return the pip command that installs an environment of Gymnasium, as the end of a sentence, or ''."""
    home = str(gym.spec(name).entry_point)
    found = [extra for module, extra in EXTRAS.items() if home.startswith(module)]
    return f"; for worldmodel, run pip install 'worldmodel[{found[0]}]'" if found else ""


def _drawing(name: str) -> str:
    """Return how to install MuJoCo's drawing library, as the end of a sentence, or '' for other environments."""
    return f": {REMEDY}" if ".mujoco" in str(gym.spec(name).entry_point) else ""


def _import_home(env_id: str) -> str:
    """Import the module that registers an id, if there is one. Return the id without the module's name."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # code of the user can raise any error
            problem = f"{type(error).__name__}: {error}"
            if isinstance(error, ModuleNotFoundError) and error.name == module:
                problem += ". Run the command in the folder that holds the module, or add that folder to PYTHONPATH"
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
    hint = f"did you mean {', '.join(near)}?" if near else "no registered id is similar to it."
    return f"unknown environment '{env_id}': {hint} Write an id of another package as 'module:Id'"

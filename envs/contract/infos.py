"""Read the infos of a vector environment in every form that Gymnasium returns them.

Gymnasium merges the infos of its environments into one array per key. That fails if two environments return values of
different shapes or types. The vectors of :func:`worldmodel.envs.make_vector` keep each info unchanged.
"""

from collections.abc import Mapping
from typing import Any

INFO = "worldmodel/info"
"""A key of the `infos` of :func:`worldmodel.envs.make_vector`: an array (n,) of the infos of its environments."""


def said(infos: Any, key: str, count: int) -> list[Any]:
    """Return the value of a key in the info of each of `count` environments, None where the key is missing.

    Args:
        infos: the infos of :func:`worldmodel.envs.make_vector` or of another vector environment of Gymnasium, or a
            list of dictionaries as returned by `gymnasium.wrappers.vector.DictInfoToList`.
    """
    if not isinstance(infos, Mapping):
        return [_of_one(info, key) for info in infos]
    if INFO in infos:
        return [_of_one(info, key) for info in infos[INFO]]
    if key not in infos:
        return [None] * count
    told = infos.get(f"_{key}", [True] * count)
    return [value if known else None for value, known in zip(infos[key], told, strict=True)]


def _of_one(info: Any, key: str) -> Any:
    own = info.get(INFO, info) if isinstance(info, Mapping) else {}
    return own.get(key)


def final(infos: Any) -> Any:
    """Return the infos of the last steps of episodes that ended in this step, in the same form as `infos`."""
    if isinstance(infos, Mapping):
        return infos.get("final_info", {})
    return [info.get("final_info") for info in infos]


def final_observations(infos: Any, count: int) -> list[Any]:
    """Return the last observations of episodes that ended in this step, None for the other environments."""
    if isinstance(infos, Mapping):
        return list(infos["final_obs"]) if "final_obs" in infos else [None] * count
    return [info.get("final_obs") for info in infos]

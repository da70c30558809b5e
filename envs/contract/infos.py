"""What the environments of a vector say beside their observations, found again in every form that it has.

Gymnasium merges the infos of its environments into arrays, one for each key, which fails where two of them say things
of different shapes or kinds. The vectors that :func:`worldmodel.envs.make_vector` makes keep each info as it was given.
"""

from collections.abc import Mapping
from typing import Any

INFO = "worldmodel/info"
"""The key of the `infos` of :func:`worldmodel.envs.make_vector`: an array (n,) of the dictionaries that its
environments gave."""


def said(infos: Any, key: str, count: int) -> list[Any]:
    """What each of `count` environments says under a key, None where it does not.

    Args:
        infos: of :func:`worldmodel.envs.make_vector`, of another vector of Gymnasium's, or a list of dictionaries as
            `gymnasium.wrappers.vector.DictInfoToList` makes it.
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
    """The infos of the last steps of episodes that ended in this step, in the form of the others."""
    if isinstance(infos, Mapping):
        return infos.get("final_info", {})
    return [info.get("final_info") for info in infos]


def final_observations(infos: Any, count: int) -> list[Any]:
    """The last observations of episodes that ended in this step, None elsewhere."""
    if isinstance(infos, Mapping):
        return list(infos["final_obs"]) if "final_obs" in infos else [None] * count
    return [info.get("final_obs") for info in infos]

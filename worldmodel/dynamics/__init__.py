"""The family: each member is a choice of what p and q are conditioned on.

A new member is a file, a line in `DYNAMICS`, and a section of `DynamicsConfig` under the same name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.dynamics.dkf import DKF, DKFConfig
from worldmodel.dynamics.rssm import RSSM, RSSMConfig

DYNAMICS: dict[str, Callable[..., SequentialVAE]] = {"rssm": RSSM, "dkf": DKF}


@dataclass
class DynamicsConfig:
    """`name` chooses a member of the family; the section of that name holds its sizes."""

    name: str = "rssm"
    rssm: RSSMConfig = field(default_factory=RSSMConfig)
    dkf: DKFConfig = field(default_factory=DKFConfig)

    def __post_init__(self) -> None:
        if self.name not in DYNAMICS:
            raise ValueError(f"name '{self.name}' is no member of the family; choose one of {', '.join(DYNAMICS)}")


__all__ = ["DKF", "DYNAMICS", "RSSM", "DKFConfig", "DynamicsConfig", "RSSMConfig", "SequentialVAE"]

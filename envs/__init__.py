"""Make real and imagined environments, describe their spaces, and record their trajectories."""

from worldmodel.envs.contract.faults import EnvironmentFault
from worldmodel.envs.contract.spaces import action_spec, observation_specs
from worldmodel.envs.imagined.starts import PriorStarts, ReplayedStarts
from worldmodel.envs.imagined.vector import ImaginedEnv, ImaginedVectorEnv
from worldmodel.envs.make import EnvConfig, make, make_vector, time_limit
from worldmodel.envs.recording.alignment import Episode
from worldmodel.envs.recording.recorder import RecordEnvTrajectories, RecordTrajectories
from worldmodel.envs.rendering.images import Images, Rendered
from worldmodel.envs.testing import probes
from worldmodel.envs.wrappers.basic import ActionRepeat
from worldmodel.envs.wrappers.episodes import RepeatableEpisodes
from worldmodel.envs.wrappers.process import ProcessEnv
from worldmodel.envs.wrappers.restart import Restart

__all__ = [
    "ActionRepeat",
    "EnvConfig",
    "EnvironmentFault",
    "Episode",
    "Images",
    "ImaginedEnv",
    "ImaginedVectorEnv",
    "PriorStarts",
    "ProcessEnv",
    "RecordEnvTrajectories",
    "RecordTrajectories",
    "Rendered",
    "RepeatableEpisodes",
    "ReplayedStarts",
    "Restart",
    "action_spec",
    "make",
    "make_vector",
    "observation_specs",
    "probes",
    "time_limit",
]

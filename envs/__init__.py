"""Real, recorded and imagined environments: make them, know their spaces, record what happens in them."""

from envs import probes
from envs.alignment import Episode
from envs.episodes import RepeatableEpisodes
from envs.faults import EnvironmentFault
from envs.images import Images, Rendered
from envs.imagined import ImaginedEnv, ImaginedVectorEnv
from envs.make import EnvConfig, make, make_vector, time_limit
from envs.process import ProcessEnv
from envs.recorder import RecordEnvTrajectories, RecordTrajectories
from envs.restart import Restart
from envs.spaces import action_spec, observation_specs
from envs.starts import PriorStarts, ReplayedStarts
from envs.wrappers import ActionRepeat

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

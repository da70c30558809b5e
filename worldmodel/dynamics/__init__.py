"""The family of dynamical variational autoencoders. The members differ in what p and q are conditioned on.

To add a member, write a file, add a line to `DYNAMICS`, and add a section of the same name to `DynamicsConfig`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from worldmodel.dynamics.base import SequentialVAE
from worldmodel.dynamics.dkf import DKF, DKFConfig
from worldmodel.dynamics.dsae import DSAE, DSAEConfig
from worldmodel.dynamics.dvbf import DVBF, DVBFConfig
from worldmodel.dynamics.kvae import KVAE, KVAEConfig
from worldmodel.dynamics.rssm import RSSM, RSSMConfig
from worldmodel.dynamics.rvae import RVAE, RVAEConfig
from worldmodel.dynamics.srnn import SRNN, SRNNConfig
from worldmodel.dynamics.storn import STORN, STORNConfig
from worldmodel.dynamics.vae import VAE, VAEConfig
from worldmodel.dynamics.vrnn import VRNN, VRNNConfig

DYNAMICS: dict[str, Callable[..., SequentialVAE]] = {
    "vae": VAE,
    "dkf": DKF,
    "dvbf": DVBF,
    "kvae": KVAE,
    "storn": STORN,
    "vrnn": VRNN,
    "srnn": SRNN,
    "rvae": RVAE,
    "dsae": DSAE,
    "rssm": RSSM,
}


@dataclass
class DynamicsConfig:
    """The choice of a member of the family by `name`. The section of the same name holds its sizes."""

    name: str = "rssm"
    vae: VAEConfig = field(default_factory=VAEConfig)
    dkf: DKFConfig = field(default_factory=DKFConfig)
    dvbf: DVBFConfig = field(default_factory=DVBFConfig)
    kvae: KVAEConfig = field(default_factory=KVAEConfig)
    storn: STORNConfig = field(default_factory=STORNConfig)
    vrnn: VRNNConfig = field(default_factory=VRNNConfig)
    srnn: SRNNConfig = field(default_factory=SRNNConfig)
    rvae: RVAEConfig = field(default_factory=RVAEConfig)
    dsae: DSAEConfig = field(default_factory=DSAEConfig)
    rssm: RSSMConfig = field(default_factory=RSSMConfig)

    def __post_init__(self) -> None:
        if self.name not in DYNAMICS:
            raise ValueError(f"name must be one of {', '.join(DYNAMICS)}, but it is '{self.name}'")


__all__ = [
    "DKF",
    "DSAE",
    "DVBF",
    "DYNAMICS",
    "KVAE",
    "RSSM",
    "RVAE",
    "SRNN",
    "STORN",
    "VAE",
    "VRNN",
    "DKFConfig",
    "DSAEConfig",
    "DVBFConfig",
    "DynamicsConfig",
    "KVAEConfig",
    "RSSMConfig",
    "RVAEConfig",
    "SRNNConfig",
    "STORNConfig",
    "SequentialVAE",
    "VAEConfig",
    "VRNNConfig",
]

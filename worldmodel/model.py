"""WorldModel = encoder + dynamics + heads: everything environments and agents may ask of a latent model."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn

from worldmodel.dynamics import DYNAMICS, DynamicsConfig, SequentialVAE
from worldmodel.networks.encoder import Encoder, Head
from worldmodel.networks.images import ImageDecoder, ImageEncoder, Pixels
from worldmodel.networks.latents import LatentConfig, latent_family
from worldmodel.networks.layers import LayerConfig
from worldmodel.networks.outputs import Bernoulli, Categorical, Normal, Normalizer, Output, SymlogNormal, TwoHot
from worldmodel.specs import ActionSpec, ObservationSpec, ObservationSpecs
from worldmodel.types import Batch, Elbo, Inference, Prediction, State
from worldmodel.validation import LAYERS, at_most

REWARD, CONTINUE = "reward", "continue"

ScalarOutput = Literal["normal", "symlog", "twohot"]
ImageLearning = Literal["reconstruction", "redundancy"]
ImagesEnter = Literal["with_vectors", "beside"]


@dataclass
class ModelConfig:
    """A world model for any observation and action spec."""

    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    hidden: int = 64  # width of encoder and heads
    encoder_layers: int = 2
    decoder_layers: int = 2  # of the heads of observations
    head_layers: int = 2  # of those of reward and continuation
    layer: LayerConfig = field(default_factory=LayerConfig)  # of encoder and heads; the dynamics have their own
    vector_input: Literal["standardised", "symlog"] = "standardised"  # how real vectors enter
    vector_output: Literal["normal", "symlog"] = "normal"  # p(x_t | z_t) of real vectors
    images: ImageLearning = "reconstruction"  # what z_t must tell of an image: its pixels, or see worldmodel.redundancy
    image_depth: int = 16  # channels after the first convolution, doubled by each; PlaNet to Dreamer V2 have 32 and 48
    encoded_images: ImagesEnter = (
        "with_vectors"  # convolved, through `encoder_layers`; or "beside" them, as in PlaNet to V3
    )
    image_std: float = 3.0  # sigma of p(x_t | z_t) in an image's units, see Pixels; where it begins, if it is learned
    image_std_learned: bool = False
    reward_output: ScalarOutput = "normal"
    continuation: bool = True  # whether the end of an episode is predicted; PlaNet has tasks without one
    continuation_discount: float = 1.0  # of the behaviour, that the predicted continuation is to hold (V3: 1 - 1/333)

    def __post_init__(self) -> None:
        for name, kind in (("dynamics", DynamicsConfig), ("latent", LatentConfig), ("layer", LayerConfig)):
            if not isinstance(given := getattr(self, name), kind):
                remedy = f": {kind.__name__}({given!r})" if isinstance(given, str) else ""
                raise ValueError(f"{name} is a {kind.__name__}, not {given!r}{remedy}")
        if min(self.hidden, self.encoder_layers) < 1 or min(self.decoder_layers, self.head_layers) < 0:
            raise ValueError(
                f"hidden and encoder_layers must be at least 1, decoder_layers and head_layers at least 0: {self}"
            )
        at_most(self, encoder_layers=LAYERS, decoder_layers=LAYERS, head_layers=LAYERS)
        if self.image_depth < 1 or self.image_std <= 0:
            raise ValueError(
                f"image_depth must be at least 1, image_std positive: {self.image_depth}, {self.image_std}"
            )
        decoding = (self.image_std, self.image_std_learned)
        if self.images == "redundancy" and decoding != (ModelConfig.image_std, ModelConfig.image_std_learned):
            raise ValueError(
                "image_std and image_std_learned are of decoded images and of no effect with images: redundancy, leave "
                f"them out: {decoding}"
            )
        if not 0 < self.continuation_discount <= 1:
            raise ValueError(f"continuation_discount must lie in (0, 1]: {self.continuation_discount}")
        options = {
            "vector_input": ("standardised", "symlog"),
            "vector_output": ("normal", "symlog"),
            "reward_output": get_args(ScalarOutput),
            "images": get_args(ImageLearning),
            "encoded_images": get_args(ImagesEnter),
        }
        for name, choices in options.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}: '{getattr(self, name)}'")


def scalar_output(name: ScalarOutput) -> Output:
    """The output distribution of a scalar, by the name a config uses."""
    return {"normal": lambda: Normal(1), "symlog": lambda: SymlogNormal(1), "twohot": lambda: TwoHot()}[name]()


def observation_output(spec: ObservationSpec, config: ModelConfig) -> Output:
    """The output distribution of one observation key."""
    if spec.image:
        return Pixels(spec.width, config.image_std, config.image_std_learned)
    if spec.binary:
        return Bernoulli(spec.width)
    if spec.classes:
        return Categorical(spec.classes)
    return SymlogNormal(spec.width) if config.vector_output == "symlog" else Normal(spec.width)


def projection(encoder: Encoder, dynamics: SequentialVAE, name: str) -> nn.Linear:
    """F -> what the convolutions make of all images; linear, as R2-Dreamer's, so that the state itself must say it.

    Raises:
        ValueError: if no image is observed, or the dynamics need their decoders.
    """
    if not encoder.images:
        raise ValueError(
            f"model.images: redundancy is for images, and none of the observations {encoder.keys} is one: leave it "
            "out, or set env.pixels to true"
        )
    if dynamics.feeds_back:
        raise ValueError(
            f"model.images: redundancy leaves images without a decoder, and {name} imagines by looking at what it has "
            "decoded: set model.dynamics.name to rssm, or model.images to reconstruction"
        )
    return nn.Linear(dynamics.feature_size, sum(encoder.widths[place] for place in encoder.images), bias=False)


class LatentModel(Protocol):
    """What whoever acts or plans asks of a model: learned, or the true dynamics."""

    discount: float  # that a predicted continuation already holds; 1 where it is a probability

    def initial(self, batch_size: int) -> State:
        """The state before the first observation, each field (B, ...)."""
        ...

    def filter(
        self, state: State, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor, sample: bool = True
    ) -> State:
        """s_{t-1}, {key: (B, width)}, u_{t-1} (B, A), is_first (B,) -> s_t."""
        ...

    def imagine(self, state: State, control: Tensor, sample: bool = True) -> State:
        """s_{t-1}, u_{t-1} (B, A) -> s_t: a sample, or the likeliest."""
        ...

    def feature(self, state: State) -> Tensor:
        """s_t -> (..., F)."""
        ...

    def predict(self, feature: Tensor, decode: bool = True) -> Prediction:
        """(..., F) -> reward, continuation and, if `decode`, observations."""
        ...


class WorldModel(nn.Module):
    """p(x_t, r_t, continue_t | s_t) over a latent dynamics model with controls.

    `discount` is what the continuation of a step that goes on counts as, and learns to be; 1 without a head for it.
    Below 1 what the head explains is no event of its own: its log-likelihood is the negative cross entropy with
    Bernoulli(discount) wherever the episode goes on, and the ELBO bounds log p of all the rest.

    The public contract is `initial`, `observe`, `filter`, `imagine`, `feature`, `predict` and `elbo`; a model of
    another kind that answers them can take its place anywhere.

    Args:
        encoder: {key: (..., width)} -> (..., E), with `fit` for its units.
        dynamics: a member of the family.
        decoders: {key: head} for every observation key, or for all but the images.
        reward, cont: heads of the reward and of the continuation flag; None where that is not to be explained.
        discount: see above.
        projector: (..., F) -> (..., D), of all images together, where they have no decoder: what a state says that
            their convolutions say, see :mod:`worldmodel.learning.redundancy`.
    Raises:
        ValueError: if an observation key is called like one of those two emissions, or nothing is emitted at all.
    """

    def __init__(
        self,
        encoder: Encoder,
        dynamics: SequentialVAE,
        decoders: dict[str, Head],
        reward: Head | None = None,
        cont: Head | None = None,
        discount: float = 1.0,
        projector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.dynamics, self.discount = encoder, dynamics, 1.0 if cont is None else discount
        self.keys = list(decoders)
        self.decoders = nn.ModuleList(decoders.values())  # a list: a key may hold characters a module's name may not
        self.reward, self.cont, self.projector = reward, cont, projector
        self.feature_size = dynamics.feature_size
        if len(set(self.emissions)) < len(self.emissions):
            raise ValueError(f"an observation key has the name of another emission, rename it: {self.emissions}")
        if not self.emissions:
            raise ValueError(
                "the model would emit nothing: no observation has a decoder, and there is no reward; build it with "
                "heads, or with images: reconstruction"
            )

    @staticmethod
    def build(
        config: ModelConfig, obs_specs: ObservationSpecs, action_spec: ActionSpec, heads: bool = True
    ) -> "WorldModel":
        """The model a config describes, for these observations and actions; without `heads`, of observations alone.

        Raises:
            ValueError: for images without decoders where there are no images, or where dynamics need the decoders.
        """
        encoder = Encoder(
            obs_specs,
            config.hidden,
            config.encoder_layers,
            config.layer,
            config.vector_input,
            config.image_depth,
            config.encoded_images == "beside",
        )
        name = config.dynamics.name
        sizes = getattr(config.dynamics, name)
        with warnings.catch_warnings():  # of the weights of controls, where there are none
            warnings.filterwarnings("ignore", "Initializing zero-element")
            dynamics = DYNAMICS[name](sizes, latent_family(config.latent), action_spec.width, encoder.size)

        def head(output: Output, layers: int, scale: float = 1.0) -> Head:
            return Head.of_vectors(dynamics.feature_size, config.hidden, layers, output, scale, config.layer)

        def decoder(spec: ObservationSpec) -> Head:
            output = observation_output(spec, config)
            if not spec.image:
                return head(output, config.decoder_layers)
            return Head(ImageDecoder(dynamics.feature_size, spec.shape, config.image_depth, config.layer), output)

        projector = projection(encoder, dynamics, name) if config.images == "redundancy" else None
        decoders = {key: decoder(spec) for key, spec in obs_specs.items() if projector is None or not spec.image}
        if not heads:
            return WorldModel(encoder, dynamics, decoders, projector=projector)
        reward = head(scalar_output(config.reward_output), config.head_layers, 0.0)
        if not config.continuation:  # nothing learns what the continuation of a step counts as
            return WorldModel(encoder, dynamics, decoders, reward, projector=projector)
        cont = head(Bernoulli(1), config.head_layers)
        return WorldModel(encoder, dynamics, decoders, reward, cont, config.continuation_discount, projector)

    def _decoders(self) -> Iterator[tuple[str, Head]]:
        return zip(self.keys, cast(Iterable[Head], self.decoders), strict=True)

    @property
    def heads(self) -> list[tuple[str, Head]]:
        """Everything the latent state explains, by name."""
        extra = [(REWARD, self.reward), (CONTINUE, self.cont)]
        return [*self._decoders(), *((name, head) for name, head in extra if head is not None)]

    @property
    def emissions(self) -> list[str]:
        """Names of everything the latent state explains: the keys of `Elbo.log_likelihood`."""
        return [name for name, _ in self.heads]

    def fit_normalizers(self, batch: Batch, keep: bool = False) -> None:
        """Take the units of inputs and outputs from a recorded batch.

        Once before the first update; and again, with `keep`, when there is much more to measure: then what the model
        has learned stays, in new units. Units of the first steps alone let it fail where the world turns out larger
        than they showed: a quantity twenty of its units away is cheaper to call noise than to predict.

        Observations that the batch lacks keep the units they have: images may come in another, see :meth:`fit_images`.
        """
        self._fit(batch.obs, batch.mask, keep)
        if self.reward is not None:
            self.reward.fit(batch.reward.unsqueeze(-1), batch.mask * ~batch.is_first, keep)

    @property
    def normalizers(self) -> dict[str, Normalizer]:
        """Of every observation, and of the reward, that has units which :meth:`fit_normalizers` takes."""
        entrances = zip(self.encoder.keys, self.encoder.entrances, strict=True)
        found = {key: module for key, module in entrances if isinstance(module, Normalizer)}
        return found | {name: head.output.normalizer for name, head in self.heads if isinstance(head.output, Normal)}

    def fit_images(self, batch: Batch) -> None:
        """Take the units of the images in a recorded batch, as :meth:`fit_normalizers`, and of nothing else.

        A few thousand pictures are enough (`worldmodel.images.ENOUGH`), where of vectors everything recorded counts.
        """
        self._fit({key: batch.obs[key] for key in self.image_keys}, batch.mask)

    @property
    def image_keys(self) -> list[str]:
        """The observations that are images, decoded or not."""
        if self.projector is not None:
            return [self.encoder.keys[place] for place in self.encoder.images]
        return [key for key, decoder in self._decoders() if isinstance(decoder.output, Pixels)]

    def _fit(self, obs: dict[str, Tensor], mask: Tensor, keep: bool = False) -> None:
        self.encoder.fit(obs, mask, keep)
        for key, decoder in self._decoders():
            if key in obs:
                decoder.fit(obs[key], mask, keep)

    def initial(self, batch_size: int) -> State:
        """The state before the first observation, each field (B, ...)."""
        return self.dynamics.initial(batch_size)

    def observe(self, batch: Batch, state: State | None = None, embedding: Tensor | None = None) -> Inference:
        """Sample the posterior over a batch of windows, from `state` or from the initial one.

        Args:
            embedding: (B, T, E), the encoder's of these observations, where that is known already.
        """
        embedding = self.encoder(batch.obs) if embedding is None else embedding
        return self.dynamics.observe(embedding, batch.prev_action, batch.is_first, state)

    def observe_images(self, batch: Batch, state: State | None = None) -> tuple[Inference, Tensor]:
        """As :meth:`observe`, and what the convolutions have made of all images on the way, (B, T, D)."""
        parts = self.encoder.entered(batch.obs)
        inference = self.dynamics.observe(self.encoder.embed(parts), batch.prev_action, batch.is_first, state)
        return inference, torch.cat([parts[place] for place in self.encoder.images], -1)

    def filter(
        self, state: State, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor, sample: bool = True
    ) -> State:
        """One step of :meth:`observe`: s_{t-1}, {key: (B, width)}, u_{t-1} (B, A), is_first (B,) -> s_t."""
        return self.dynamics.filter(state, self.encoder(obs), prev_action, is_first, sample)

    def imagine(self, state: State, control: Tensor, sample: bool = True) -> State:
        """s_{t-1}, u_{t-1} (B, A) -> a sample of s_t from the prior, or its mode.

        A member whose next state depends on what is observed is shown a sample of its own emission, or its mean.
        """
        state = self.dynamics.imagine(state, control, sample)
        if not self.dynamics.feeds_back:
            return state
        feature = self.feature(state)
        seen = {key: head.sample(feature) if sample else head.mean(feature) for key, head in self._decoders()}
        return self.dynamics.with_observation(state, self.encoder(seen))

    def feature(self, state: State) -> Tensor:
        """s_t -> (..., F)."""
        return self.dynamics.feature(state)

    def predict(self, feature: Tensor, decode: bool = True) -> Prediction:
        """(..., F) -> means of the reward, the continuation and, if `decode`, every observation key."""
        obs = {key: head.mean(feature) for key, head in self._decoders()} if decode else {}
        ones = feature.new_ones(feature.shape[:-1])
        reward = torch.zeros_like(ones) if self.reward is None else self.reward.mean(feature).squeeze(-1)
        cont = ones if self.cont is None else self.cont.mean(feature).squeeze(-1)
        return Prediction(obs, reward, cont)

    def log_likelihood(self, batch: Batch, feature: Tensor) -> dict[str, Tensor]:
        """{emission: (B, T)} log p(. | s_t) in nats; a reset brings no reward to explain (derivation Eq. 11, 33)."""
        logs = {key: head.log_prob(feature, batch.obs[key]) for key, head in self._decoders()}
        if self.reward is not None:
            logs[REWARD] = self.reward.log_prob(feature, batch.reward.unsqueeze(-1)) * ~batch.is_first
        if self.cont is not None:
            logs[CONTINUE] = self.cont.log_prob(feature, self.discount * (1 - batch.is_terminal.float()).unsqueeze(-1))
        return logs

    def elbo(self, batch: Batch, inference: Inference | None = None) -> Elbo:
        """The sequential ELBO of every step, a one-sample estimate: (B, T) in nats, zero where padded.

        Derivation Eq. 20, 21 and, for every member, 56. It is that of what is emitted: images without a decoder are
        evidence for q and nothing to be explained, so that their KL is paid for and their likelihood is no part of it.
        Such an ELBO still bounds log p of all the rest, and does not compare with one that explains images.
        """
        inference = self.observe(batch) if inference is None else inference
        logs = self.log_likelihood(batch, self.feature(inference.states))
        logs = {key: value * batch.mask for key, value in logs.items()}
        kl = self.dynamics.latent.kl(inference.posterior, inference.prior) * batch.mask
        assert kl.shape == batch.reward.shape, (kl.shape, batch.reward.shape)
        return Elbo(torch.stack(list(logs.values())).sum(0) - kl, logs, kl)

    def steps(self) -> list[tuple[object, str]]:
        """Return the methods that `learner.compile: step` compiles, each with its owner. None loops over time."""
        images = [(module, "forward") for module in self.modules() if isinstance(module, ImageEncoder)]
        inference = [(self.dynamics, "step"), (self.dynamics.latent, "kl"), (self, "log_likelihood"), *images]
        return [*inference, (self, "imagine"), (self, "predict")]

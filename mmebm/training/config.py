"""What a run is made of. Unknown keys, wrong types and impossible values are refused with the key's name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from mmebm.devices import NAMES

Law = Literal["laplace", "normal"]
Activation = Literal["silu", "gelu", "gelu_tanh", "leaky_relu", "relu", "softplus", "tanh", "elu"]
LikelihoodName = Literal["laplace", "normal", "bernoulli", "categorical"]
NetworkName = Literal["auto", "mlp", "mnist", "svhn", "conv", "resnet", "caption"]
# TOML and JSON have lists only; what is in them stays strict.
Widths = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Pair = Annotated[tuple[float, float], Field(strict=False)]
# "--set key=none" is None by the time it comes here.
Decay = Annotated[Literal["none", "cosine"], BeforeValidator(lambda value: "none" if value is None else value)]


# Models whose experts are Normal and whose divergences are closed; and the switches of each.
NORMAL_MODELS = ("mvae", "mopoe", "mvtcae", "mmjsd")
_SWITCHES = {
    "mmvaeplus": ("test_private",),
    "mvae": ("random_subsets", "prior_expert"),
    "mopoe": ("choice", "prior_expert", "conditional"),
    "mvtcae": ("alpha",),
    "mmjsd": ("variant", "choice"),
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataConfig(_Section):
    """`options` go to the dataset: `size`, `seed`, .."""

    name: str = "digits"
    options: dict[str, Any] = {}


class ModelConfig(_Section):
    """One model. `likelihoods`, `likelihood_scales`, `rescale` (lambda_m) and `networks` name modalities; others take
    `likelihood`, `likelihood_scale`, 1 and `network`, of which "auto" goes by shape. `hidden` is for the mlp.

    `options` are the model's own switches: see its file in mmebm/models.
    """

    name: Literal["mvae", "mmvae", "mmvaeplus", "mopoe", "mvtcae", "mmjsd"] = "mmvaeplus"
    latent_dim: PositiveInt = 16
    private_dim: PositiveInt | None = 16
    posterior: Law = "laplace"
    likelihood: LikelihoodName = "laplace"
    likelihoods: dict[str, LikelihoodName] = {}
    likelihood_scale: PositiveFloat = 0.75
    likelihood_scales: dict[str, PositiveFloat] = {}
    rescale: dict[str, PositiveFloat] = {}
    network: NetworkName = "auto"
    networks: dict[str, NetworkName] = {}
    hidden: Widths = (400,)
    samples: PositiveInt = 1
    estimator: Literal["elbo", "iwae", "dreg"] = "elbo"
    beta: PositiveFloat = 1.0
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _switches(self) -> ModelConfig:
        known = _SWITCHES.get(self.name, ())
        if unknown := sorted(set(self.options) - set(known)):
            raise ValueError(f"options: {self.name} takes {', '.join(known) or 'none'}, got {', '.join(unknown)}")
        return self

    @model_validator(mode="after")
    def _normal(self) -> ModelConfig:
        for name, only in (("posterior", "normal"), ("estimator", "elbo")):
            if self.name in NORMAL_MODELS and getattr(self, name) != only:
                raise ValueError(f"{name}: {self.name} takes {only!r}, got {getattr(self, name)!r}")
        return self

    @model_validator(mode="after")
    def _private(self) -> ModelConfig:
        if self.name == "mmvaeplus" and self.private_dim is None:
            raise ValueError("private_dim: mmvaeplus takes an integer >= 1")
        return self


class PriorConfig(_Section):
    """The prior on z; everything below `name` is for "energy". `steps` and `step_size` are for sampling."""

    name: Literal["laplace", "normal", "energy"] = "energy"
    reference: Law = "laplace"
    reference_scale: PositiveFloat | Literal["matched"] = 1.0
    learn_scale: bool = False
    hidden: Widths = (128, 128)
    activation: Activation = "silu"
    slope: float = Field(0.2, ge=0.0)
    input_scale: PositiveFloat = 0.1
    spectral_norm: PositiveFloat | None = 60.0
    bound: PositiveFloat | None = None
    grad_clip: PositiveFloat | None = None
    clamp: Pair | None = None
    steps: PositiveInt = 200
    step_size: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _box(self) -> PriorConfig:
        if self.clamp is not None and not self.clamp[0] < self.clamp[1]:
            raise ValueError(f"clamp: expected lower < upper, got {list(self.clamp)}")
        return self


class EnergyTrainConfig(_Section):
    """The energy's update: chains, optimiser, and what keeps it stable; `repeats` updates for each of the model's."""

    learning_rate: PositiveFloat = 1e-3
    betas: Pair = (0.5, 0.999)
    decay: Decay = "cosine"
    chains: PositiveInt = 256
    steps: PositiveInt = 20
    step_size: PositiveFloat = 0.1
    persistent: bool = True
    reinitialise: float = Field(0.1, ge=0.0, le=1.0)
    regularisation: float = Field(0.0, ge=0.0)
    max_grad_norm: PositiveFloat | None = None
    repeats: PositiveInt = 3
    largest_gap: PositiveFloat = 1e3

    @model_validator(mode="after")
    def _momenta(self) -> EnergyTrainConfig:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {list(self.betas)}")
        return self


class TrainConfig(_Section):
    """From update `energy_start` on the energy is trained; from `energy_enters` on (never, where None) its value stands
    in the encoders' objective, with a weight that grows linearly to 1 over the next `energy_warmup` updates. After the
    model's `updates`, `energy_finish` more train the energy alone, on a posterior that stands still by then.
    `cuda_graph` makes the energy's update one CUDA graph.
    """

    updates: PositiveInt = 2000
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 1e-3
    amsgrad: bool = True
    decay: Decay = "cosine"
    energy_start: int = Field(100, ge=0)
    energy_enters: int | None = Field(500, ge=0)
    energy_warmup: int = Field(300, ge=0)
    energy_finish: int = Field(0, ge=0)
    largest_scale: PositiveFloat = 1e3
    log_every: PositiveInt = 50
    checkpoint_every: PositiveInt = 200
    cuda_graph: bool = False
    energy: EnergyTrainConfig = EnergyTrainConfig()


class EvaluateConfig(_Section):
    """Sample sizes and samplers of `mmebm evaluate`; `likelihood_samples` K > 0 adds the joint log-likelihood."""

    samples: PositiveInt = 2000
    cross_rows: PositiveInt = 1000
    mixture_components: PositiveInt = 10
    mixture_latents: PositiveInt = 20000
    probe_rows: PositiveInt = 2000
    likelihood_samples: int = Field(0, ge=0)
    likelihood_rows: PositiveInt = 500


class Config(_Section):
    """A whole run, on one device."""

    seed: int = 0
    device: str = "cpu"
    threads: PositiveInt | None = None
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    prior: PriorConfig = PriorConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not NAMES.fullmatch(device):
            raise ValueError(f"device: expected cpu, cuda or cuda:N, got {device!r}")
        return device

    @model_validator(mode="after")
    def _graph_on_a_gpu(self) -> Config:
        if self.train.cuda_graph and self.device == "cpu":
            raise ValueError("train.cuda_graph: expected device cuda, got cpu")
        return self

    @property
    def updates(self) -> int:
        """Of the model, and of the energy alone after it."""
        return self.train.updates + (self.train.energy_finish if self.prior.name == "energy" else 0)


class ConfigError(ValueError):
    """The configuration names something unknown or impossible."""


def _key(location: Sequence[int | str], values: Any) -> str:
    """The dotted name of what stands there in `values`, without pydantic's own additions for unions."""
    parts = []
    for part in location:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            break
        parts.append(str(part))
    return ".".join(parts) or "configuration"


def _explain(error: ValidationError, values: Any, source: str) -> str:
    lines = []
    for item in error.errors():
        key = _key(item["loc"], values)
        if item["type"] == "value_error":  # ours; it begins with the key's last part
            lines.append(f"{key}.{item['ctx']['error']}")
        elif item["type"] == "extra_forbidden":
            section: Any = Config
            for part in item["loc"][:-1]:
                section = section.model_fields[str(part)].annotation
            lines.append(f"{key}: unknown key; known here: {', '.join(section.model_fields)}")
        else:
            lines.append(f"{key}: {item['msg']}, got {item['input']!r}")
    return f"{source}: " + "; ".join(lines)


def parse(values: dict[str, Any], source: str = "configuration") -> Config:
    """A `Config` from nested dictionaries; `ConfigError` names every bad key and what it takes."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, values, source)) from None


def presets() -> list[str]:
    """Names of the presets in the package."""
    folder = resources.files("mmebm") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _assign(values: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {assignment!r}: expected key=value, as in train.updates=500")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = None if text.strip() == "none" else text.strip()
    *sections, leaf = key.strip().split(".")
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {assignment!r}: {name!r} is a value, not a section")
    values[leaf] = value


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """From a preset's name, a TOML file or a run's config.json; `overrides` are "key=value" with dotted keys."""
    if isinstance(source, str) and source in presets():
        text, name = (resources.files("mmebm") / "presets" / f"{source}.toml").read_text(), f"preset {source}"
    else:
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"{source}: no such file, nor a preset (presets: {', '.join(presets())})")
        text, name = path.read_text(), str(path)
    try:
        values = json.loads(text) if name.endswith(".json") else tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    return overridden(values, overrides, name)


def overridden(values: dict[str, Any], assignments: Sequence[str], source: str = "configuration") -> Config:
    """`values` with "key=value" assignments applied, checked as a whole."""
    for assignment in assignments:
        _assign(values, assignment)
    return parse(values, source)

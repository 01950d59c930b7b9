"""Other libraries, where they are installed: torchebm's Langevin sampler, MultiVae's products of experts."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.case import Call, Contender
from bench.contenders import mlp

if TYPE_CHECKING:
    from bench.cases.experts import Experts
    from bench.cases.langevin import Chains

# Where `make bench` installs them: apart, as they are not mmebm's dependencies.
FOLDER = Path(__file__).parents[2] / "build" / "peers"
# Imported by MultiVae's datasets and metrics only, of which nothing here touches what needs them.
_UNUSED = ("nltk", "pandas", "torchmetrics", "torchvision")


class _Name(type):
    """What a stand-in has by any name: a class, and so has that."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})


class _StandIn(ModuleType):
    __path__: list[str] = []  # noqa: RUF012
    __getattr__ = _Name.__getattr__


class _StandIns:
    """Finds a stand-in for every module of a package that MultiVae imports and that is not needed here."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in _UNUSED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Only for packages that are not loaded already; nothing of it stays behind."""
    finder = _StandIns()
    before = {name for name in sys.modules if name.partition(".")[0] in _UNUSED}
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in [n for n in sys.modules if n.partition(".")[0] in _UNUSED and n not in before]:
            del sys.modules[name]


@cache
def _imported(name: str) -> ModuleType | str:
    """The module, or why it cannot be imported."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    importlib.invalidate_caches()
    try:
        with _stand_ins():
            module = importlib.import_module(name)
    except Exception as error:
        return (
            f"{name.partition('.')[0]} cannot be imported ({type(error).__name__}: {error}); `make bench` installs it"
        )
    for logger in logging.root.manager.loggerDict:  # MultiVae prints its notes through a handler per module
        if logger.startswith("multivae"):
            logging.getLogger(logger).setLevel(logging.ERROR)
    return module


def load(name: str) -> Any:
    module = _imported(name)
    if isinstance(module, str):
        raise ImportError(module)
    return module


def absent(name: str) -> Callable[[], str | None]:
    def why() -> str | None:
        module = _imported(name)
        return module if isinstance(module, str) else None

    return why


def version(package: str) -> Callable[[], str]:
    return lambda: f"{package} {importlib.metadata.version(package)}"


# torchebm: z <- z - eta grad U + sqrt(2 eta) eps, our physics(eta); U has the reference in it -----------------------


def _torchebm(x: Chains) -> Call:
    core, samplers = load("torchebm.core"), load("torchebm.samplers")

    class Model(core.BaseModel):  # type: ignore[misc, name-defined]
        def forward(self, z: Tensor) -> Tensor:
            return mlp.energy(z, x.weights, x.biases) + z.abs().sum(1)

    sampler = samplers.LangevinDynamics(model=Model(device="cpu"), step_size=x.a, noise_scale=1.0, device="cpu")
    return lambda: sampler.sample(x=x.z0, n_steps=x.steps)


def torchebm_langevin() -> Contender:
    return Contender(_torchebm, gate="moments", absent=absent("torchebm.samplers"), version=version("torchebm"))


# MultiVae: the methods of its models, called on what an encoder would give --------------------------------------------


def _encoded(names: Iterable[str], mu: Iterable[Tensor], logvar: Iterable[Tensor]) -> dict[str, SimpleNamespace]:
    """What encoders would give: mu and logvar [M, B, d] by name."""
    return {n: SimpleNamespace(embedding=m, log_covariance=v) for n, m, v in zip(names, mu, logvar, strict=True)}


def _multivae_product(x: Experts) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """MVAE.compute_mu_log_var_subset: a masked product with the prior always in it."""
    method = load("multivae.models.mvae.mvae_model").MVAE.compute_mu_log_var_subset
    names = [f"m{i}" for i in range(len(x.mu))]
    masks = {name: (x.present >> i & 1).bool() for i, name in enumerate(names)}
    inputs = SimpleNamespace(data=dict.fromkeys(names), masks=masks)

    def product(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        # It writes inf into an encoder's log-variance, which is why it gets a clone.
        given = _encoded(names, mu, [v.clone() for v in logvar])
        model = SimpleNamespace(encoders={n: lambda _, n=n: given[n] for n in names})
        return method(model, inputs, names)

    return product


def _multivae_subsets(x: Experts) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """MoPoE.inference on complete data: every subset's product, the prior in the full one, then one picked per row."""
    mopoe = load("multivae.models.mopoe.mopoe_model").MoPoE
    names = [f"m{i}" for i in range(len(x.mu))]
    inputs = SimpleNamespace(data={name: torch.empty(0) for name in names})
    model = mopoe.__new__(mopoe)
    torch.nn.Module.__init__(model)
    model.__dict__ |= {"latent_dim": x.mu.shape[-1], "subsets": {}, "model_config": SimpleNamespace()}
    model.__dict__["encoders"] = dict.fromkeys(names)
    model.set_subsets(model.all_subsets())

    def subsets(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        given = _encoded(names, mu, logvar)
        model.__dict__["modality_encode"] = lambda _: given
        found = model.inference(inputs)
        return found["mus"], found["logvars"]

    return subsets


def multivae_order(experts: int) -> Tensor:
    """Where bitmask s = 1.. of `subset_experts` stands among MultiVae's subsets, which go by size."""
    theirs = [sum(1 << i for i in c) for n in range(1, experts + 1) for c in combinations(range(experts), n)]
    return torch.tensor(theirs).argsort()


MULTIVAE = {
    "product": (_multivae_product, absent("multivae.models.mvae.mvae_model"), version("multivae")),
    "subsets": (_multivae_subsets, absent("multivae.models.mopoe.mopoe_model"), version("multivae")),
}

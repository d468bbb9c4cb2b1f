"""LateGate and the policies it is compared with, by name, for the simulation and for real engines.

A name is that of a module of `contenders`, with the arguments that it takes: `fixed:64:0.5`. Every
other name in `POLICIES` is that policy with its default settings.
"""

import contextlib
import importlib
import pkgutil
from typing import cast

from benchmarks.stand_ins import contenders
from benchmarks.stand_ins.contender import Contender, Setup
from llmserve.admission import POLICIES, AdmissionController, build_admission
from llmserve.config import AdmissionConfig
from llmserve.errors import ConfigurationError

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(contenders.__path__)))


def contender(name: str) -> Contender:
    """Return the module of a contender. Raises ImportError."""
    return cast("Contender", importlib.import_module(f"{contenders.__name__}.{name}"))


def make(name: str, setup: Setup) -> AdmissionController:
    """Make a new controller by name. Raises ConfigurationError for an unknown name."""
    kind, *arguments = name.split(":")
    if kind in POLICIES and kind not in NAMES:
        return build_admission(AdmissionConfig(policy=name), setup.slo, setup.max_num_seqs, setup.max_num_batched_tokens)
    if kind in NAMES:
        with contextlib.suppress(TypeError, ValueError):
            return contender(kind).make(setup, *arguments)
    names = ", ".join(dict.fromkeys((*POLICIES, *NAMES)))
    raise ConfigurationError(f"unknown admission policy {name!r}; choose from {names} (fixed:64, vllm:256, thin:12)")


def variants(name: str, setup: Setup) -> list[str]:
    """Return the names of a contender's variants."""
    found = getattr(contender(name), "variants", None)
    return [name] if found is None else [f"{name}:{arguments}" for arguments in found(setup)]

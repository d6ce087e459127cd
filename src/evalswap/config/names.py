"""The names that config files import from other evaluation tools, without those tools.

A config says ``from opencompass.models import HuggingFacewithChatTemplate`` and uses the class only as a
value of ``type=``. Here such an import yields a :class:`TypeName`, which remembers the dotted path and is
never anything else. Which type names mean something is decided later, in ``specs`` and ``benchmarks``.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

# Packages whose imports are answered here. ``opencompass.configs`` is not: those are config files.
STAND_IN_PACKAGES = ("mmengine", "opencompass")
CONFIG_PACKAGE = "opencompass.configs"
TORCH_DTYPES = ("bfloat16", "float16", "float32", "float64", "float", "half", "double")


class TypeName:
    """A class, function or module that a config names, as its dotted import path."""

    __slots__ = ("dotted",)

    def __init__(self, dotted: str) -> None:
        self.dotted = dotted

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "read_base" and self.dotted.startswith("mmengine"):
            return read_base
        return TypeName(f"{self.dotted}.{name}")

    def __repr__(self) -> str:
        return self.dotted

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TypeName) and other.dotted == self.dotted

    def __hash__(self) -> int:
        return hash(self.dotted)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise TypeError(f"{self.dotted} is a name here: use it as dict(type={short_name(self)}, ...), don't call it")

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        """Let a config derive a class of its own; what it derives from is not here."""
        return ()


@contextlib.contextmanager
def read_base() -> Iterator[None]:
    """Mark imports of other config files; here every import in a config is read that way already."""
    yield


class Torch(ModuleType):
    """``torch`` as configs use it, for the names of dtypes. Anything else of it is the real package's."""

    def __getattr__(self, name: str) -> Any:
        if name in TORCH_DTYPES:
            return TypeName(f"torch.{name}")
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module("torch"), name)


def stand_in(module: str, names: Sequence[str]) -> Any:
    """Return what ``import module`` or ``from module import names`` gives in a config, None for the real module."""
    package = module.partition(".")[0]
    if package in STAND_IN_PACKAGES:
        return TypeName(module if names else package)
    return Torch(module) if module == "torch" else None


def short_name(type_value: object) -> str:
    """Return the last part of a type, given as a :class:`TypeName`, a class or a dotted string."""
    return dotted_name(type_value).rpartition(".")[2]


def dotted_name(type_value: object) -> str:
    """Return a type's dotted path as the config's author wrote or imported it."""
    if isinstance(type_value, TypeName):
        return type_value.dotted
    if isinstance(type_value, str):
        return type_value
    module, name = getattr(type_value, "__module__", None), getattr(type_value, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(type_value)

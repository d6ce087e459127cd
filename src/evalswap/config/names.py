"""The names that config files import from other evaluation tools, without those tools.

A config says ``from opencompass.models import HuggingFacewithChatTemplate`` and uses the class only as a
value of ``type=``. Here such an import yields a :class:`TypeName`, which remembers the dotted path and is
never anything else. Which type names mean something is decided later, in ``specs`` and ``benchmarks``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

# Packages whose imports are answered here. ``opencompass.configs`` is not: those are config files.
STAND_IN_PACKAGES = ("mmengine", "opencompass")
CONFIG_PACKAGE = "opencompass.configs"


class TypeName:
    """A class that a config names, as its dotted import path."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def __repr__(self) -> str:
        return self.path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TypeName) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise TypeError(f"{self.path} is a name here: use it as dict(type={self.name}, ...), don't call it")


@contextlib.contextmanager
def read_base() -> Iterator[None]:
    """Mark imports of other config files; here every import in a config is read that way already."""
    yield


class StandInModule(ModuleType):
    """A module whose every public attribute is a :class:`TypeName`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__ == "mmengine.config" and name == "read_base":
            return read_base
        return TypeName(f"{self.__name__}.{name}")


def is_stand_in(module: str) -> bool:
    """Whether an import of ``module`` in a config is answered by names instead of real code."""
    if module == CONFIG_PACKAGE or module.startswith(CONFIG_PACKAGE + "."):
        return False
    return module.partition(".")[0] in STAND_IN_PACKAGES


def short_name(type_value: object) -> str:
    """Return the last part of a type, given as a :class:`TypeName`, a class or a dotted string."""
    return dotted_name(type_value).rpartition(".")[2]


def dotted_name(type_value: object) -> str:
    """Return a type's dotted path as the config's author wrote or imported it."""
    if isinstance(type_value, TypeName):
        return type_value.path
    if isinstance(type_value, str):
        return type_value
    module, name = getattr(type_value, "__module__", None), getattr(type_value, "__qualname__", None)
    return f"{module}.{name}" if module and name else repr(type_value)

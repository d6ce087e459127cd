"""Executing a user's Python config file, and the config files that it imports.

Config files are ordinary Python with one peculiarity: their relative imports name other config files, and
their ``mmengine``/``opencompass`` imports name classes of tools that need not be installed. Both are handled
by giving the file an ``__import__`` of its own, so nothing here appears in ``sys.modules`` and nothing that
the caller has there changes what a config means.
"""

from __future__ import annotations

import builtins
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from evalswap.config.names import CONFIG_PACKAGE, stand_in
from evalswap.errors import ConfigError, did_you_mean

LIBRARY = Path(__file__).resolve().parent.parent / "library"
LIBRARY_FOLDERS = ("datasets", "models", "summarizers")


class AttributeDict(dict[str, Any]):
    """A dict of another config, usable as configs do: ``model['path']``, ``model.path``, ``model.deepcopy()``."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"no key '{name}'")
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def deepcopy(self) -> AttributeDict:
        return AttributeDict({key: _own(value) for key, value in self.items()})


class ConfigModule(ModuleType):
    """An executed config file; it lives only in the loader that made it."""


class ConfigImportError(ImportError):
    """An import of a config file that cannot be had; a config may catch it like any ImportError."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigLoader:
    """Executes config files, each at most once."""

    def __init__(self, search: Sequence[Path] = ()) -> None:
        """Search ``search`` (the user's folders) before the bundled library for files that are not relative."""
        self.roots = [*(folder.resolve() for folder in search), LIBRARY]
        self._modules: dict[Path, ConfigModule] = {}
        self._running: list[Path] = []

    def load(self, path: Path) -> dict[str, Any]:
        """Execute a config file and return its public names.

        Raises ConfigError naming the file and line for anything that goes wrong in it.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"config file not found: {path}", self._similar_file(path))
        module = self.execute(path.resolve())
        return {name: value for name, value in vars(module).items() if not name.startswith("_")}

    # -- executing -------------------------------------------------------------------------------------

    def execute(self, path: Path) -> ConfigModule:
        """Return a config file's module, executed now or earlier."""
        if path in self._modules:
            return self._modules[path]
        if path in self._running:
            chain = " -> ".join(p.name for p in [*self._running[self._running.index(path) :], path])
            raise ConfigImportError(f"config files import each other in a circle: {chain}")
        module = ConfigModule(path.stem)
        module.__file__ = str(path)
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _Importer(self, path)}
        try:
            code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except SyntaxError as error:
            line = f":{error.lineno}" if error.lineno else ""
            raise ConfigError(f"{path}{line}: not valid Python: {error.msg}") from error
        except (OSError, ValueError) as error:  # unreadable, or null bytes in it
            raise ConfigError(f"{path}: not readable as Python: {error}") from error
        self._running.append(path)
        try:
            exec(code, vars(module))
        except (ConfigError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise _explained(error, path) from error
        finally:
            self._running.pop()
        self._modules[path] = module
        return module

    # -- finding ---------------------------------------------------------------------------------------

    def relative(self, importing: Path, level: int, name: str) -> Path:
        """Return the file or folder that ``from <level dots><name> import`` means in ``importing``."""
        base = importing.parent
        for _ in range(level - 1):
            base = base.parent
        wanted = base.joinpath(*filter(None, name.split(".")))
        return _file_or_folder(wanted) or self._in_library(wanted, [importing.parent])

    def absolute(self, name: str) -> Path:
        """Return the file or folder of a dotted name under ``opencompass.configs``."""
        wanted = Path(*name.split(".")[len(CONFIG_PACKAGE.split(".")) :])
        for root in [*self.roots, *_installed_configs()]:
            found = _file_or_folder(root / wanted)
            if found is not None:
                return found
        return self._in_library(wanted, [])

    def _in_library(self, wanted: Path, nearest: Iterable[Path]) -> Path:
        """Look for the ``datasets/...``, ``models/...`` or ``summarizers/...`` that a path ends in."""
        starts = [i for i, part in enumerate(wanted.parts) if part in LIBRARY_FOLDERS]
        roots = [*nearest, *self.roots, *_installed_configs()]
        for start in reversed(starts):
            for root in roots:
                found = _file_or_folder(root.joinpath(*wanted.parts[start:]))
                if found is not None:
                    return found
        hint = did_you_mean(wanted.name, self.library_names(wanted.parts[starts[-1]])) if starts else None
        raise ConfigImportError(
            f"imports a config file that does not exist: {wanted}.py",
            hint or "it is looked up beside the file, then in the user's and the bundled library",
        )

    def library_names(self, folder: str, *, installed: bool = False) -> dict[str, Path]:
        """Return name -> file of each config under ``folder`` ("datasets", …); the user's own win, then the bundle.

        ``installed``: then those of an installed ``opencompass`` package.
        """
        names: dict[str, Path] = {}
        for root in reversed([*self.roots, *(_installed_configs() if installed else ())]):
            for file in sorted((root / folder).rglob("[!_]*.py")):
                names[file.stem] = file
        return names

    @staticmethod
    def _similar_file(path: Path) -> str | None:
        if path.suffix != ".py" and path.with_suffix(".py").is_file():
            return f"did you mean '{path.with_suffix('.py')}'?"
        if path.parent.is_dir():
            return did_you_mean(path.name, [p.name for p in path.parent.glob("*.py")])
        return None


class _Importer:
    """The ``__import__`` of one config file."""

    def __init__(self, loader: ConfigLoader, file: Path) -> None:
        self.loader = loader
        self.file = file

    def __call__(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        names = fromlist or ()
        if level > 0:
            return self._config(self.loader.relative(self.file, level, name), names)
        if name == CONFIG_PACKAGE or name.startswith(CONFIG_PACKAGE + "."):
            if not names:
                raise ConfigImportError(f"'import {name}' is not understood", f"write 'from {name} import …'")
            return self._config(self.loader.absolute(name), names)
        return stand_in(name, names) or builtins.__import__(name, globals, locals, names, level)

    def _config(self, path: Path, names: Sequence[str]) -> ModuleType:
        file = path / "__init__.py" if path.is_dir() else path
        module = _handed_over(self.loader.execute(file) if file.is_file() else ConfigModule(path.name))
        for name in names:
            if name == "*" or hasattr(module, name):
                continue
            found = _file_or_folder(path / name) if path.is_dir() else None  # from .folder import file
            if found is None or found.is_dir():
                public = [n for n in vars(module) if not n.startswith("_")]
                raise ConfigImportError(f"{path} defines no '{name}'", did_you_mean(name, public))
            setattr(module, name, _handed_over(self.loader.execute(found)))
        return module


def _handed_over(module: ConfigModule) -> ConfigModule:
    """Return a module whose dicts and lists are the importing file's own, to change as it likes."""
    own = ConfigModule("config")
    vars(own).update({name: _own(value) for name, value in vars(module).items() if not name.startswith("__")})
    return own


def _own(value: Any) -> Any:
    if type(value) in (dict, AttributeDict):
        return AttributeDict({key: _own(item) for key, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(map(_own, value))
    return value


def _file_or_folder(path: Path) -> Path | None:
    file = path.parent / f"{path.name}.py"
    if path.name and file.is_file():
        return file.resolve()
    return path.resolve() if path.is_dir() else None


def _installed_configs() -> Iterator[Path]:
    """Yield the config folder of an installed ``opencompass`` package, found without importing it."""
    for finder in sys.meta_path:  # not importlib.util.find_spec: that believes the caller's sys.modules
        spec = finder.find_spec("opencompass", None)
        if spec is not None:
            yield from (Path(folder) / "configs" for folder in spec.submodule_search_locations or ())
            return


def _explained(error: BaseException, path: Path) -> ConfigError:
    """Return what went wrong in a config, with the line of it that was being executed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}:{frames[-1].lineno}" if frames else str(path)
    if isinstance(error, ConfigImportError):
        return ConfigError(f"{where}: {error}", error.hint)
    hint = None
    if isinstance(error, ModuleNotFoundError):
        hint = f"the config needs it: install it beside evalswap ({sys.executable})"
    return ConfigError(f"{where}: {type(error).__name__}: {error}", hint)

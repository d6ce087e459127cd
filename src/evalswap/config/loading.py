"""Executing a user's Python config file, and the config files that it imports.

Config files are ordinary Python with one peculiarity: their relative imports name other config files, and
their ``mmengine``/``opencompass`` imports name classes of tools that need not be installed. Both are handled
by giving the file an ``__import__`` of its own, so nothing here appears in ``sys.modules`` and nothing that
the caller has there changes what a config means.
"""

from __future__ import annotations

import builtins
import importlib.util
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from evalswap.config.names import CONFIG_PACKAGE, StandInModule, is_stand_in
from evalswap.errors import ConfigError, did_you_mean

LIBRARY = Path(__file__).resolve().parent.parent / "library"
LIBRARY_FOLDERS = ("datasets", "models", "summarizers")


class ConfigModule(ModuleType):
    """An executed config file; it lives only in the loader that made it."""


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
        module = self._execute(path.resolve())
        return {name: value for name, value in vars(module).items() if not name.startswith("_")}

    # -- executing -------------------------------------------------------------------------------------

    def _execute(self, path: Path) -> ConfigModule:
        if path in self._modules:
            return self._modules[path]
        if path in self._running:
            chain = " -> ".join(p.name for p in [*self._running[self._running.index(path) :], path])
            raise ConfigError(f"{path}: config files import each other in a circle: {chain}")
        module = ConfigModule(path.stem)
        module.__file__ = str(path)
        importer = _Importer(self, path)
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": importer}
        self._running.append(path)
        try:
            code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
            exec(code, vars(module))
        except ConfigError:
            raise
        except SyntaxError as error:
            raise ConfigError(f"{error.filename}:{error.lineno}: not valid Python: {error.msg}") from error
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(f"{_where(error, path)}: {type(error).__name__}: {error}") from error
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ConfigError(f"{_where(error, path)}: {type(error).__name__}: {error}") from error
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
        parts = name.split(".") if name else []
        wanted = base.joinpath(*parts)
        found = _file_or_folder(wanted)
        if found is not None:
            return found
        return self._in_roots(importing, parts, wanted)

    def absolute(self, importing: Path, name: str) -> Path:
        """Return the file of a dotted name under ``opencompass.configs``."""
        parts = name.split(".")[len(CONFIG_PACKAGE.split(".")) :]
        return self._in_roots(importing, parts, Path(*name.split(".")))

    def _in_roots(self, importing: Path, parts: list[str], wanted: Path) -> Path:
        """Look for ``datasets/...``, ``models/...`` or ``summarizers/...`` in the user's and our folders."""
        head = next((i for i, part in enumerate(parts) if part in LIBRARY_FOLDERS), None)
        hint = "a relative import is looked up beside the file, then in the user's and the bundled library"
        if head is not None:
            tail = parts[head:]
            for root in [importing.parent, *self.roots, *_installed_configs()]:
                found = _file_or_folder(root.joinpath(*tail))
                if found is not None:
                    return found
            hint = did_you_mean(tail[-1], self.library_names(tail[0])) or hint
        raise ConfigError(f"{importing}: imports a config file that does not exist: {wanted}.py", hint)

    def library_names(self, folder: str) -> dict[str, Path]:
        """Return name -> file of each config under ``folder`` ("datasets", …); the user's own win."""
        names: dict[str, Path] = {}
        for root in reversed(self.roots):
            for file in sorted((root / folder).rglob("*.py")):
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
        if level > 0:
            return self._config(self.loader.relative(self.file, level, name), fromlist)
        if name == CONFIG_PACKAGE or name.startswith(CONFIG_PACKAGE + "."):
            return self._config(self.loader.absolute(self.file, name), fromlist)
        if is_stand_in(name):
            return StandInModule(name if fromlist else name.partition(".")[0])
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    def _config(self, path: Path, fromlist: Sequence[str] | None) -> ModuleType:
        if path.is_dir():  # from .folder import file
            package = ConfigModule(path.name)
            for name in fromlist or ():
                found = _file_or_folder(path / name)
                if found is None or found.is_dir():
                    raise ConfigError(f"{self.file}: no config file {name}.py in {path}")
                setattr(package, name, self.loader._execute(found))
            return package
        module = self.loader._execute(path)
        for name in fromlist or ():
            if name != "*" and not hasattr(module, name):
                public = [n for n in vars(module) if not n.startswith("_")]
                raise ConfigError(f"{self.file}: {path} defines no '{name}'", did_you_mean(name, public))
        return module


def _file_or_folder(path: Path) -> Path | None:
    file = path.with_name(path.name + ".py")
    if file.is_file():
        return file.resolve()
    return path.resolve() if path.is_dir() else None


def _installed_configs() -> list[Path]:
    """Return the config folder of an installed ``opencompass`` package, found without importing it."""
    try:
        spec = importlib.util.find_spec("opencompass")
    except (ImportError, ValueError):
        return []
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return [Path(folder) / "configs" for folder in folders]


def _where(error: BaseException, path: Path) -> str:
    """Return file:line of the innermost config line that raised."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == str(path):
            return f"{path}:{frame.lineno}"
    return str(path)

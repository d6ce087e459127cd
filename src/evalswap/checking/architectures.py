"""Does an engine's installed version have a model's architecture? Its own tables are read as text.

Nothing of an engine is imported: that would take longer than the whole check, and a GPU with some. What the
files do not tell is unknown, never guessed.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalswap.engines.base import Launch
from evalswap.engines.flags import given
from evalswap.serving.environments import Interpreter

_ASK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Support:
    """Whether an architecture can be run; ``supported`` is None where that cannot be told from files."""

    supported: bool | None
    text: str
    hint: str | None = None


@dataclass(frozen=True)
class Packages:
    """The Python packages of an engine's environment: name → folder."""

    folders: Mapping[str, Path]

    def read(self, package: str, place: str) -> str | None:
        """Return a file of a package, or None."""
        folder = self.folders.get(package)
        try:
            return (folder / place).read_text(encoding="utf-8", errors="replace") if folder else None
        except OSError:
            return None


def packages_of(found: Interpreter, names: Sequence[str]) -> Packages:
    """Find packages as an engine's interpreter would find them; none of them is imported."""
    if found.source == "current":
        specs = {name: importlib.util.find_spec(name) for name in names}
        places = {name: spec.origin for name, spec in specs.items() if spec is not None}
    elif found.source == "PATH" or not found.packages:
        return Packages({})  # a program
    else:
        places = _ask(found.path, names)
    return Packages({name: Path(place).parent for name, place in places.items() if place})


_FIND = """
import importlib.util, json, sys
specs = {name: importlib.util.find_spec(name) for name in sys.argv[1:]}
print(json.dumps({name: spec.origin for name, spec in specs.items() if spec}))
"""


def _ask(python: Path, names: Sequence[str]) -> dict[str, str | None]:
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    try:
        command = [str(python), "-c", _FIND, *names]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True, env=env)
        return dict(json.loads(answer.stdout.strip().rpartition("\n")[2]))
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def architecture_support(engine: str, launch: Launch, config: Mapping[str, Any], packages: Packages) -> Support:
    """Tell whether an engine has the architecture that a model's config.json names.

    ``packages`` must have found the engine's package and transformers.
    """
    names = [str(name) for name in config.get("architectures") or []]
    shown = ", ".join(names)
    reader = _READERS.get(engine)
    if reader is None:
        return Support(None, f"{shown or 'unnamed'}: {engine} does not tell before it loads the model")
    if not names:
        return Support(
            None, "config.json names no architecture", "add it (architectures=[…]) as the model's source does"
        )
    return reader(names, launch, config, packages)


# -- transformers ------------------------------------------------------------------------------------------------


def _transformers(names: Sequence[str], launch: Launch, config: Mapping[str, Any], packages: Packages) -> Support:
    shown = ", ".join(names)
    own_code = "AutoModelForCausalLM" in (config.get("auto_map") or {})
    if own_code and launch.trust_remote_code:
        return Support(None, f"{shown} comes with code of its own, which is trusted: the config says so")
    known = _in_transformers(names, config, packages)
    if known:
        return Support(True, f"{shown} is in transformers")
    if own_code:
        hint = "if you trust its source: model_kwargs=dict(trust_remote_code=True)"
        return Support(False, f"{shown} comes with code of its own, which is not trusted", hint)
    if known is None:
        return _no_table("transformers", shown)
    newer = "a newer transformers may have it: evalswap engines install transformers --reinstall -- --upgrade"
    return Support(False, f"this transformers has no {shown} that generates text", newer)


def _in_transformers(names: Sequence[str], config: Mapping[str, Any], packages: Packages) -> bool | None:
    """Whether transformers' AutoModelForCausalLM has an architecture; None if its table cannot be read."""
    text = packages.read("transformers", "models/auto/modeling_auto.py")
    table = (
        None
        if text is None
        else _named_values(text, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES").get("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    )
    if table is None:
        return None
    pairs = [node.elts for node in ast.walk(table) if isinstance(node, ast.Tuple) and len(node.elts) == 2]
    types = {key.value for key, _ in pairs if isinstance(key, ast.Constant)}
    classes = {node.value for _, value in pairs for node in ast.walk(value) if isinstance(node, ast.Constant)}
    return config.get("model_type") in types or any(name in classes for name in names)


# -- vLLM --------------------------------------------------------------------------------------------------------

_VLLM_OWN = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")
_VLLM_BY_TRANSFORMERS = ("_TRANSFORMERS_SUPPORTED_MODELS",)
_VLLM_NOT_TEXT = ("_EMBEDDING_MODELS", "_REWARD_MODELS", "_TOKEN_CLASSIFICATION_MODELS",
                  "_SEQUENCE_CLASSIFICATION_MODELS", "_CROSS_ENCODER_MODELS")  # fmt: skip
_VLLM_ONCE = "_PREVIOUSLY_SUPPORTED_MODELS"


def _vllm(names: Sequence[str], launch: Launch, config: Mapping[str, Any], packages: Packages) -> Support:
    shown = ", ".join(names)
    text = packages.read("vllm", "model_executor/models/registry.py")
    tables = _tables(text, r"_[A-Z_]+_MODELS") if text is not None else {}
    if not any(name in tables for name in _VLLM_OWN):
        return _no_table("vLLM", shown)

    def within(*wanted: str) -> bool:
        return any(name in tables.get(table, {}) for table in wanted for name in names)

    if within(*_VLLM_OWN):
        return Support(True, f"{shown} is in vLLM")
    if within(*_VLLM_BY_TRANSFORMERS):
        return Support(True, f"{shown} runs in vLLM by transformers' implementation")
    once = next((tables[_VLLM_ONCE][name] for name in names if name in tables.get(_VLLM_ONCE, {})), None)
    if isinstance(once, ast.Constant) and isinstance(once.value, str):
        hint = "name an interpreter that has that version: --engine-python PATH; or run without -a"
        return Support(False, f"{shown} was in vLLM until {once.value}", hint)
    if within(*_VLLM_NOT_TEXT):
        return Support(False, f"{shown} is in vLLM, but not as a model that generates text", "run another model")
    return _backend("vLLM", names, launch, config, packages)


# -- SGLang ------------------------------------------------------------------------------------------------------

_ENTRY_CLASS = re.compile(r"^EntryClass\b[^=\n]*=\s*(\[[^\]]*\]|\([^)]*\)|\w+)", re.MULTILINE)


def _sglang(names: Sequence[str], launch: Launch, config: Mapping[str, Any], packages: Packages) -> Support:
    shown = ", ".join(names)
    folder = packages.folders.get("sglang")
    files = sorted((folder / "srt" / "models").glob("*.py")) if folder else []
    entries: set[str] = set()
    for file in files:
        for said in _ENTRY_CLASS.findall(file.read_text(encoding="utf-8", errors="replace")):
            entries.update(re.findall(r"\w+", re.sub(r"#.*", "", said)))
    if not entries:
        return _no_table("SGLang", shown)
    if any(name in entries for name in names):
        return Support(True, f"{shown} is in SGLang")
    return _backend("SGLang", names, launch, config, packages)


# -- LMDeploy ----------------------------------------------------------------------------------------------------


def _lmdeploy(names: Sequence[str], launch: Launch, config: Mapping[str, Any], packages: Packages) -> Support:
    shown = ", ".join(names)
    turbomind, pytorch = (
        _dict_keys(packages.read("lmdeploy", place), table)
        for place, table in (
            ("turbomind/supported_models.py", "SUPPORTED_ARCHS"),
            ("pytorch/models/module_map.py", "MODULE_MAP"),
        )
    )
    asked = given(launch.engine_args).get("backend", "turbomind")
    wanted = pytorch if asked == "pytorch" else turbomind
    title = "LMDeploy's PyTorch backend" if asked == "pytorch" else "LMDeploy's TurboMind"
    if not wanted:
        return _no_table(title, shown)
    if any(name in wanted for name in names):
        return Support(True, f"{shown} is in {title}")
    if asked != "pytorch" and any(name in pytorch for name in names):
        return Support(False, f"{title} has no {shown}", "its other backend has: --engine-args backend=pytorch")
    return Support(False, f"{title} has no {shown}", "try -a vllm, or run without -a")


_READERS: dict[str, Callable[[Sequence[str], Launch, Mapping[str, Any], Packages], Support]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "sglang": _sglang,
    "lmdeploy": _lmdeploy,
}


# -- all of them -------------------------------------------------------------------------------------------------


def _backend(
    title: str, names: Sequence[str], launch: Launch, config: Mapping[str, Any], packages: Packages
) -> Support:
    """Judge an architecture that only an engine's backend for transformers' own models might run."""
    shown = ", ".join(names)
    hint = "try it with --limit 1, or run without -a"
    if config.get("auto_map") and launch.trust_remote_code:
        return Support(None, f"{title} has no {shown} of its own; it may run the model's own code", hint)
    known = _in_transformers(names, config, packages)
    if known is False:
        return Support(False, f"neither {title} nor the transformers beside it has {shown}", "run without -a")
    return Support(None, f"{title} has no {shown} of its own; its transformers backend may run it", hint)


def _no_table(title: str, shown: str) -> Support:
    return Support(None, f"{shown}: this version of {title} keeps no list that can be read here")


def _named_values(text: str, pattern: str) -> dict[str, ast.expr]:
    """Return what a module assigns at its top to names of a pattern."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    found: dict[str, ast.expr] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and re.fullmatch(pattern, target.id):
            found[target.id] = value
    return found


def _tables(text: str, pattern: str) -> dict[str, dict[str, ast.expr]]:
    """Return a module's dict literals of a name's pattern: name → {text key → value}."""
    return {
        name: {
            key.value: item
            for key, item in zip(value.keys, value.values, strict=True)
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        }
        for name, value in _named_values(text, pattern).items()
        if isinstance(value, ast.Dict)
    }


def _dict_keys(text: str | None, name: str) -> set[str]:
    """Return the text keys of a dict that a module makes: a literal, ``dict(…)``, and its ``.update({…})``."""
    keys: set[str] = set()
    try:
        module = ast.parse(text or "")
    except (SyntaxError, ValueError, RecursionError):
        return keys
    parts: list[ast.expr] = list(_named_values(text or "", name).values())
    for node in module.body:
        call = node.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
        method = call.func if call else None
        if isinstance(method, ast.Attribute) and method.attr == "update" and isinstance(method.value, ast.Name):
            parts += call.args if call and method.value.id == name else []
    for part in parts:
        if isinstance(part, ast.Dict):
            keys.update(key.value for key in part.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
        elif isinstance(part, ast.Call):
            keys.update(word.arg for word in part.keywords if word.arg)
    return keys

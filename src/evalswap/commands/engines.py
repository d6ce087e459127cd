"""``evalswap engines``: list the engines, install one, or say which Python runs one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from evalswap.commands.arguments import Parser
from evalswap.errors import EXIT_OK

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: Any) -> None:
    engines = commands.add_parser("engines", help="list the engines, or install one")
    engines.set_defaults(function=_engines)
    actions = engines.add_subparsers(dest="action", metavar="[install|python]", parser_class=Parser)
    which = actions.add_parser("python", help="print the interpreter that would run an engine")
    which.set_defaults(function=_engine_python)
    which.add_argument("engine")
    install = actions.add_parser("install", help="make an isolated environment for an engine")
    install.set_defaults(function=_install)
    install.add_argument("engine", help="transformers, vllm, …")
    install.add_argument("--reinstall", action="store_true", help="make it anew")
    install.add_argument("--python", metavar="PATH", help="the Python to build the environment from")
    install.add_argument("--debug", action="store_true", help="show tracebacks")
    install.add_argument("pip_args", nargs="*", metavar="-- PIP_ARG", help="more arguments for pip install")


def _engines(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.reporting.screens import show_engines
    from evalswap.serving.environments import installed_engines

    show_engines(console, installed_engines())
    return EXIT_OK


def _engine_python(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.engines.registry import canonical_name, managed_engine
    from evalswap.serving.environments import find_engine

    print(find_engine(managed_engine(canonical_name(arguments.engine))).path)
    return EXIT_OK


def _install(arguments: argparse.Namespace, console: Console) -> int:
    from evalswap.engines.registry import canonical_name
    from evalswap.serving.environments import install

    def echo(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    engine = canonical_name(arguments.engine)
    found = install(engine, arguments.pip_args, echo, reinstall=arguments.reinstall, python=arguments.python)
    echo(f"{found.engine} {found.version} ({found.device}) is ready: {found.path}")
    return EXIT_OK

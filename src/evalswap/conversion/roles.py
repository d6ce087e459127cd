"""The roles of a config's prompt: its ``meta_template``, or what holds without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from evalswap.errors import ConfigError, did_you_mean
from evalswap.plan import Role

API_ROLES: Mapping[str, Literal["user", "assistant", "system"]] = {
    "HUMAN": "user",
    "BOT": "assistant",
    "SYSTEM": "system",
}
# HuggingFace chat configs map SYSTEM to the user on purpose: many chat templates refuse a system role.
CHAT_ROLES: tuple[Role, ...] = (Role("HUMAN", "user"), Role("SYSTEM", "user"), Role("BOT", "assistant", generate=True))
API_DEFAULT_ROLES: tuple[Role, ...] = (
    Role("HUMAN", "user"),
    Role("SYSTEM", "system"),
    Role("BOT", "assistant", generate=True),
)
META_TEMPLATE_KEYS = ("round", "reserved_roles")
ROLE_KEYS = ("role", "api_role", "begin", "end", "generate")


def parse_roles(meta_template: Mapping[str, Any], abbr: str) -> tuple[Role, ...]:
    """Read a config's ``meta_template``: its round and its reserved roles.

    Raises ConfigError for a key or a role without a counterpart.
    """
    where = f"{abbr}: meta_template"
    _refuse_other_keys(meta_template, META_TEMPLATE_KEYS, where)
    roles = []
    for section in META_TEMPLATE_KEYS:
        items = meta_template.get(section) or ()
        if not isinstance(items, (list, tuple)):
            raise ConfigError(f"{where}.{section}: a list is wanted, not {type(items).__name__}")
        roles += [_role(item, f"{where}.{section}[{i}]") for i, item in enumerate(items)]
    if not meta_template.get("round"):
        raise ConfigError(f"{where} has no round")
    return tuple(roles)


def _role(item: object, where: str) -> Role:
    if not isinstance(item, Mapping) or "role" not in item:
        raise ConfigError(f"{where}: a dict with 'role' is wanted")
    _refuse_other_keys(item, ROLE_KEYS, where)
    name = str(item["role"])
    api_role = str(item.get("api_role") or (name if name in API_ROLES else "HUMAN"))
    if api_role not in API_ROLES:
        near = did_you_mean(api_role.upper(), API_ROLES) or f"known: {', '.join(API_ROLES)}"
        raise ConfigError(f"{where}: unknown api_role '{api_role}'", near)
    for key in ("begin", "end"):
        if not isinstance(item.get(key) or "", str):
            raise ConfigError(f"{where}.{key}: a text is wanted, not {type(item[key]).__name__}")
    return Role(
        name,
        API_ROLES[api_role],
        begin=item.get("begin") or "",
        end=item.get("end") or "",
        generate=bool(item.get("generate")),
    )


def _refuse_other_keys(data: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}.{key}: unknown key", did_you_mean(key, known) or f"known: {', '.join(known)}")

"""Rows to messages: a config's prompt template, filled in, its roles mapped and merged.

The rules are those of existing configs: ``{column}`` is replaced literally and unknown braces stay, the
output column is blank, empty prompts are skipped, neighbours of one role merge with a newline.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evalswap.config.specs import TemplateCfg
from evalswap.errors import ConfigError, did_you_mean
from evalswap.plan import Role
from evalswap.records import Message

Turn = dict[str, str]  # {"role": "HUMAN", "prompt": "..."}
_COLUMN = re.compile(r"\{([^{}]+)\}")


def braced(template: TemplateCfg) -> list[str]:
    """Return what stands in braces in a template's texts: names of columns, if they are right."""
    return [name for turn in (*template.begin, *template.round, *template.end) for name in _COLUMN.findall(turn.prompt)]


def turns(template: TemplateCfg, row: Mapping[str, Any], output_column: str | None) -> list[Turn]:
    """Return a row's turns as the config wrote them, each ``{column}`` of the row filled in.

    What a row says is never taken for a column itself, and the answer never enters the prompt.
    """
    values = {**row, output_column: ""} if output_column is not None else row

    def value(match: re.Match[str]) -> str:
        return str(values[match[1]]) if match[1] in values else match[0]

    result: list[Turn] = []
    for turn in (*template.begin, *template.round, *template.end):
        filled = {"role": turn.role, "prompt": _COLUMN.sub(value, turn.prompt)}
        if turn.fallback_role:
            filled["fallback_role"] = turn.fallback_role
        result.append(filled)
    return result


def to_messages(prompt: Sequence[Turn], roles: Sequence[Role]) -> tuple[Message, ...]:
    """Return chat messages: roles mapped, begin and end texts applied, neighbours merged.

    A last turn of the role that generates is left to the model. Raises ConfigError for an unknown role.
    """
    messages: list[Message] = []
    for turn, role in _until_generation(prompt, roles):
        if not turn["prompt"]:
            continue
        content = f"{role.begin}{turn['prompt']}{role.end}"
        if messages and messages[-1]["role"] == role.api_role:
            messages[-1]["content"] += "\n" + content
        else:
            messages.append({"role": role.api_role, "content": content})
    return tuple(messages)


def to_text(prompt: Sequence[Turn], roles: Sequence[Role]) -> str:
    """Return a base model's prompt: no chat template, ever.

    Without roles it is the turns' text, a line break between them; with roles their begin and end texts join it.
    """
    if not roles:
        return "\n".join(turn["prompt"] for turn in prompt if turn["prompt"])
    pieces = [f"{role.begin}{turn['prompt']}{role.end}" for turn, role in _until_generation(prompt, roles)]
    return "".join(pieces) + next((role.begin for role in roles if role.generate), "")


def _until_generation(prompt: Sequence[Turn], roles: Sequence[Role]) -> list[tuple[Turn, Role]]:
    by_name = {role.name: role for role in roles}
    pairs = []
    for turn in prompt:
        role = by_name.get(turn["role"]) or by_name.get(turn.get("fallback_role", ""))
        if role is None:
            raise ConfigError(
                f"the prompt has a role '{turn['role']}' that the model's meta_template lacks",
                did_you_mean(turn["role"], by_name) or f"known roles: {', '.join(by_name)}",
            )
        pairs.append((turn, role))
    if pairs and pairs[-1][1].generate:
        pairs.pop()
    return pairs

"""Rows to messages: a config's prompt template, filled in, its roles mapped and merged.

The rules are those of existing configs: ``{column}`` is replaced literally and unknown braces stay, the
output column is blank, empty prompts are skipped, neighbours of one role merge with a newline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evalswap.errors import ConfigError
from evalswap.plan import Role
from evalswap.records import Message

Turn = dict[str, str]  # {"role": "HUMAN", "prompt": "..."}


def fill(text: str, row: Mapping[str, Any], input_columns: Sequence[str], output_column: str | None) -> str:
    """Replace each ``{column}`` of a row's input columns; the output column becomes empty."""
    for column in input_columns:
        text = text.replace("{" + column + "}", str(row[column]))
    if output_column is not None:
        text = text.replace("{" + output_column + "}", "")
    return text


def turns(
    template: str | Mapping[str, Any],
    row: Mapping[str, Any],
    input_columns: Sequence[str],
    output_column: str | None,
) -> list[Turn]:
    """Return a row's turns as the config wrote them, filled in.

    Raises ConfigError for a template without a round or with a malformed turn.
    """
    if isinstance(template, str):
        return [{"role": "HUMAN", "prompt": fill(template, row, input_columns, output_column)}]
    if "round" not in template:
        raise ConfigError("infer_cfg.prompt_template.template: a text or a dict with 'round' is wanted")
    result: list[Turn] = []
    for section in ("begin", "round", "end"):
        part = template.get(section) or ()
        for item in [part] if isinstance(part, (str, Mapping)) else part:
            turn = {"role": "HUMAN", "prompt": item} if isinstance(item, str) else dict(item)
            if "role" not in turn:
                raise ConfigError(f"infer_cfg.prompt_template.template.{section}: a turn has no 'role': {turn}")
            prompt = fill(str(turn.get("prompt", "")), row, input_columns, output_column)
            role = {"role": str(turn["role"]), "prompt": prompt}
            if turn.get("fallback_role"):
                role["fallback_role"] = str(turn["fallback_role"])
            result.append(role)
    return result


def to_messages(prompt: Sequence[Turn], roles: Sequence[Role]) -> tuple[Message, ...]:
    """Return chat messages: roles mapped, begin and end texts applied, neighbours merged.

    A last turn of the role that generates is left to the model. Raises ConfigError for an unknown role.
    """
    messages: list[Message] = []
    for turn, role in _until_generation(prompt, roles):
        content = turn["prompt"] or role.prompt
        if not content:
            continue
        content = f"{role.begin}{content}{role.end}"
        if messages and messages[-1]["role"] == role.api_role:
            messages[-1]["content"] += "\n" + content
        else:
            messages.append({"role": role.api_role, "content": content})
    return tuple(messages)


def to_text(prompt: Sequence[Turn], roles: Sequence[Role]) -> str:
    """Return a base model's prompt: the turns joined, wrapped where roles say so, no chat template."""
    wrapped = any(role.begin or role.end for role in roles)
    pieces = [
        f"{role.begin}{turn['prompt'] or role.prompt}{role.end}" for turn, role in _until_generation(prompt, roles)
    ]
    if not wrapped:
        return "\n".join(piece for piece in pieces if piece)
    opening = next((role.begin for role in roles if role.generate), "")
    return "".join(pieces) + opening


def _until_generation(prompt: Sequence[Turn], roles: Sequence[Role]) -> list[tuple[Turn, Role]]:
    by_name = {role.name: role for role in roles}
    pairs = []
    for turn in prompt:
        role = by_name.get(turn["role"]) or by_name.get(turn.get("fallback_role", ""))
        if role is None:
            raise ConfigError(
                f"the prompt has a role '{turn['role']}' that the model's meta_template lacks",
                f"known roles: {', '.join(by_name)}",
            )
        pairs.append((turn, role))
    if pairs and pairs[-1][1].generate:
        pairs.pop()
    return pairs

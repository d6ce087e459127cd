"""Getting to know a server that somebody else runs: who it is, and whether it takes token ids."""

from __future__ import annotations

from typing import Any

from evalswap.errors import EngineError
from evalswap.inference.client import FinalError, HttpClient, TransientError


async def identify(client: HttpClient, model: str) -> dict[str, Any]:
    """Return what ``GET /models`` says of a model: owner ("vllm", …) and root; {} if the server does not tell.

    Part of the content key, so that answers of two different servers on one address are never mixed up.
    Raises EngineError if nothing answers at the address.
    """
    try:
        answer = await client.get("/models")
    except FinalError:
        return {}
    except TransientError as error:
        if error.message.startswith("HTTP"):
            return {}
        raise EngineError(
            f"no server answers at {client.base_url}: {error.message}",
            "is it running? Is the address right (--api-base, openai_api_base)?",
        ) from error
    models = answer.get("data") if isinstance(answer, dict) else None
    for entry in models or []:
        if isinstance(entry, dict) and entry.get("id") == model:
            return {key: entry[key] for key in ("owned_by", "root") if entry.get(key)}
    return {}


async def takes_ids(client: HttpClient, model: str) -> bool:
    """Ask for one token of a one-token prompt: does the server take token ids and give them back?

    Raises EngineError if the server cannot be asked at all.
    """
    body = {"model": model, "prompt": [1], "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    try:
        answer = await client.post("/completions", body)
        return isinstance(answer["choices"][0].get("token_ids"), list)
    except FinalError as error:
        if error.status in (401, 403):
            raise EngineError(f"{client.base_url} refuses the key: {error.message}", "give --api-key") from error
        return False
    except (KeyError, IndexError, TypeError, AttributeError):
        return False
    except TransientError as error:
        raise EngineError(f"{client.base_url} does not answer: {error.message}", "is it running?") from error

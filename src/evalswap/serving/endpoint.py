"""Getting to know a server that somebody else runs: who it is, what it serves, and whether it takes token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from evalswap.engines.openai import BY_IDS
from evalswap.errors import EngineError, did_you_mean
from evalswap.inference.client import FinalError, HttpClient, TransientError

SHOWN_MODELS = 10
LISTING_SECONDS = 30.0  # that a server's list of models may take
TOKEN_SECONDS = 300.0  # that one token may take; the model may have to be loaded first
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds until a server that is busy is asked again what it serves
NO_SUCH_MODEL = (400, 404, 422)  # statuses that servers give to a model's name that they do not know
PROBE = [1, 2, 3]  # any ids; every vocabulary has these
TOLD_BY: Mapping[str, str] = {"stop_reason": "vllm", "matched_stop": "sglang"}  # fields that one server alone sends


@dataclass(frozen=True, slots=True)
class Served:
    """What a server tells of a model."""

    details: dict[str, Any] = field(default_factory=dict)  # owner ("vllm", …) and root, as far as it tells
    others: tuple[str, ...] = ()  # what it serves instead, where the model is not on its list
    server: str | None = None  # what it is ("vllm", …), if all that it serves says the same


@dataclass(frozen=True, slots=True)
class IdSupport:
    """Whether a server takes token ids and gives them back, and which server's fields go with them."""

    taken_as: str | None = None  # one of engines.openai.BY_IDS
    why_not: str = ""


async def identify(client: HttpClient, model: str, pauses: Sequence[float] = PAUSES) -> Served:
    """Return what ``GET /models`` says of a model; nothing if the server does not tell.

    Part of the content key, so that answers of two different servers on one address are never mixed up.
    ``pauses``: seconds until a server that is busy is asked again.

    Raises EngineError if nothing answers at the address, or a busy server does not come to it.
    """
    try:
        answer = await _listing(client, pauses)
    except FinalError:
        return Served()
    except TransientError as error:
        if error.kind == "failed":  # it answers, though not to this
            return Served()
        if error.status is not None:  # not to know would be another key: all would be asked and paid for again
            raise EngineError(
                f"{client.base_url} does not say what it serves: {error.message}", "is it starting, or busy? Try again"
            ) from error
        raise EngineError(
            f"no server answers at {client.base_url}: {error.message}",
            "is it running? Is the address right (--api-base, openai_api_base)?",
        ) from error
    entries = answer.get("data") if isinstance(answer, dict) else None
    known = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    owners = {str(entry["owned_by"]) for entry in known if entry.get("owned_by")}
    server = owners.pop() if len(owners) == 1 else None
    for entry in known:
        if entry.get("id") == model:
            details = {key: entry[key] for key in ("owned_by", "root") if entry.get(key)}
            return Served(details, server=str(entry["owned_by"]) if entry.get("owned_by") else server)
    return Served(others=tuple(str(entry["id"]) for entry in known if entry.get("id")), server=server)


async def _listing(client: HttpClient, pauses: Sequence[float]) -> Any:
    """Return the answer to ``GET /models``, asking again where a server is there, but cannot answer now."""
    for pause in pauses:
        try:
            return await client.get("/models", min(LISTING_SECONDS, client.timeout))
        except TransientError as error:
            if error.kind == "unsent" or (error.kind == "failed" and error.status is None):  # nobody, or no JSON
                raise
            wish = error.retry_after or 0.0
        await asyncio.sleep(max(pause, min(wish, LISTING_SECONDS)))
    return await client.get("/models", min(LISTING_SECONDS, client.timeout))


async def check_name(client: HttpClient, model: str, others: Sequence[str]) -> bool:
    """Ask for one token of a model that is not on its server's list: some servers answer to other names, too.

    Return whether this one did. Raises EngineError, with the list, if this one does not.
    """
    body = {"model": model, "messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
    try:
        await client.post("/chat/completions", body, min(TOKEN_SECONDS, client.timeout))
        return True
    except FinalError as error:
        if error.status == 404 or (error.status in NO_SUCH_MODEL and model in error.message):
            near = did_you_mean(model, others)
            raise EngineError(
                f"{client.base_url} serves no model '{model}': {error.message}",
                f"{near + ' ' if near else ''}it serves: {_shown(others)}",
            ) from error
    except TransientError:
        pass
    return False  # the first real question will tell


def lists_others(model: str, others: Sequence[str], answered: bool) -> str:
    """Say of a server that a model is not on its list, and whether it answered to that name (:func:`check_name`)."""
    listed = f"lists {_shown(others)}, not '{model}'"
    return f"{listed}, and answers to that name all the same" if answered else listed


def _shown(models: Sequence[str]) -> str:
    return ", ".join(models[:SHOWN_MODELS]) + (", …" if len(models) > SHOWN_MODELS else "")


async def takes_ids(client: HttpClient, model: str, server: str | None) -> IdSupport:
    """Ask for one token of a prompt of three: does the server take token ids as they are, and give ids back?

    A server (see :class:`Served`) of which it is not known what its fields mean gets none.

    Raises EngineError if the server cannot be asked at all.
    """
    body = {
        "model": model, "prompt": PROBE, "max_tokens": 1, "temperature": 0,
        "return_token_ids": True, "add_special_tokens": False,
    }  # fmt: skip
    try:
        answer = await client.post("/completions", body, min(TOKEN_SECONDS, client.timeout))
        choice = answer["choices"][0]
        if not isinstance(choice.get("token_ids"), list):
            return IdSupport(why_not="it answers without token ids (return_token_ids is ignored)")
        read = (answer.get("usage") or {}).get("prompt_tokens", len(PROBE))
        if read != len(PROBE) or choice.get("prompt_token_ids", PROBE) not in (PROBE, None):
            return IdSupport(why_not=f"it makes {read} tokens of a prompt of {len(PROBE)}")
    except FinalError as error:
        if error.status in (401, 403):
            raise EngineError(f"{client.base_url} refuses the key: {error.message}", "give --api-key") from error
        return IdSupport(why_not=f"it refuses them ({error.message})")
    except (KeyError, IndexError, TypeError, AttributeError):
        return IdSupport(why_not="its /completions sends no completion")
    except TransientError as error:
        raise EngineError(f"{client.base_url} does not answer: {error.message}", "is it running?") from error
    if server not in BY_IDS:  # a proxy may answer in its own name, but hands on what the server says
        server = next((kind for field, kind in TOLD_BY.items() if field in choice), server)
    if server not in BY_IDS:
        named = f"it says that it is '{server}'" if server else "it does not say what server it is"
        known = " and ".join(BY_IDS)
        return IdSupport(why_not=f"{named}, and only of {known} is it known what the fields beside the ids mean")
    return IdSupport(server)


def one_for_all(supports: Sequence[IdSupport]) -> IdSupport:
    """Return how all of a model's servers take token ids: those that share the questions are asked alike."""
    refusal = next((support for support in supports if support.taken_as is None), None)
    if refusal is not None or len({support.taken_as for support in supports}) == 1:
        return refusal or supports[0]
    kinds = ", ".join(sorted({str(support.taken_as) for support in supports}))
    return IdSupport(why_not=f"the servers are of different kinds ({kinds})")


def is_nearby(base_url: str) -> bool:
    """Whether a server is on this machine or in its private network, so that nobody else sets its limits."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan"))

"""Any server that speaks the OpenAI protocol: by token ids where it is known what its fields mean, else by messages.

https://platform.openai.com/docs/api-reference/chat/create and its completions endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from evalswap.engines import sglang
from evalswap.engines.base import (
    Emulated,
    Engine,
    Exclusive,
    HttpCall,
    MalformedAnswer,
    Native,
    Refused,
    SamplingTable,
)
from evalswap.engines.vllm import Vllm, completion_body, finish_reason, read_completion
from evalswap.plan import EndpointPlan
from evalswap.records import Completion, Request, Sampling

NOT_IN_PROTOCOL = Refused("the OpenAI protocol has no such field")
OWN_TEMPERATURE = "a reasoning model draws at a temperature of 1, and takes no field that says otherwise"
# OpenAI's o series, and GPT from the fifth on but for its chat variants.
REASONING_NAME = re.compile(r"(?:^|/)(?:o\d|gpt-[5-9](?:\.\d+)?(?!-chat))(?:-|$)")


class OpenAICompatible(Engine):
    """A server that somebody else runs, asked by messages."""

    name: ClassVar[str] = "openai"
    # Without ids the model's eos is the server's business, and stop words are cut again by evalswap.
    sampling: ClassVar[SamplingTable] = {
        "max_new_tokens": Native("max_tokens"),
        "min_new_tokens": NOT_IN_PROTOCOL,
        "temperature": Native("temperature"),
        "top_p": Native("top_p"),
        "top_k": NOT_IN_PROTOCOL,
        "min_p": NOT_IN_PROTOCOL,
        "repetition_penalty": NOT_IN_PROTOCOL,
        "presence_penalty": Native("presence_penalty"),
        "frequency_penalty": Native("frequency_penalty"),
        "seed": Native("seed"),
        "stop": Native("stop", first=4),  # "Up to 4 sequences"
        "stop_token_ids": Emulated("the server ends answers at the model's own eos tokens"),
    }

    def __init__(self, endpoint: EndpointPlan) -> None:
        self.endpoint = endpoint

    def call(self, request: Request) -> HttpCall:
        body = {
            "model": self.endpoint.model,
            "messages": list(request.prompt.messages),
            **self.native_sampling(request.sampling),
        }
        return HttpCall("/chat/completions", body | dict(self.endpoint.extra_body))

    def read(self, answer: Any, request: Request) -> Completion:
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            reason = finish_reason(choice["finish_reason"], self.name)
            message = choice["message"]
            content = message.get("content") or ""
            reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise MalformedAnswer(f"the server sent no completion: {str(answer)[:200]}") from error
        if not isinstance(content, str) or not isinstance(reasoning, str):
            raise MalformedAnswer("the answer's text is no text")
        if reasoning:
            content = f"{reasoning}{self.endpoint.think_tag}{content}" if content else reasoning
        return Completion(
            token_ids=None,
            text=content,
            finish_reason=reason,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        )


class ReasoningModel(OpenAICompatible):
    """A model of OpenAI's that reasons before it answers; the reasoning counts as part of the answer's length.

    ``max_tokens`` is "not compatible with o-series models" and ``stop`` "not supported with latest reasoning models"
    (the API reference above); temperature, top_p and the penalties are not among what such models take:
    https://learn.microsoft.com/azure/ai-services/openai/how-to/reasoning
    """

    sampling: ClassVar[SamplingTable] = {
        **OpenAICompatible.sampling,
        "max_new_tokens": Native("max_completion_tokens"),
        "temperature": Refused(OWN_TEMPERATURE, does=1.0),
        "top_p": Refused(OWN_TEMPERATURE),
        "presence_penalty": Refused("a reasoning model takes no penalties"),
        "frequency_penalty": Refused("a reasoning model takes no penalties"),
        "stop": Emulated("a reasoning model takes none, and evalswap cuts the text"),
    }

    @property
    def title(self) -> str:
        return self.endpoint.model


class VllmByIds(OpenAICompatible):
    """Somebody's vLLM server, by token ids."""

    title = "a vLLM server"
    sampling: ClassVar[SamplingTable] = Vllm.sampling
    exclusive: ClassVar[tuple[Exclusive, ...]] = Vllm.exclusive

    def call(self, request: Request) -> HttpCall:
        body = {"model": self.endpoint.model, **completion_body(request, self.native_sampling(request.sampling))}
        return HttpCall("/completions", body | dict(self.endpoint.extra_body))

    def read(self, answer: Any, request: Request) -> Completion:
        return read_completion(answer, self.title, request)


class SglangByIds(OpenAICompatible):
    """Somebody's SGLang server, by token ids. Nobody knows its flags, so it must be taken for the least able one."""

    title = "an SGLang server"
    sampling: ClassVar[SamplingTable] = {
        **sglang.Sglang.sampling,
        "max_new_tokens": Native("max_tokens"),
        "min_new_tokens": Native("min_tokens"),
        "seed": Refused("it obeys a seed only if it was started with --enable-deterministic-inference"),
    }
    exclusive: ClassVar[tuple[Exclusive, ...]] = (
        Exclusive(
            ("top_k", "top_p"),
            "it may draw with its pytorch sampling, which applies both to the whole distribution, transformers top_p "
            "to what top_k left",
        ),
    )

    def native_sampling(self, sampling: Sampling) -> dict[str, Any]:
        return sglang.with_its_own_off(super().native_sampling(sampling), sampling)

    def call(self, request: Request) -> HttpCall:
        assert request.prompt.token_ids is not None
        body = {
            "model": self.endpoint.model,
            "prompt": list(request.prompt.token_ids),
            "return_token_ids": True,
            **self.native_sampling(request.sampling),
            **sglang.ended_by(request.sampling),
        }
        return HttpCall("/completions", body | dict(self.endpoint.extra_body))

    def read(self, answer: Any, request: Request) -> Completion:
        return sglang.read_completion(answer, request, self.title)


# The servers whose fields are known, by what they say that they are ("owned_by"). Others may take token ids, too, but
# where a stop or a penalty means something else there, nobody would see it.
BY_IDS: Mapping[str, type[OpenAICompatible]] = {"vllm": VllmByIds, "sglang": SglangByIds}


def openai_engine(endpoint: EndpointPlan, ids_as: str | None = None) -> OpenAICompatible:
    """Return how a server is spoken to: by token ids as one of ``BY_IDS``, or by messages."""
    kind = BY_IDS[ids_as] if ids_as else ReasoningModel if endpoint.reasoning else OpenAICompatible
    return kind(endpoint)


def is_reasoning_model(model: str) -> bool:
    """Whether a name is that of one of OpenAI's reasoning models, whoever offers it ("openai/o3-mini")."""
    return REASONING_NAME.search(model) is not None

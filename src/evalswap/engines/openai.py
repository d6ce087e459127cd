"""Any server that speaks the OpenAI protocol: by token ids where it takes them, else by messages.

https://platform.openai.com/docs/api-reference/chat/create and its completions endpoint.
"""

from __future__ import annotations

from typing import Any, ClassVar

from evalswap.engines.base import (
    Emulated,
    Engine,
    HttpCall,
    MalformedAnswer,
    Native,
    Refused,
    SamplingTable,
    translate_sampling,
)
from evalswap.engines.vllm import Vllm, finish_reason, read_completion
from evalswap.plan import EndpointPlan
from evalswap.records import Completion, Request, Sampling

NOT_IN_PROTOCOL = Refused("the OpenAI protocol has no such field")
MOST_STOPS = 4  # "Up to 4 sequences", API reference; the rest is cut by evalswap


class OpenAICompatible(Engine):
    """A server that somebody else runs. ``by_ids`` is decided by :func:`probe`."""

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
        "stop": Native("stop"),
        "stop_token_ids": Emulated("the server ends answers at the model's own eos tokens"),
    }
    # Servers that take and return token ids are vLLM or follow it; they take its sampling fields too.
    sampling_by_ids: ClassVar[SamplingTable] = Vllm.sampling

    def __init__(self, endpoint: EndpointPlan, by_ids: bool = False) -> None:
        self.endpoint = endpoint
        self.by_ids = by_ids

    def native_sampling(self, sampling: Sampling) -> dict[str, Any]:
        if self.by_ids:
            return translate_sampling(sampling, self.sampling_by_ids, self.name, Vllm.exclusive)
        return translate_sampling(sampling, self.sampling, self.name)

    def call(self, request: Request) -> HttpCall:
        if self.by_ids:
            call = Vllm().call(request)
            return HttpCall("/completions", {**call.body, "model": self.endpoint.model, **self.endpoint.extra_body})
        body = {
            "model": self.endpoint.model,
            "messages": list(request.prompt.messages),
            **self.native_sampling(request.sampling),
        }
        if "stop" in body:
            body["stop"] = body["stop"][:MOST_STOPS]
        return HttpCall("/chat/completions", body | dict(self.endpoint.extra_body))

    def read(self, answer: Any, request: Request) -> Completion:
        if self.by_ids:
            return read_completion(answer, self.name, request)
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            reason = finish_reason(choice["finish_reason"], self.name)
            message = choice["message"]
            content = message.get("content") or ""
            reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise MalformedAnswer(f"the server sent no completion: {str(answer)[:200]}") from error
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

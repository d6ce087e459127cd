"""A model on servers that somebody else runs."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from evalswap.checkpoint import Checkpoint, find_checkpoint, find_generation_config, looks_like_path
from evalswap.engines.openai import openai_engine
from evalswap.errors import ConversionError, EngineError
from evalswap.inference.asking import Asker
from evalswap.inference.client import HttpClient
from evalswap.inference.endpoints import Endpoint
from evalswap.inference.limits import RateLimits
from evalswap.inference.model_run import ModelRun
from evalswap.inference.retrying import RetryPolicy
from evalswap.inference.window import AdaptiveWindow
from evalswap.plan import MOST_AT_ONE_ADDRESS, THINK_TAG, EndpointPlan, ModelPlan
from evalswap.prompting.tokenizer import Tokenizer
from evalswap.records import EngineIdentity
from evalswap.serving.endpoint import (
    IdSupport,
    Served,
    check_name,
    identify,
    is_nearby,
    lists_others,
    one_for_all,
    takes_ids,
)
from evalswap.serving.launching import context_len_of

FIRST_WINDOW = 64  # requests at once that no server minds; more by trial
PATIENCE = 0.25  # of a request's timeout; a window that takes longer to be answered does not grow
SLOW_SECONDS = 60.0  # that a rate limit costs at least, to be mentioned
SMALL_WINDOW = 32  # that a server of one's own has more room than


class EndpointRun(ModelRun):
    """Asks a model at one or more addresses, with one or more keys."""

    async def _ask(self, stack: AsyncExitStack) -> None:
        plan = self.plan.endpoint
        assert plan is not None
        organizations = itertools.cycle(plan.organizations or (None,))
        clients = [
            await stack.enter_async_context(
                HttpClient(url, key=key, timeout=plan.timeout, organization=next(organizations))
            )
            for url in plan.base_urls
            for key in plan.keys or (None,)
        ]
        one_each = list({client.base_url: client for client in reversed(clients)}.values())[::-1]
        served = await self._known(one_each, plan.model)
        ids_as = await self._ids_taken_as(served, plan.model) if plan.ids_wanted else None
        by_ids = ids_as is not None
        if by_ids:  # nobody knows what the others take
            known = {client.base_url for client in served}
            clients = [client for client in clients if client.base_url in known]
        if self.plan.prompt.template == "base" and not by_ids:
            raise ConversionError(
                f"{self.plan.abbr}: {plan.base_urls[0]} gets no token ids, and its chat endpoint would put a "
                "chat template around a base model's prompt",
                "use a vLLM or an SGLang server, which get token ids, or -a vllm",
            )
        engine = openai_engine(plan, ids_as)
        tokenizer, checkpoint = await self._model_files(by_ids)
        self._describe(plan, next(iter(served.values())), ids_as)
        if checkpoint is None and self.plan.sampling.apply_generation_config:
            self._say_what_is_not_read()
        context_len = None
        if checkpoint is not None and by_ids:
            context_len = context_len_of(self.plan, checkpoint, self.longest_answer)
        pending = await self._prepare(engine, checkpoint, tokenizer, context_len)
        if not pending.open:
            return
        self._hint_at_throttles(plan)
        limits = RateLimits(plan.query_per_second)
        if plan.rpm_verbose:
            self.tally.requests_last_minute = limits.last_minute
        # One of several addresses may have as many in flight as any alone, unless that is the user's own number.
        each = max(plan.max_in_flight // len(plan.base_urls), min(plan.max_in_flight, MOST_AT_ONE_ADDRESS))
        asker = Asker(
            engine,
            [Endpoint(client) for client in clients],
            window=AdaptiveWindow(each, FIRST_WINDOW, patience=PATIENCE * plan.timeout),
            max_in_flight=plan.max_in_flight,
            retry=RetryPolicy(retries=plan.retry),
            limits=limits,
            status_texts=plan.status_code_mappings,
            on_attempt=self._attempted,
            say=self.context.say,
            redact=self.context.redact,
        )
        async with self.context.watch(self.plan.abbr, self.tally):
            self._begin_asking()
            try:
                await self._run_asker(asker, pending)
            finally:
                self._end_asking()

    async def _known(self, clients: list[HttpClient], model: str) -> dict[HttpClient, Served]:
        """Return what each server that answers says of the model. Raises EngineError if none answers."""
        found = await asyncio.gather(*(identify(client, model) for client in clients), return_exceptions=True)
        answers: dict[HttpClient, Served] = {}
        for client, answer in zip(clients, found, strict=True):
            if isinstance(answer, Served):
                answers[client] = answer
                if answer.others:
                    answered = await check_name(client, model, answer.others)
                    self.context.say(f"{client.base_url} {lists_others(model, answer.others, answered)}")
            elif not isinstance(answer, EngineError):
                raise answer
        errors = [answer for answer in found if isinstance(answer, EngineError)]
        if not answers:
            raise errors[0]
        for error in errors:
            self.context.say(f"{self.context.redact(error.message)}; going on with the others")
        return answers

    async def _ids_taken_as(self, served: Mapping[HttpClient, Served], model: str) -> str | None:
        """Return which server's fields go with token ids to all of them; None, and why, if they get messages."""
        supports: list[IdSupport] = []
        for client, answer in served.items():
            supports.append(await takes_ids(client, model, answer.server))
            common = one_for_all(supports)
            if common.taken_as is None:
                self.context.say(
                    self.context.redact(f"{client.base_url} gets no token ids: {common.why_not}; it gets messages")
                )
                return None
        return common.taken_as

    async def _model_files(self, by_ids: bool) -> tuple[Tokenizer | None, Checkpoint | None]:
        """Return what is needed here of the model's files: all for ids, else what the sampling depends on."""
        if by_ids:
            tokenizer = await asyncio.to_thread(self.context.tokenizers.load, self.plan.prompt)
            return tokenizer, find_checkpoint(str(tokenizer.folder))
        path = self.plan.prompt.tokenizer_path
        config = find_generation_config(path) if path and self.plan.sampling.apply_generation_config else None
        return None, None if path is None or config is None else Checkpoint(Path(path), path, {}, config)

    def _say_what_is_not_read(self) -> None:
        """Say that the model's own sampling defaults, which transformers would apply, are not known here."""
        name = self.plan.prompt.tokenizer_path
        text = (
            f"generation_config.json of {name} is not known here: a repetition_penalty in it, for one, is not asked for"
        )
        self.outcome.facts["generation_config"] = text
        elsewhere = name is None or looks_like_path(name)
        self.context.say(text if elsewhere else f"{text}; hf download {name} generation_config.json fetches it")

    def _describe(self, plan: EndpointPlan, served: Served, ids_as: str | None) -> None:
        identity = EngineIdentity(
            "openai",
            str(served.details.get("owned_by", "unknown server")),
            ", ".join(plan.base_urls),
            "remote",
            {"by_ids": ids_as is not None, **served.details},
        )
        facts = {
            "model": plan.model,
            # The whole address: two servers of one host may serve one model in two dtypes, and do not say so.
            "servers": sorted(plan.base_urls),
            "server": served.details,
            "by_ids": ids_as is not None if ids_as in (None, "vllm") else ids_as,  # vLLM's were stored as True
            "extra_body": dict(plan.extra_body),
        }
        # What changes an answer's text; unless it is set, keys stay what they were.
        if plan.think_tag != THINK_TAG and ids_as is None:
            facts["think_tag"] = plan.think_tag
        if plan.status_code_mappings:
            facts["status_code_mappings"] = {str(status): text for status, text in plan.status_code_mappings.items()}
        ids, messages = "token ids, rendered and tokenised by evalswap", "messages; template applied by the server"
        how = ids if ids_as else messages
        self._identify(identity, facts, {"prompts": how})
        self.context.say(f"{', '.join(plan.base_urls)} gets {how}")

    def _hint_at_throttles(self, plan: EndpointPlan) -> None:
        """Say where the config holds a server back that nobody else sets limits for."""
        left = self.tally.total - self.tally.stored
        if not all(map(is_nearby, plan.base_urls)):
            return
        rate = plan.query_per_second
        if rate and left / rate >= SLOW_SECONDS:
            self.context.say(
                f"hint: query_per_second={rate:g} makes {left} questions take at least {left / rate / 60:.0f} minutes, "
                "however fast this server is: set query_per_second=None for one of your own"
            )
        if plan.max_in_flight < min(SMALL_WINDOW, left):
            self.context.say(
                f"hint: at most {plan.max_in_flight} requests are in flight (batch_size, max_workers or "
                "--api-in-flight): a server of your own is likely to answer more at once"
            )


def asking_the_same(runs: Sequence[EndpointRun]) -> list[list[EndpointRun]]:
    """Group the runs that ask the same of the same servers: in turn, all but the first find the answers stored."""
    groups: list[list[EndpointRun]] = []
    for run in runs:
        same = next((group for group in groups if _questions(group[0].plan) == _questions(run.plan)), None)
        if same is None:
            groups.append([run])
        else:
            same.append(run)
    return groups


def _questions(plan: ModelPlan) -> tuple[object, ...]:
    asked = plan.endpoint
    assert asked is not None
    fields = (asked.extra_body, asked.think_tag, asked.status_code_mappings, asked.ids_wanted, asked.reasoning)
    return asked.base_urls, asked.model, plan.prompt, plan.sampling, *fields

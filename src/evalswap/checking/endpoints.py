"""Asking servers that somebody else runs: who they are, what they serve, whether they take token ids."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from evalswap.errors import EngineError
from evalswap.inference.client import HttpClient
from evalswap.plan import EndpointPlan
from evalswap.serving.endpoint import IdSupport, Served, check_name, identify, lists_others, one_for_all, takes_ids

SECONDS = 2.0  # that a server has for each answer: a check is quick


@dataclass
class EndpointReport:
    """What the servers of one model said."""

    model: str
    answering: list[str] = field(default_factory=list)  # addresses that list the model
    owner: str | None = None  # "vllm", …
    ids_as: str | None = None  # whose fields go with token ids, if it gets them
    serves: list[str] = field(default_factory=list)  # what they list instead of the model
    listing_others: list[tuple[str, str]] = field(default_factory=list)  # address, what is to be said of it
    by_ids: bool = False
    why_no_ids: str | None = None
    problems: list[tuple[str, str, str | None]] = field(default_factory=list)  # address, what is wrong, what to do


async def ask_endpoint(plan: EndpointPlan) -> EndpointReport:
    """Ask all servers of a plan at once. One token of an answer is the most that any of them makes."""
    report = EndpointReport(plan.model)
    answers = await asyncio.gather(*(_ask(plan, url) for url in plan.base_urls))
    supports = []
    for url, (served, answered, support, problem) in zip(plan.base_urls, answers, strict=True):
        if problem is not None:
            report.problems.append((url, problem.message, problem.hint))
        if served is not None:
            report.serves += [name for name in served.others if name not in report.serves]
        if served is not None and problem is None:
            if served.others:
                report.listing_others.append((url, lists_others(plan.model, served.others, answered)))
            else:
                report.answering.append(url)
            report.owner = report.owner or served.details.get("owned_by")
            supports.append(support)
    if plan.ids_wanted and supports:
        common = one_for_all(supports)
        report.ids_as, report.by_ids = common.taken_as, common.taken_as is not None
        report.why_no_ids = common.why_not or None
    return report


async def _ask(plan: EndpointPlan, url: str) -> tuple[Served | None, bool, IdSupport, EngineError | None]:
    """Return what one server said, as far as it came, whether it answered to a strange name, and what is wrong."""
    served, answered, support = None, False, IdSupport()
    async with HttpClient(
        url,
        key=next(iter(plan.keys), None),
        timeout=SECONDS,
        organization=next(iter(plan.organizations), None),
    ) as client:
        try:
            served = await identify(client, plan.model, pauses=())
            if served.others:
                answered = await check_name(client, plan.model, served.others)
            if plan.ids_wanted:
                support = await takes_ids(client, plan.model, served.server)
        except EngineError as error:
            return served, answered, support, error
    return served, answered, support, None

"""From a dataset's rows to requests, a few hundred rows at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from evalswap.config.specs import DatasetSpec
from evalswap.errors import ConfigError, did_you_mean
from evalswap.plan import PromptPlan
from evalswap.prompting.messages import Turn, braced, to_messages, to_text, turns
from evalswap.prompting.tokenizer import Tokenizer
from evalswap.records import Message, Prompt, Sampling

CHUNK = 256  # rows rendered and tokenised together: about 20 ms
API_MARGIN = 100  # tokens that API configs leave free for the server's template


@dataclass(frozen=True, slots=True)
class Prepared:
    """One row, ready to be asked, or with the reason why it cannot be."""

    row: int
    data: Mapping[str, Any]
    turns: list[Turn]
    prompt: Prompt
    sampling: Sampling
    problem: str | None = None
    shortened: bool = False  # less room than max_new_tokens was left for the answer


class RequestMaker:
    """Makes the prompts of one model on one dataset."""

    def __init__(
        self,
        plan: PromptPlan,
        dataset: DatasetSpec,
        sampling: Sampling,
        tokenizer: Tokenizer | None,
        context_len: int | None,
        load_tokenizer: Callable[[PromptPlan], Tokenizer],
    ) -> None:
        """Without a tokenizer, prompts are messages for a server that applies the template itself.

        ``context_len`` is the longest prompt and answer together, in tokens. ``load_tokenizer`` is asked for one where
        messages may be too long for the server.
        """
        self.plan = plan
        self.dataset = dataset
        self.sampling = sampling
        self.tokenizer = tokenizer
        self.context_len = context_len
        self._load_tokenizer = load_tokenizer
        self._counter: Tokenizer | None = None
        self._made_some = False  # by ids; else it is the template that is wrong, not a row

    def prepare(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Prepared]]:
        """Yield the rows in order, in chunks. Raises ConfigError for a template that does not fit them."""
        numbered = enumerate(rows)
        while chunk := list(islice(numbered, CHUNK)):
            yield self._prepare_chunk(chunk)

    def _prepare_chunk(self, chunk: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Prepared]:
        reader, template = self.dataset.reader_cfg, self.dataset.infer_cfg.prompt_template.template
        filled, named = [], braced(template)
        for number, row in chunk:
            missing = [column for column in reader.input_columns if column not in row]
            if missing:
                raise ConfigError(
                    f"{self.dataset.abbr}: row {number} has no column '{missing[0]}'",
                    f"reader_cfg.input_columns names it; the row has {', '.join(row)}",
                )
            if reader.input_columns and row.keys().isdisjoint(named):
                near = (did_you_mean(name, map(str, row)) for name in named)
                raise ConfigError(
                    f"{self.dataset.abbr}: the prompt has no column of row {number}, so all rows would ask the same",
                    next(filter(None, near), f"write {{{reader.input_columns[0]}}} where it belongs"),
                )
            filled.append(turns(template, row, reader.output_column))
        if self.tokenizer is None:
            made = [self._by_messages(to_messages(prompt, self.plan.roles)) for prompt in filled]
        else:
            made = self._by_ids(filled, self.tokenizer)
        return [
            Prepared(number, row, turn, *parts) for (number, row), turn, parts in zip(chunk, filled, made, strict=True)
        ]

    def _by_ids(
        self, filled: Sequence[list[Turn]], tokenizer: Tokenizer
    ) -> list[tuple[Prompt, Sampling, str | None, bool]]:
        room = self.plan.max_seq_len or self.context_len
        if room is not None and self.plan.overlong == "middle":
            room = max(2, room - self.sampling.max_new_tokens)
        if self.context_len is not None:
            room = min(room or self.context_len, self.context_len - 1)
        if self.plan.template == "chat":
            conversations = [to_messages(prompt, self.plan.roles) for prompt in filled]
            try:
                prompts = tokenizer.prompts(conversations, self.plan, room)
            except ConfigError as error:
                return self._each_by_ids(conversations, tokenizer, room, error)
        else:
            prompts = tokenizer.text_prompts([to_text(prompt, self.plan.roles) for prompt in filled], self.plan, room)
        self._made_some = True
        return [self._with_room(prompt) for prompt in prompts]

    def _each_by_ids(
        self, conversations: Sequence[tuple[Message, ...]], tokenizer: Tokenizer, room: int | None, error: ConfigError
    ) -> list[tuple[Prompt, Sampling, str | None, bool]]:
        """Make prompts one by one, where the chat template refuses some. Raises ``error`` if it refuses all."""
        made: list[tuple[Prompt, Sampling, str | None, bool]] = []
        for messages in conversations:
            try:
                (prompt,) = tokenizer.prompts([messages], self.plan, room)
                made.append(self._with_room(prompt))
                self._made_some = True
            except ConfigError as problem:
                made.append((Prompt(messages, None, ()), self.sampling, problem.message, False))
        if not self._made_some:
            raise error
        return made

    def _with_room(self, prompt: Prompt) -> tuple[Prompt, Sampling, str | None, bool]:
        assert prompt.token_ids is not None
        if not prompt.token_ids:
            return prompt, self.sampling, "the prompt is empty", False
        if self.context_len is None:
            return prompt, self.sampling, None, False
        left = self.context_len - len(prompt.token_ids)
        if left >= self.sampling.max_new_tokens:
            return prompt, self.sampling, None, False
        shorter = dataclasses.replace(
            self.sampling, max_new_tokens=left, min_new_tokens=min(left, self.sampling.min_new_tokens)
        )
        return prompt, shorter, None, True

    def _by_messages(self, messages: tuple[dict[str, str], ...]) -> tuple[Prompt, Sampling, str | None, bool]:
        prompt = Prompt(messages, text=None, token_ids=None)
        if not messages:
            return prompt, self.sampling, "the prompt is empty", False
        limit = self.plan.max_seq_len
        if limit is None:
            return prompt, self.sampling, None, False
        room = limit - API_MARGIN - self.sampling.max_new_tokens
        # A token is at least one byte long, so most prompts are known to fit without counting tokens.
        if sum(len(message["content"].encode()) for message in messages) <= room:
            return prompt, self.sampling, None, False
        if self.plan.tokenizer_path is None:
            return prompt, self.sampling, None, False  # not countable here: the server decides
        if self._counter is None:
            self._counter = self._load_tokenizer(self.plan)
        tokens = sum(self._counter.count(message["content"]) for message in messages)
        left = limit - API_MARGIN - tokens
        if left <= 0:
            problem = f"the prompt has {tokens} tokens, max_seq_len={limit} leaves no room for an answer"
            return prompt, self.sampling, problem, False
        if left >= self.sampling.max_new_tokens:
            return prompt, self.sampling, None, False
        return prompt, dataclasses.replace(self.sampling, max_new_tokens=left), None, True

"""The translation table of one spec, and the rows that several kinds of spec share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from evalswap.config.specs import ModelSpec
from evalswap.conversion.options import EngineOptions
from evalswap.engines.registry import REMOTE, flag_names, managed_engine
from evalswap.errors import ConfigError, ConversionError
from evalswap.prompting.sampling import DRAWN_FIELDS, EFFECTLESS_FIELDS, UNTRANSLATABLE, check_fields
from evalswap.records import TranslationRow

# What becomes of a field that no engine needs to be told about: evalswap does it, or it has no bearing.
SETTLED: Mapping[str, tuple[str, str]] = {
    "abbr": ("names the results", ""),
    "summarizer_abbr": ("names the column of the summary", ""),
    "pred_postprocessor": ("evalswap, on each answer", ""),
    "tokenizer_path": ("evalswap's tokenizer", ""),
    "meta_template": ("roles, mapped by evalswap", ""),
    "chat_template_kwargs": ("the chat template, rendered by evalswap", ""),
    "max_seq_len": ("evalswap", "overlong prompts by token ids are cut, and counted; messages are not cut"),
    "mode": ("evalswap", "overlong prompts are cut in the middle"),
    "drop_middle": ("evalswap", "overlong prompts are cut in the middle"),
    "batch_size": ("", "no batches: requests go out one by one, many in flight"),
    "pad_token_id": ("", "nothing is padded"),
    "peft_path": ("", "the server must have loaded the adapter"),
    "peft_kwargs": ("", "the server must have loaded the adapter"),
    "run_cfg": ("", "the server was started with its own devices"),
    "retry": ("evalswap", "a request that fails is sent again"),
    "timeout": ("evalswap", "seconds until a request counts as failed"),
    "org": ('"OpenAI-Organization"', "the first of them"),
    "rpm_verbose": ("evalswap", "the progress line shows the requests of the last minute"),
    "verbose": ("", "the run's log has every failure"),
    "think_tag": ("put between reasoning and answer", ""),
    "extra_body": ("merged into each request", "what it says wins over the sampling block"),
    "openai_extra_kwargs": ("merged into each request", "what it says wins over the sampling block"),
    "status_code_mappings": ("evalswap", "these answers count as text"),
    "key": ('"Authorization"', "EMPTY sends none; never shown or stored"),
    "openai_proxy_url": ("the environment's proxy", ""),
    "batch_padding": ("", "no batches: requests go out one by one, many in flight"),
    "logprobs": ("", "not used by any score"),
    "top_logprobs": ("", "not used by any score"),
}
STOP_WORDS_TARGET = "stop ids where a word is one special token, else stop texts"
# What of --engine-args is no flag of the engine: with which engines, and what evalswap does with it.
EVALSWAP_ARGS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "start_mode": (("vllm", "sglang"), "evalswap: how much is made ready at the start"),
    "model": (("llamacpp",), "evalswap: which GGUF file"),
}

# Flags without which evalswap would not find its own server, or would not be let in.
ITS_OWN_FLAGS = frozenset(
    {"port", "server_port", "uds", "root_path", "api_prefix", "served_model_name", "api_key", "api_keys",
     "api_key_file", "ssl", "ssl_keyfile", "ssl_certfile", "ssl_key_file", "ssl_cert_file"}
)  # fmt: skip


class Translation:
    """Collects the translation of one spec, and sees to it that no field is left out."""

    def __init__(self, spec: ModelSpec, engine: str) -> None:
        self.spec = spec
        self.abbr = spec.abbr
        self.engine = engine
        self.flags = flag_names(engine)
        self._rows: list[TranslationRow] = []

    def add(self, source: str, target: str, note: str = "") -> None:
        self._rows.append(TranslationRow(source, target, note))

    def flag(self, field: str, value: object, note: str = "", source: str | None = None) -> None:
        """Add a field that the engine is told with a flag of its own."""
        flag = self.flags.get(field)
        target = "" if flag is None else f"{flag}{value}" if flag.endswith("=") else f"{flag} {value}"
        self.add(source or field, target, note)

    def adapter(self, field: str, path: str) -> None:
        """Add the adapter that the engine loads beside the model. Raises ConversionError if it cannot."""
        if "peft_path" not in self.flags:
            raise ConversionError(
                f"{self.abbr}: {field}: {self.engine} cannot be told to load an adapter",
                "merge the adapter into the checkpoint (peft's merge_and_unload) and give the merged folder, "
                "or choose another engine",
            )
        self.flag("peft_path", path, source=field)

    def settle(self, field: str) -> None:
        """Add a field that no engine needs to be told about."""
        if field not in SETTLED:
            raise ConversionError(f"{self.abbr}: {field} means nothing to {self.engine}", "remove it")
        self.add(field, *SETTLED[field])

    def refuse(self, key: str, why: str, what_to_do: str) -> None:
        """Raise ConversionError if the spec sets ``key``."""
        if getattr(self.spec, key, None):
            raise ConversionError(f"{self.abbr}: {key}: {why}", what_to_do)

    def stripped_path(self, path: str) -> str:
        stripped = path.strip()
        if not stripped:
            raise ConfigError(f"{self.abbr}: path: it is empty")
        if stripped != path:
            self.add(f"path={path!r}", repr(stripped), "white space around it removed")
        return stripped

    def rows(self) -> tuple[TranslationRow, ...]:
        """Return the table, complete: a field that the config sets and nobody spoke of gets its row here."""
        named = {re.split(r"\W", row.source, maxsplit=1)[0] for row in self._rows}
        for key, info in type(self.spec).model_fields.items():
            set_to_something = getattr(self.spec, key) != info.get_default(call_default_factory=True)
            if key in self.spec.model_fields_set and set_to_something and key not in {"type", *named}:
                self.settle(key)
        return tuple(self._rows)


def server_generation_kwargs(kwargs: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """Return HuggingFace's fields for a server, where the temperature alone decides and no default is HuggingFace's."""
    said = {key: value for key, value in kwargs.items() if value is not None}
    return {"top_k": 0, "top_p": 1.0, **said, "do_sample": temperature > 0, "temperature": temperature}


def take_dtype(kwargs: dict[str, Any], table: Translation, where: str = "model_kwargs") -> str:
    """Take the dtype out of a config's model_kwargs, or of what they are called there."""
    given = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
    value = next((value for value in given.values() if value is not None), "auto")
    name = dtype_name(value, f"{table.abbr}: {where}.{next(iter(given), '')}")
    for source in [f"{where}.{key}" for key in given] or ["dtype"]:
        table.flag("dtype", name, "the checkpoint's dtype" if name == "auto" else "", source=source)
    return name


def dtype_name(value: object, where: str) -> str:
    """Return a dtype's own name. Raises ConfigError for one that evaluations do not run in."""
    name = str(value).removeprefix("torch.")
    name = {"float": "float32", "half": "float16"}.get(name, name)
    if name not in ("auto", "float32", "float16", "bfloat16"):
        raise ConfigError(f"{where}: unknown dtype '{name}'", "use auto, float32, bfloat16 or float16")
    return name


def take_revision(kwargs: dict[str, Any], table: Translation, where: str = "model_kwargs") -> str | None:
    """Take the revision of the files out of a config's model_kwargs."""
    if "revision" not in kwargs:
        return None
    revision = kwargs.pop("revision")
    table.add(f"{where}.revision={revision}", "the revision of the files")
    return str(revision) if revision else None


def trusts(kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("trust_remote_code", False))


def take_trust_remote_code(kwargs: dict[str, Any], table: Translation, where: str = "model_kwargs") -> bool:
    """Take trust_remote_code out of a config's model_kwargs."""
    if "trust_remote_code" not in kwargs:
        return False
    trust = bool(kwargs.pop("trust_remote_code"))
    note = "the checkpoint's own code is run because the config asks for it" if trust else ""
    table.flag("trust_remote_code", trust, note, source=f"{where}.trust_remote_code")
    return trust


def context_row(spec: ModelSpec, table: Translation, engine_args: Mapping[str, Any]) -> None:
    """Add the row of the longest prompt and answer. Raises ConversionError for a flag that leaves no room."""
    engine = None if table.engine == REMOTE else managed_engine(table.engine)
    asked = engine.asked_context(engine_args) if engine is not None else None
    room = spec.max_seq_len or (engine.prompt_room if engine is not None and asked is None else None)
    limit = f"{asked}, as --engine-args say" if asked else "" if spec.max_seq_len else "the model's own limit"
    context = f"{room} + max_out_len" + (f", within {limit}" if limit else "") if room else limit
    table.flag("max_seq_len", context, "overlong prompts are cut by evalswap, and counted")


def device_rows(spec: ModelSpec, gpus: int, table: Translation, parts: int = 1) -> None:
    """Add the rows of ``run_cfg``. ``parts``: data-parallel copies × pipeline stages that share the GPUs."""
    note = f"each of {parts} data- and pipeline-parallel parts has {gpus // parts} of {gpus} GPUs" if parts > 1 else ""
    table.flag("num_gpus", gpus // parts, note, source="run_cfg.num_gpus")
    num_procs_row(spec, table)


def num_procs_row(spec: ModelSpec, table: Translation) -> None:
    if spec.run_cfg.num_procs != 1:
        table.add("run_cfg.num_procs", "", "processes are the engine's own")


def engine_arg_rows(options: EngineOptions, table: Translation) -> None:
    """Add the rows of ``--engine-args``. Raises ConversionError for flags that evalswap must set itself."""
    started = table.engine != "openai"
    for key, value in options.engine_args.items():
        name = key.lstrip("-").replace("-", "_")
        if started and name in ITS_OWN_FLAGS:
            raise ConversionError(
                f"--engine-args {key}: evalswap sets up how it speaks to its own server",
                "leave it out; evalswap serve --port N listens on a port of your choice, and a server that you started "
                "yourself is asked with -a openai --api-base URL",
            )
        engines, meaning = EVALSWAP_ARGS.get(name, ((), ""))
        target = (meaning if table.engine in engines else "the engine's flag, verbatim") if started else ""
        table.add(f"--engine-args {key}={value}", target, "" if started else "evalswap does not start this server")


def length_rows(spec: ModelSpec, table: Translation, first: str | None = None) -> None:
    """Add the rows of an answer's length. ``first`` names what comes before the spec's own ``max_out_len``."""
    if spec.max_out_len is not None:
        target, note = ("", f"{first} comes first") if first else ("max_new_tokens", "the dataset's own value wins")
        table.add(f"max_out_len={spec.max_out_len}", target, note)
    if spec.min_out_len is not None:
        table.add(f"min_out_len={spec.min_out_len}", "min_new_tokens", "the dataset's own value wins")


def stop_words_row(words: Sequence[str], table: Translation) -> None:
    if words:
        table.add(f"stop_words={words}", STOP_WORDS_TARGET, "cut once more by evalswap")


def sampling_rows(spec: ModelSpec, table: Translation, temperature: float | None = None) -> None:
    """Add the rows of a spec whose ``generation_kwargs`` are HuggingFace's.

    Of a server ``temperature`` is the one that decides, 0 for greedy; what decides it has its rows already.

    Raises ConfigError for an unknown field, ConversionError for one that no engine's sampling block has.
    """
    length_rows(spec, table)
    stop_words_row(getattr(spec, "stop_words", []), table)
    kwargs = getattr(spec, "generation_kwargs", {})
    decided = {} if temperature is None else {"do_sample": temperature > 0}
    try:
        check_fields({**kwargs, **decided})
    except ConfigError as error:
        raise type(error)(f"{spec.abbr}: {error.message}", error.hint) from None
    if temperature is None:
        greedy, why = not kwargs.get("do_sample"), "greedy, because do_sample is not set"
    else:
        greedy, why = temperature == 0, "greedy, because the temperature is 0"
    for key, value in kwargs.items():
        if temperature is not None and key in ("do_sample", "temperature"):
            continue
        if key in EFFECTLESS_FIELDS:
            target, note = "", "no token depends on it"
        elif greedy and key in (*DRAWN_FIELDS, "seed"):
            target, note = "", why
        elif key in UNTRANSLATABLE:
            target, note = "", "as good as unset"
        else:
            target, note = "the sampling block", ""
        table.add(f"generation_kwargs.{key}={value!r}", target, note)

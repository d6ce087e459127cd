"""Prompts as token ids, with the real small model's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from evalswap.config.specs import DatasetSpec
from evalswap.errors import ConfigError, ModelFilesError
from evalswap.plan import PromptPlan, Role
from evalswap.prompting.requests import RequestMaker
from evalswap.prompting.tokenizer import Tokenizer, cut
from evalswap.prompting.transformers_tokenizer import TransformersTokenizer
from evalswap.records import Sampling

pytestmark = pytest.mark.e2e

CHAT = PromptPlan("chat", (Role("HUMAN", "user"), Role("BOT", "assistant", generate=True)), None)
BASE = PromptPlan("base", CHAT.roles, None)


@pytest.fixture(scope="module")
def tokenizer(demo_model: Path) -> Tokenizer:
    return load(demo_model)


def load(folder: Path) -> Tokenizer:
    return Tokenizer(folder, TransformersTokenizer(folder, {}))


def unwanted(plan: PromptPlan) -> Tokenizer:
    raise AssertionError("there is a tokenizer already")


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def test_a_chat_prompt_is_the_template_tokenised_without_extras(tokenizer: Tokenizer) -> None:
    (prompt,) = tokenizer.prompts([user("Hi")], CHAT, None)
    assert prompt.text is not None
    assert prompt.text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.token_ids is not None
    assert prompt.token_ids[0] == 1
    assert prompt.token_ids[1] != 1  # exactly one beginning-of-sequence token
    assert tokenizer.decode(prompt.token_ids, skip_special_tokens=False) == prompt.text


def test_two_bos_tokens_are_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="two <\\|im_start\\|> tokens"):
        tokenizer.text_prompts(["<|im_start|><|im_start|>once upon a time"], BASE, None)


def test_a_base_prompt_is_the_text_alone(tokenizer: Tokenizer) -> None:
    (prompt,) = tokenizer.text_prompts(["2 + 2 ="], BASE, None)
    assert prompt.text == "2 + 2 ="
    assert tokenizer.decode(prompt.token_ids or (), skip_special_tokens=False) == "2 + 2 ="


def test_stop_words_that_are_special_tokens_are_known_as_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.single_token_words(["<|im_end|>", "Question:"]) == {"<|im_end|>": 2}


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelFilesError, match="no usable tokenizer"):
        load(tmp_path)


def test_a_chat_model_without_a_template(demo_model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(demo_model / name, tmp_path / name)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None}))
    with pytest.raises(ConfigError, match="no chat template"):
        load(tmp_path).prompts([user("Hi")], CHAT, None)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 50))
def test_cutting_keeps_the_ends_that_the_mode_names(ids: list[int], room: int) -> None:
    room = min(room, len(ids))
    assert cut(ids, room, "left") == tuple(ids[-room:])
    middle = cut(ids, room, "middle")
    assert len(middle) <= room
    assert middle[: room // 2] == tuple(ids[: room // 2])
    if room >= 2:
        assert middle[-(room // 2) :] == tuple(ids[-(room // 2) :])


@pytest.mark.parametrize("added", [None, "<|im_start|> $A", "<|im_start|> $A <|im_end|>"])
def test_a_base_prompt_is_cut_as_transformers_cuts_it(demo_model: Path, tmp_path: Path, added: str | None) -> None:
    """It cuts the text and adds BOS and EOS afterwards, so they stay; SmolLM2's own tokenizer adds none."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(demo_model / name, tmp_path / name)
    if added:
        backend = BackendTokenizer.from_file(str(tmp_path / "tokenizer.json"))
        ids = [("<|im_start|>", 1), ("<|im_end|>", 2)]
        backend.post_processor = TemplateProcessing(single=added, special_tokens=ids)
        backend.save(str(tmp_path / "tokenizer.json"))
    reference = AutoTokenizer.from_pretrained(tmp_path, truncation_side="left")
    text = "How many? " * 6 + "<|im_start|>The end."
    whole, made = len(reference(text)["input_ids"]), load(tmp_path)
    for room in range(3, whole + 2):
        (short, prompt) = made.text_prompts(["2", text], BASE, room)
        assert list(prompt.token_ids or ()) == reference(text, truncation=True, max_length=room)["input_ids"]
        assert prompt.truncated_from == (whole if room < whole else None)
        assert short.truncated_from is None


def dataset() -> DatasetSpec:
    return DatasetSpec.model_validate(
        {
            "type": "GSM8KDataset",
            "abbr": "toy",
            "reader_cfg": {"input_columns": ["question"], "output_column": "answer"},
            "infer_cfg": {"prompt_template": {"template": {"round": [{"role": "HUMAN", "prompt": "{question}"}]}}},
            "eval_cfg": {"evaluator": {"type": "Gsm8kEvaluator"}},
        }
    )


def test_a_question_longer_than_max_seq_len_is_cut_on_the_left_and_counted(tokenizer: Tokenizer) -> None:
    plan = PromptPlan("chat", CHAT.roles, None, max_seq_len=64)
    maker = RequestMaker(plan, dataset(), Sampling(max_new_tokens=16), tokenizer, 80, unwanted)
    rows = [{"question": "short?", "answer": "1"}, {"question": "long " * 500 + "end?", "answer": "2"}]
    ((short, long),) = maker.prepare(rows)
    assert short.prompt.truncated_from is None
    assert long.prompt.token_ids is not None
    assert len(long.prompt.token_ids) == 64
    assert long.prompt.truncated_from is not None
    assert long.prompt.truncated_from > 500
    tail = tokenizer.decode(long.prompt.token_ids, skip_special_tokens=False)
    assert tail.endswith("end?<|im_end|>\n<|im_start|>assistant\n")


def test_an_answer_never_leaves_the_context(tokenizer: Tokenizer) -> None:
    maker = RequestMaker(CHAT, dataset(), Sampling(max_new_tokens=100), tokenizer, 120, unwanted)
    ((row,),) = maker.prepare([{"question": "word " * 60, "answer": "1"}])
    assert row.prompt.token_ids is not None
    assert len(row.prompt.token_ids) + row.sampling.max_new_tokens == 120
    assert row.shortened


def test_a_row_without_the_column_says_which(tokenizer: Tokenizer) -> None:
    maker = RequestMaker(CHAT, dataset(), Sampling(max_new_tokens=1), tokenizer, None, unwanted)
    with pytest.raises(ConfigError, match="row 0 has no column 'question'"):
        list(maker.prepare([{"frage": "?", "answer": "1"}]))

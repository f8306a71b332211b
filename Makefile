# Every target builds the environment it needs: .venv, made once and kept up to date.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/vivit-bench
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint figure-3 figure-s4a figure-s5a table-s1 benchmarks clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet "torch>=2.6" "torchvision>=0.21"
	$(VENV)/bin/pip install --quiet --editable ".[dev,peers]"
	touch $@

# A real critical-batch search and a real spectrum, on a laptop's CPU in minutes.
demo: $(STAMP)
	$(RUN) critical-batch search cifar10_3c3d --curvature exact --memory-limit 128MiB --results-dir results/demo
	$(RUN) critical-batch search cifar10_3c3d --quantity gradient --memory-limit 128MiB --results-dir results/demo
	$(RUN) spectrum sweep mnist_2c2d --data mnist5k --results-dir results/demo
	$(RUN) spectrum plot mnist_2c2d --results-dir results/demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Figure 3: bootstrap damping on the noisy quadratic.
figure-3: $(STAMP)
	$(RUN) quadratic run
	$(RUN) quadratic plot
	$(RUN) quadratic table

# Figures S.4a and S.5a: spectra under the approximations, on the real data sets.
figure-s4a: $(STAMP)
	$(RUN) spectrum sweep fmnist_2c2d
	$(RUN) spectrum plot fmnist_2c2d
	$(RUN) spectrum sweep cifar10_3c3d
	$(RUN) spectrum plot cifar10_3c3d

figure-s5a: $(STAMP)
	$(RUN) spectrum sweep cifar100_allcnnc
	$(RUN) spectrum plot cifar100_allcnnc

# Table S.1 a, b and c on this machine's CPU (hours).
table-s1: $(STAMP)
	$(RUN) critical-batch sweep --table a --table b --table c
	$(RUN) critical-batch table --paper

# Time and memory against other implementations, interleaved (an hour).
benchmarks: $(STAMP)
	sh scripts/compare_engines.sh

clean:
	rm -rf $(VENV) build *.egg-info

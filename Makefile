# Every target builds the environment it needs: .venv, made once and kept up to date.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/vivit-bench
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-thorough test-models test-oldest test-cuda test-slurm lint figure-3 figure-s4a figure-s5a table-s1 table-s1d benchmarks clean
.PHONY: figure-2 figure-s6 figure-s7 figure-s8 figure-s9 figure-s10 noise-demo
.PHONY: drop-columns reproduce reproduce-paper

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet "torch>=2.6" "torchvision>=0.21"
	$(VENV)/bin/pip install --quiet --editable ".[dev,peers,report,slurm]"
	touch $@

# A real critical-batch search, a prediction for more memory and a real spectrum, on a laptop's CPU
# in about five minutes.
demo: $(STAMP)
	$(RUN) critical-batch search mnist_mlp --memory-limit 64MiB --results-dir results/demo
	$(RUN) critical-batch predict cifar10_3c3d --memory 2GiB --memory 16GiB
	$(RUN) spectrum sweep mnist_2c2d --data mnist5k --results-dir results/demo
	$(RUN) spectrum plot mnist_2c2d --results-dir results/demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest

# All cases of every grid and the slow tests, too (10 minutes).
test-thorough: $(STAMP)
	$(VENV)/bin/python -m pytest -m "not models and not slurm"

# All of them on the oldest versions that pyproject.toml promises (tests/oldest.txt).
test-oldest: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/pip install --quiet --constraint tests/oldest.txt torch torchvision
	build/oldest/bin/pip install --quiet --constraint tests/oldest.txt --editable ".[dev,peers]"
	build/oldest/bin/python -m pytest -m "not models and not slurm"

# Real networks against plain autograd in float64 (10 minutes).
test-models: $(STAMP)
	$(VENV)/bin/python -m pytest -m models

# What needs a GPU (a few minutes): numbers, then memory, failures and speed of the card, which are
# written to build/cuda.json. Any Python with the packages of pyproject.toml does:
# python -m pytest -m cuda --numprocesses 0
test-cuda: $(STAMP)
	$(VENV)/bin/python -m pytest -m cuda --numprocesses 0 tests/test_cuda.py tests/test_cuda_card.py

# A Slurm of one node, with accounting, is started, and ended again (as root; apt-get install
# slurm-wlm munge slurmdbd mariadb-server): sweeps on it, killed, cancelled and gone on with.
test-slurm: $(STAMP)
	$(VENV)/bin/python -m pytest -m slurm --numprocesses 0 -rs tests/test_slurm.py

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Tables and figures go into a folder of their own: results/ holds what was measured elsewhere, and
# is not replaced. "vivit-bench compare results reproduced" says what came out otherwise.
figure-2 figure-3 figure-s4a figure-s5a figure-s6 figure-s7 figure-s8 figure-s9 figure-s10 noise-demo \
table-s1 table-s1d benchmarks: export VIVIT_BENCH_RESULTS ?= reproduced

# Figure 3: bootstrap damping on the noisy quadratic.
figure-3: $(STAMP)
	$(RUN) quadratic run --name figure_3
	$(RUN) quadratic plot figure_3
	$(RUN) quadratic table figure_3

# Figures 2 and S.6 to S.10: noise along the GGN's eigenvectors while DeepOBS problems are trained
# with the paper's hyperparameters, on the real data sets (many hours on a CPU; interrupted, the
# same target goes on).
noise = $(RUN) noise run $(1) --optimizer $(2) $(3) && $(RUN) noise plot $(1)_$(2) && $(RUN) noise table $(1)_$(2)

figure-2: $(STAMP)
	$(call noise,cifar10_3c3d,sgd)

figure-s6: $(STAMP)
	$(call noise,cifar10_3c3d,adam)

figure-s7: $(STAMP)
	$(call noise,fmnist_2c2d,sgd)

figure-s8: $(STAMP)
	$(call noise,fmnist_2c2d,adam)

figure-s9: $(STAMP)
	$(call noise,cifar100_allcnnc,sgd)

figure-s10: $(STAMP)
	$(call noise,cifar100_allcnnc,adam)

# The network of Figures S.7 and S.8 on 5,000 real digits: complete in minutes, without a download.
noise-demo: $(STAMP)
	$(call noise,mnist_2c2d,sgd,--data mnist5k --epochs 60)
	$(call noise,mnist_2c2d,adam,--data mnist5k --epochs 60)

# What dropping columns of V saves after the training of noise-demo, and what it changes.
drop-columns: $(STAMP)
	mkdir -p results/demo
	$(RUN) noise run mnist_2c2d --optimizer sgd --data mnist5k --epochs 60 --at end --results-dir results/demo --name drop-columns --save-model results/demo/drop-columns.pt
	$(VENV)/bin/python scripts/drop_columns.py mnist_2c2d results/demo/drop-columns.pt --data mnist5k --threads 1

# Figures S.4a and S.5a: spectra under the approximations, on the real data sets.
figure-s4a: $(STAMP)
	$(RUN) spectrum sweep fmnist_2c2d --data deepobs
	$(RUN) spectrum plot fmnist_2c2d --data deepobs
	$(RUN) spectrum sweep cifar10_3c3d --data deepobs
	$(RUN) spectrum plot cifar10_3c3d --data deepobs

figure-s5a: $(STAMP)
	$(RUN) spectrum sweep cifar100_allcnnc --data deepobs
	$(RUN) spectrum plot cifar100_allcnnc --data deepobs

# Table S.1 a, b and c and Figures 1b, S.4b, S.5b on this machine's CPU under 2 GiB, with
# vivit-for-pytorch beside (days; interrupted, it goes on).
table-s1: $(STAMP)
	sh scripts/table_s1.sh

# Table S.1 d, on a GPU with the memory of the paper's (its card had 11 GB); interrupted, the same
# target goes on.
table-s1d: $(STAMP)
	$(RUN) critical-batch sweep --table d --memory-limit 10GiB
	$(RUN) critical-batch table --table d --paper

# Time and memory against other implementations, interleaved (long; interrupted, it goes on).
benchmarks: $(STAMP)
	sh scripts/compare_engines.sh

# Every table and figure of the paper that this machine can do, with the expected times first: on
# synthetic inputs and real digits, without a download; or on CIFAR and Fashion-MNIST.
reproduce: $(STAMP)
	sh scripts/reproduce.sh demo

reproduce-paper: $(STAMP)
	sh scripts/reproduce.sh paper

clean:
	rm -rf $(VENV) build *.egg-info

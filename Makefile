# Two commands on a machine with Python 3.11 and venv: `make bench` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin

DATA ?= $(BALANCEBENCH_DATA)

.PHONY: bench test lint format clean speed results results-laptop results-gpu

# Train udi, ogm and joint on the embedded dataset and print the comparison table.
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/run.py --methods udi,ogm,joint --dataset digits --protocol quick --seeds 0-2

# Lint, types, tests.
test: $(VENV)/.ready lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The tables, figures and pages of results/ again, five seeds each: what is missing is trained first, two runs at once,
# for hours on two CPU cores. DATA is the folder with mnist/, fsdd/, cmu_mosi_utterance/, utd_mhad/ and handwritten_6views/.
results: $(VENV)/.ready
	$(BIN)/python benchmarks/tables.py udi-main,udi-ablation,udi-weights,udi-anchor,udi-budget,udi-estimator,udi-choices,encoders,ogm,agm,mmpareto,pmr,fusion,udi-ensemble,balance,cost --run --jobs 2 --data-root "$(DATA)"
	$(BIN)/python benchmarks/tables.py balancebenchmark,pmr-paper
	$(BIN)/python benchmarks/run.py --methods all --dataset cgmnist --protocol small --set cgmnist.recipe=first \
	  --name cgmnist-small --seeds 0-4 --jobs 2 --data-root "$(DATA)"
	for pair in avdigits:small utd_mhad:features synthetic:features; do \
	  $(BIN)/python benchmarks/run.py --methods all --dataset $${pair%:*} --protocol $${pair#*:} --seeds 0-4 --jobs 2 \
	    --data-root "$(DATA)" || exit; done
	$(BIN)/python benchmarks/run.py --methods all --dataset mosi --protocol features --set mosi.val_from=test \
	  --set mosi.val_share=0.3 --name mosi-features --seeds 0-4 --jobs 2 --data-root "$(DATA)"
	$(BIN)/python benchmarks/embedding.py --dataset cgmnist --protocol small --set cgmnist.recipe=first --name cgmnist-small \
	  --modality colour --data-root "$(DATA)" \
	  --panel "with complementarity: udi weights=static alpha_con=0.5 alpha_com=0.5" \
	  --panel "without complementarity: udi weights=static alpha_con=0.5 alpha_com=0"
	$(BIN)/python benchmarks/reproduction.py
	$(BIN)/python benchmarks/report.py --save-figures --figures 7

# Longer training, three seeds (protocol laptop), and what a choice of the protocol changes: about two hours more.
results-laptop: $(VENV)/.ready
	$(BIN)/python benchmarks/run.py --methods all --dataset cgmnist --protocol laptop --set cgmnist.recipe=first \
	  --name cgmnist-laptop --data-root "$(DATA)"
	$(BIN)/python benchmarks/run.py --methods all --dataset avdigits --protocol laptop --data-root "$(DATA)"
	$(BIN)/python benchmarks/run.py --methods unimodal,ensemble,udi --dataset cgmnist --protocol laptop \
	  --set cgmnist.recipe=first --set cgmnist.val_colour=label --name cgmnist-laptop-val_colour-label --data-root "$(DATA)"
	$(BIN)/python benchmarks/run.py --methods joint,udi --dataset cgmnist --protocol laptop --precision fp32 \
	  --set cgmnist.recipe=first --name cgmnist-laptop-fp32 --data-root "$(DATA)"
	$(BIN)/python benchmarks/run.py --methods agm --dataset cgmnist --protocol laptop --set agm.alpha=1.5 \
	  --set cgmnist.recipe=first --name cgmnist-laptop-agm-alpha-1.5 --data-root "$(DATA)"
	$(BIN)/python benchmarks/run.py --methods all --dataset mosi --protocol quick --set mosi.val_from=test \
	  --set mosi.val_share=0.3 --name mosi-quick-val_from-test --data-root "$(DATA)"

# What the harness costs on this machine: results/speed/. It takes hours on two CPU cores.
speed: $(VENV)/.ready
	$(BIN)/python benchmarks/speed.py

# Meant for one CUDA device: the tests that need one, the speed report, the full protocol of PMR (60000 pairs, 100 epochs),
# and the time of a table at CREMA-D's full size, on generated clips of its shape.
results-gpu: $(VENV)/.ready
	$(BIN)/python -m pytest tests/gpu tests/unit/test_frames.py
	$(BIN)/python benchmarks/speed.py --device cuda
	$(BIN)/python benchmarks/run.py --methods joint,ogm_ge,agm,pmr,mmpareto,udi --dataset synthetic --set synthetic.shape=av \
	  --set synthetic.n_train=6028 --set synthetic.n_val=670 --set synthetic.n_test=744 --set synthetic.frames=1 \
	  --precision auto --device cuda --name synthetic-cremad-size
	$(BIN)/python benchmarks/run.py --methods all --dataset cgmnist --protocol pmr --device cuda --data-root "$(DATA)"
	$(BIN)/python benchmarks/run.py --methods all --dataset avdigits --protocol default --device cuda --data-root "$(DATA)"

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) must be on the PATH, found none: install Python 3.11 or call make PYTHON=python3" >&2; exit 2; }
	@test -e $@ || rm -rf $(VENV)  # half made by a call that was interrupted
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# make demo trains a model, make test tests everything; each sets up what it needs first.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# a CPU-only torch from elsewhere than the usual index: make demo TORCH_INDEX=...
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo test test-slow check bench docs notebooks setup browser clean

setup: $(VENV)/ready

# of these two the tests read files, a reference and trained weights; what they depend on is much, and used by nothing here
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps pyvene microformer-mgm
	touch $@

demo: setup
	$(BIN)/python run_gpt.py

# the tests of the page and of the site drive a browser; without one they are skipped
browser: setup
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| apt-get install -qy -o Acquire::http::Timeout=30 -o Acquire::Retries=1 --no-install-recommends chromium \
		|| PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT=30000 $(BIN)/playwright install chromium \
		|| echo "no browser could be installed: what needs one is not tested"

test: setup browser
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: setup browser
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

# NANOGPT names a clone of nanoGPT to be measured against; the README's tables come of the first two lines
bench: setup
	$(BIN)/scratchlm bench --thorough --out benchmarks/results $(if $(NANOGPT),--nanogpt $(NANOGPT))
	$(BIN)/python benchmarks/readme.py
	$(if $(NANOGPT),$(BIN)/python benchmarks/speedrun.py $(NANOGPT))
	$(BIN)/python benchmarks/beam.py
	$(BIN)/python benchmarks/saving.py
	$(BIN)/python benchmarks/recurrence.py
	$(BIN)/python benchmarks/backpack.py
	$(BIN)/python benchmarks/import_memory.py
	$(BIN)/python benchmarks/lora_step.py

# the site, which opens from its folder, without a network
docs: setup
	$(BIN)/python docs/build.py

# what Colab and Jupyter open, made of the sources
notebooks: setup
	$(BIN)/jupytext --to ipynb --update notebooks/*.py

clean:
	rm -rf $(VENV) build site

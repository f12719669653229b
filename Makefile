# Two commands do everything on a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Threads that wait for each other sleep instead of spinning: on a busy machine this is many times faster.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lab figures compare bench train trials test-browser lint clean

demo: $(READY)  ## blends two styles into one picture and says where it is
	$(BIN)/python -m dsnb demo

test: $(READY)  ## all tests, notebooks included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lab: $(READY)  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

figures: $(READY)  ## runs all notebooks, which redraw what they and the README show
	$(BIN)/python -m dsnb figures

compare: $(READY)  ## notebook 10 in full: the tables of the comparison (some two hours on two CPU cores)
	$(BIN)/python -m dsnb compare

bench: $(READY)  ## what each method costs here
	$(BIN)/python -m dsnb bench --compile

MINUTES  ?= 90
DEVICE   ?=
OUT      ?=
STAGES   ?=
COOLDOWN ?=
train: $(READY)  ## trains the bundled model, from its last checkpoint if there is one
	$(BIN)/python -m dsnb.lab.training --minutes $(MINUTES) $(if $(DEVICE),--device $(DEVICE)) $(if $(STAGES),--stages $(STAGES)) \
		$(if $(COOLDOWN),--cooldown $(COOLDOWN)) $(if $(OUT),--out $(OUT))

# the changes of the notebook's CHANGES
CHANGES := control,random,unnamed,patches,fours,plain,longer,sixteen,small
trials: $(READY)  ## notebook 13 in full: what teaches objects (an hour on two CPU cores)
	$(BIN)/python -m dsnb run notebooks/13_what_teaches_objects.ipynb --output runs/trials \
		-p steps=400 -p pictures=360 --grid seed=0,1,2 --grid change=$(CHANGES)
	$(BIN)/papermill notebooks/13_what_teaches_objects.ipynb runs/trials/13_what_teaches_objects.ipynb \
		--cwd notebooks -p tables "$(CURDIR)/runs/trials"

test-browser: $(READY)  ## drives the widgets in a real browser; needs Debian's chromium and fonts-dejavu-core
	$(BIN)/pip install -q -e '.[browser]'
	$(BIN)/python -m pytest -o addopts= -q tests/browser

lint: $(READY)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
	test ! -d runs || find runs -mindepth 1 -maxdepth 1 ! -name training -exec rm -rf {} +  # checkpoints are days of work

# On a fresh clone `make demo` and `make test` need nothing but Python 3.11 and network access for the installation.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: help demo lab app figures compare bench test test-all docs train trials lint constraints clean

help:  ## lists these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.base  ## blends two styles in one image and prints the paths of two files
	$(BIN)/dsnb demo

lab: $(VENV)/.lab  ## opens JupyterLab on the first notebook
	$(BIN)/jupyter lab --LabApp.app_settings_dir=notebooks/.jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_blend_two_styles.ipynb

app: $(VENV)/.app  ## serves the panel of notebook 00 without code, for your own image, at http://localhost:8866
	DSNB_INTERACTIVE=1 $(BIN)/voila --Voila.ip=127.0.0.1 notebooks/app/blend.ipynb

figures: $(VENV)/.lab  ## runs the notebooks whose outputs are out of date, and redraws figures/
	$(BIN)/python docs/diagrams.py
	$(BIN)/dsnb figures

compare: $(VENV)/.lab  ## computes the tables of notebook 14 in full (many hours on two CPU cores)
	$(BIN)/dsnb compare

bench: $(VENV)/.lab $(VENV)/.triton  ## measures what each method costs on this machine
	$(BIN)/dsnb bench --compile --output figures

JOBS ?= 2
test: $(VENV)/.dev  ## checks style and types, runs the unit tests and every notebook at toy size
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-all: test $(VENV)/.browser  ## also the slow tests: default sizes, the wheel, a browser (chromium, fonts-dejavu-core)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(JOBS) --dist worksteal
	$(BIN)/python -m pytest -o addopts=-q tests/browser

docs: $(VENV)/.docs  ## builds the documentation, build/site/index.html; warnings and broken links are errors
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/site

MINUTES  ?= 90
DEVICE   ?=
OUT      ?=
STAGES   ?=
COOLDOWN ?=
FROM     ?=
train: $(VENV)/.lab  ## trains the bundled model, from its last checkpoint, or FROM=data/models/drawn-world
	$(BIN)/python -m dsnb.lab.training --minutes $(MINUTES) $(if $(DEVICE),--device $(DEVICE)) $(if $(STAGES),--stages $(STAGES)) \
		$(if $(COOLDOWN),--cooldown $(COOLDOWN)) $(if $(FROM),--from $(FROM)) $(if $(OUT),--out $(OUT))

# the names in CHANGES of notebook 18
CHANGES := control,random,unnamed,patches,fours,plain,longer,sixteen,small
trials: $(VENV)/.lab  ## notebook 18 in full: what teaches objects (an hour on two CPU cores)
	$(BIN)/dsnb run notebooks/18_what_teaches_objects.ipynb --output runs/trials \
		-p steps=400 -p images=360 --grid seed=0,1,2 --grid change=$(CHANGES)
	DSNB_FIGURES=$(CURDIR)/figures $(BIN)/papermill notebooks/18_what_teaches_objects.ipynb runs/trials/18_what_teaches_objects.ipynb \
		--cwd notebooks -p tables "$(CURDIR)/runs/trials"

lint: $(VENV)/.dev  ## formats the code and fixes what ruff can fix
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# .venv/.base stands for the package without extras, .venv/.EXTRA for the package with that extra.
$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.$(patsubst %,[%],$(filter-out base,$*))'
	touch $@

EXTRAS := dev docs browser lpips app
constraints: $(EXTRAS:%=$(VENV)/.%)  ## writes the installed versions into constraints.txt
	$(BIN)/pip list --format freeze --exclude dsnb --exclude pip | sed 's/+.*//' > constraints.tmp && mv constraints.tmp constraints.txt

clean:
	rm -rf $(VENV) build
	test ! -d runs || find runs -mindepth 1 -maxdepth 1 ! -name training -exec rm -rf {} +  # checkpoints are days of work

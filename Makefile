# make demo   sets everything up, runs all stages on real images in a napari window, saves into demo-output/
# make test   sets everything up, checks the code and runs all tests
# make test-pacs   tests pull and push against a real archive (Orthanc), which it installs and starts
# make test-nnunet   compares with nnU-Net's own predictor, for which it makes .venv-nnunet (about 3 minutes of tests)
# make attacks   opens every package of the attack corpus, of which make test opens some of each kind
# make docs   builds the documentation into site/
# Second runs skip what is done.

PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
READY := .venv/.ready
# A real screen is used where there is one; else a virtual one.
SCREEN := $(if $(or $(DISPLAY),$(WAYLAND_DISPLAY)),,xvfb-run -a -s "-screen 0 1600x1000x24")

.PHONY: demo test test-pacs test-nnunet attacks check fuzz docs samples clean

demo: $(READY) samples
	$(SCREEN) $(BIN)/medai demo --out demo-output

test: $(READY) samples check
	-sh scripts/orthanc.sh install
	xvfb-run -a -s "-screen 0 1600x1000x24" $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/ui tests/engine tests

# Archives, against Orthanc with its DICOMweb plugin, which it installs and starts on loopback.
test-pacs: $(READY)
	sh scripts/orthanc.sh install
	$(BIN)/python -m pytest -q tests/pacs tests/ui/test_pacs.py

# nnU-Net needs torchvision, which this project does without: it gets an environment of its own.
test-nnunet: $(READY) .venv-nnunet/.ready
	MEDAI_NNUNET=$(CURDIR)/.venv-nnunet/bin/python $(BIN)/python -m pytest -q tests/engine/nnunet/test_nnunet_parity.py

# 549 packages that try to run code, about two minutes.
attacks: $(READY)
	MEDAI_ATTACKS=all $(BIN)/python -m pytest -q tests/attacks

.venv-nnunet/.ready: constraints.txt
	test -x .venv-nnunet/bin/python || $(PYTHON) -m venv .venv-nnunet
	.venv-nnunet/bin/python -m pip install -q --upgrade pip
	.venv-nnunet/bin/python -m pip install -q -c constraints.txt torch
	.venv-nnunet/bin/python -m pip install -q -c constraints.txt nnunetv2==2.8.1 batchgenerators==0.25.5 \
		dynamic-network-architectures==0.4.4
	touch $@

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/npe2 validate napari-medai
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# 20,000 damaged files, about half an hour; FUZZ="--count 500 --seed 7 --kinds nifti,archive" for others
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz $(FUZZ)

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

samples: $(READY)
	@$(BIN)/medai samples > /dev/null

$(READY): pyproject.toml constraints.txt scripts/system-libraries.sh
	PYTHON=$(PYTHON) sh scripts/system-libraries.sh
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf .venv .venv-nnunet demo-output site dist

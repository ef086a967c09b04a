# The commands of this project. `make` alone lists them; docs/by-hand.md shows how to do each without make.

PYTHON ?= python3
PY := .venv/bin/python
NPM := npm --loglevel=error --no-audit --no-fund

# The demo has its own folder, ports, key and PM2 daemon. The empty values hide the settings of a real set-up.
DEMO := .demo
DEMO_PORT ?= 8002
DEMO_CORTEX_PORT ?= 8003
DEMO_ENV := export CORTEX_HOME="$$PWD/$(DEMO)" PM2_HOME="$$PWD/$(DEMO)/pm2" PROXY_PORT=$(DEMO_PORT) \
	SNOWFLAKE_ACCOUNT=DEMO-ACCOUNT SNOWFLAKE_USER=DEMO SNOWFLAKE_HOST=http://127.0.0.1:$(DEMO_CORTEX_PORT) \
	SNOWFLAKE_PRIVATE_KEY_PATH="$$PWD/$(DEMO)/snowflake_key.p8" PRIVATE_KEY_PASSPHRASE= SNOWFLAKE_PAT= LITELLM_MASTER_KEY= REFRESH_MINUTES= \
	CLAUDE_ROUTE= PRICE_FACTOR= LEDGER= BUDGET_USD_PER_DAY= LOG_REQUESTS= \
	NO_PROXY="127.0.0.1,localhost$${NO_PROXY:+,$$NO_PROXY}" no_proxy="127.0.0.1,localhost$${no_proxy:+,$$no_proxy}"

# If only the demo is set up, the commands below are about the demo.
HERE := if [ -d $(DEMO) ] && [ ! -e litellm_config.yaml ]; then $(DEMO_ENV); fi
# Before the first `make start` there is no Python with the packages.
INSTALLED := if [ ! -x $(PY) ]; then echo "Nothing is installed here yet. Run: make -C '$$PWD' start" >&2; exit 1; fi

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

# ------------------------------------------------------------------------------------------------------------- install

.PHONY: install
install: .venv/installed node_modules/installed

# With an old Python, the scripts themselves would fail before they can say so.
NEEDS_PYTHON := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	echo "Python 3.10 or newer is needed; '$(PYTHON)' is older or missing. Use another one: make PYTHON=python3.12 …" >&2; exit 1; }

.venv/installed: requirements.txt
	@$(NEEDS_PYTHON)
	@$(PYTHON) -m bundle.install python
	@touch $@

node_modules/installed: package-lock.json
	@$(NEEDS_PYTHON)
	@$(PYTHON) -m bundle.install node
	@touch $@

# -------------------------------------------------------------------------------------------------------------- set-up

.PHONY: start
start: ## ask for missing settings, start, wait for the first answer
	@$(NEEDS_PYTHON)
	@$(PYTHON) configure.py --first
	@$(MAKE) --no-print-directory --silent install
	@$(PY) configure.py
	@$(PY) start.py

.PHONY: demo
demo: install ## try all this without a Snowflake account: a stand-in answers
	@mkdir -p -m 700 $(DEMO)
	@test -e $(DEMO)/snowflake_key.p8 || $(PY) -c 'import configure, pathlib; configure.make_key_pair(pathlib.Path("$(DEMO)/snowflake_key.p8"))'
	@$(DEMO_ENV); $(PY) start.py --demo

.PHONY: claude
claude: ## run Claude Code on Cortex in this folder; your settings do not change (ARGS='-p hello')
	@$(INSTALLED); $(HERE); $(PY) point_claude.py --run $(ARGS)

.PHONY: install-command
install-command: ## put the command claude-cortex into ~/.local/bin: Claude Code on Cortex, in any folder
	@$(PYTHON) point_claude.py --install-command

.PHONY: uninstall
uninstall: ## stop, and take back what this bundle has put anywhere; says what remains
	@$(PYTHON) uninstall.py

.PHONY: update
update: ## bring the newest version and start it; the version before comes back if no model answers
	@$(PYTHON) update.py

.PHONY: stop
stop: ## stop everything; also remove the demo
	@$(PYTHON) stop.py

.PHONY: status
status: ## show one screen: token, processes, last error
	@$(INSTALLED); $(HERE); $(PY) doctor.py --status

.PHONY: doctor
doctor: ## show what is wrong and how to fix it (ARGS=--live asks every model)
	@$(INSTALLED); $(HERE); $(PY) doctor.py $(ARGS)

.PHONY: models
models: ## show the models of your account, and which row uses each of them
	@$(INSTALLED); $(HERE); $(PY) models.py $(ARGS)

.PHONY: usage
usage: ## show what was spent, in dollars and tokens (ARGS='--days 30')
	@$(INSTALLED); $(HERE); $(PY) usage.py $(ARGS)

.PHONY: report
report: ## make one file for a bug report, with nothing private in it
	@$(HERE); $(PYTHON) report.py $(ARGS)

.PHONY: version
version: ## the releases of the bundle and of what it runs on
	@echo "bundle      $$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) $$(git describe --always --dirty 2>/dev/null)"
	@$(PY) -c 'import platform, importlib.metadata as packages; \
		print("Python     ", platform.python_version()); print("LiteLLM    ", packages.version("litellm"))' 2>/dev/null \
		|| echo "Python      nothing is installed yet: make install"
	@echo "Node.js     $$(node --version 2>/dev/null || echo 'not on PATH')"
	@echo "PM2         $$(node -p 'require("./node_modules/pm2/package.json").version' 2>/dev/null || echo 'not installed: make install')"
	@echo "Claude Code $$(PATH="$$PATH:node_modules/.bin" claude --version 2>/dev/null || echo 'not installed: make install')"

.PHONY: logs
logs: ## show the last log lines of both processes, and new ones as they come
	@$(HERE); set -- "$${CORTEX_HOME:-.}"/logs/*.log; \
	if [ ! -e "$$1" ]; then echo "There are no logs yet. Run: make -C '$$PWD' start" >&2; exit 1; fi; tail -n 20 -F "$$@"

# ------------------------------------------------------------------------------------------------------------- develop

# Each test has its own ports, HOME and PM2_HOME. Many tests wait, so four at once suit two cores.
# The tests of one file stay together, because they share what the file has started. tests/conftest.py orders the files.
PYTEST := $(PY) -m pytest -n 4 --dist loadfile --no-loadscope-reorder

# `check` and `test` work on a new machine, with nothing installed before. One test: .venv/bin/python -m pytest -k NAME
.PHONY: check
check: lint ## lint, types and the fast tests: less than a minute
	@$(PYTEST) -m "not real" $(ARGS)

.PHONY: test
test: lint node_modules/installed-dev tests/clients/node_modules/installed ## lint, types and all tests, without a Snowflake account (ARGS='-k token')
	@$(PYTEST) $(ARGS)

.PHONY: nightly
nightly: test coverage soak compat ## all tests, their coverage, the soak test, other releases (two hours)

.PHONY: coverage
coverage: .venv/installed-dev ## which lines the fast tests run
	@$(PYTEST) -m "not real" --cov --cov-report=term:skip-covered

.PHONY: lint
lint: .venv/installed-dev ## run ruff and mypy
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

.PHONY: audit
audit: .venv/installed-dev ## known weaknesses in the dependencies (asks the registries)
	@.venv/bin/uv tool run --exclude-newer "2 weeks" pip-audit --disable-pip --require-hashes -r requirements.txt
	@$(NPM) audit --audit-level=moderate
	@$(NPM) --prefix tests/clients audit --audit-level=moderate

.PHONY: bench
bench: .venv/installed ## compare the speed with that of LiteLLM alone, a few minutes (ARGS=--json; --steps: each part)
	@$(PY) bench/run.py $(ARGS)

.PHONY: compat
compat: .venv/installed-dev ## try other releases of LiteLLM and Claude Code (half an hour, downloads 2 GB)
	@$(PY) tests/compat_litellm.py
	@$(PY) tests/compat_claude.py

.PHONY: soak
soak: install ## send 10,000 requests while the token changes 50 times; compare with pm2 reload (ten minutes)
	@$(PY) bench/soak.py $(ARGS)

.PHONY: lock
lock: .venv/installed-dev ## update the lock files from their sources (ARGS=--upgrade: to the newest releases)
	@$(COMPILE) requirements.in -o requirements.txt $(ARGS)
	@$(COMPILE) requirements-dev.in -o requirements-dev.txt $(ARGS)
	@$(PY) -c '$(PIN_TWICE)'
	@for folder in . tests/clients; do \
	$(NPM) --prefix $$folder $(if $(ARGS),update,install) --package-lock-only --omit-lockfile-registry-resolved >/dev/null && \
	node -e 'const file = process.argv[1] + "/package-lock.json", lock = JSON.parse(fs.readFileSync(file));'\
	'for (const part of Object.values(lock.packages)) delete part.funding;'\
	'fs.writeFileSync(file, JSON.stringify(lock, null, 2) + "\n")' $$folder || exit 1; done

# One lock is for Linux, macOS and every Python from 3.10 on. It contains no host name, so a company's mirror works too.
COMPILE := .venv/bin/uv pip compile --quiet --no-header --universal --python-version 3.10 --generate-hashes --no-strip-extras \
	--no-emit-index-url --emit-build-options

# An older pip (23.2 comes with Python 3.11) treats `pydantic` and `pydantic[email]` as two packages, and both must be
# pinned. Without this second pin, pydantic's next release would break every installation from the lock.
PIN_TWICE := import pathlib, re; lock = pathlib.Path("requirements.txt"); \
	pin = re.compile(r"^([a-z0-9-]+)\[[a-z0-9,]+\](==.*\n(?: +--hash.*\n)+)", re.MULTILINE); \
	lock.write_text(pin.sub(r"\g<0>\1\2", lock.read_text()))

.venv/installed-dev: requirements-dev.txt .venv/installed
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# The tests run the Claude Code of package-lock.json. `make install` skips it if `claude` is already installed.
node_modules/installed-dev: node_modules/installed
	@test -x node_modules/.bin/claude || $(NPM) ci >/dev/null
	@touch node_modules/installed $@

# The SDKs that tests/clients tries. Without their optional packages: each of these is a whole Claude Code of 200 MB.
tests/clients/node_modules/installed: tests/clients/package-lock.json
	@$(NPM) --prefix tests/clients ci --omit=optional >/dev/null
	@touch $@

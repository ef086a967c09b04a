# The front door. `make` alone lists what there is; each command also works by hand (README, "By hand").

PYTHON ?= python3
PY := .venv/bin/python
# Without its banner and without asking a server for its newest version.
PM2 := PM2_DISCRETE_MODE=1 PM2_DISABLE_VERSION_CHECK=1 node_modules/.bin/pm2
APPS := token-refresher claude-proxy
STATE := $(if $(CORTEX_HOME),$(CORTEX_HOME),.)

# A set-up of its own beside a real one: folder, ports, key, PM2 daemon. Emptied are the settings of a real one.
DEMO := .demo
DEMO_PORT ?= 8002
DEMO_CORTEX_PORT ?= 8003
DEMO_ENV := CORTEX_HOME=$(CURDIR)/$(DEMO) PM2_HOME=$(CURDIR)/$(DEMO)/pm2 PROXY_PORT=$(DEMO_PORT) \
	SNOWFLAKE_ACCOUNT=DEMO-ACCOUNT SNOWFLAKE_USER=DEMO SNOWFLAKE_HOST=http://127.0.0.1:$(DEMO_CORTEX_PORT) \
	SNOWFLAKE_PRIVATE_KEY_PATH=$(CURDIR)/$(DEMO)/snowflake_key.p8 PRIVATE_KEY_PASSPHRASE= LITELLM_MASTER_KEY= REFRESH_MINUTES=

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

# ------------------------------------------------------------------------------------------------------------- install

.PHONY: install
install: .venv/installed node_modules/installed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "Python 3.10 or newer is needed, and '$(PYTHON)' is not. Another one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing the Python packages into .venv (two minutes the first time) …"
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

node_modules/installed: package-lock.json
	@command -v npm >/dev/null || { echo "Node.js 18 or newer with npm is needed: https://nodejs.org" >&2; exit 1; }
	@node -e 'process.exit(parseInt(process.versions.node) < 18)' || { \
		echo "Node.js 18 or newer is needed; this is $$(node --version): https://nodejs.org" >&2; exit 1; }
	@echo "Installing PM2$$(command -v claude >/dev/null || echo ' and Claude Code') into node_modules …"
	@npm ci --silent --no-audit --no-fund $$(if command -v claude >/dev/null; then echo --omit=dev; fi)
	@touch $@

# -------------------------------------------------------------------------------------------------------------- set-up

.PHONY: start
start: install ## set up what is missing, start, wait for the first answer
	@$(PY) configure.py
	@$(PY) patches/apply_patch.py
	@$(call up,ecosystem.config.js)
	@$(PY) claude_proxy.py --wait
	@$(PY) point_claude.py --file

.PHONY: demo
demo: install ## the same without a Snowflake account: a stand-in answers
	@mkdir -p -m 700 $(DEMO)
	@test -e $(DEMO)/snowflake_key.p8 || $(PY) -c 'import configure, pathlib; configure.make_key_pair(pathlib.Path("$(DEMO)/snowflake_key.p8"))'
	@$(PY) patches/apply_patch.py
	@$(DEMO_ENV) $(call up,tests/demo.config.js)
	@$(DEMO_ENV) $(PY) claude_proxy.py --wait
	@$(DEMO_ENV) $(PY) point_claude.py --file
	@echo "This is the demo: a stand-in on this machine answers, no model, and nothing is sent anywhere. End it with: make demo-stop"

.PHONY: claude
claude: ## run Claude Code on Cortex, leaving your settings alone (ARGS='-p hello')
	@$(PY) point_claude.py --run $(ARGS)

.PHONY: stop
stop: ## stop both processes
	@$(call down,$(APPS))

.PHONY: demo-stop
demo-stop: ## end the demo and remove what it made
	@$(DEMO_ENV) $(call down,demo-cortex $(APPS:%=demo-%))
	@rm -rf $(DEMO)

.PHONY: status
status: ## one screen: token, processes, last error
	@$(PY) doctor.py --status

.PHONY: doctor
doctor: ## what is wrong, and what mends it (ARGS=--live asks every model)
	@$(PY) doctor.py $(ARGS)

.PHONY: logs
logs: ## what both processes said last, and what they say from now on
	@tail -n 20 -F $(STATE)/logs/token-refresher.log $(STATE)/logs/claude-proxy.log

# PM2 prints a page about itself the first time, and tables later: its words matter only when it fails.
define up
{ $(PM2) start $(1) >/dev/null 2>&1 || $(PM2) start $(1); }
endef

# PM2's own daemon is ended too, unless something else of the user runs in it. Without a daemon nothing is started.
define down
if [ -S "$${PM2_HOME:-$$HOME/.pm2}/rpc.sock" ]; then \
	$(PM2) delete $(1) >/dev/null 2>&1; \
	if [ "$$($(PM2) jlist 2>/dev/null | tail -n 1)" = "[]" ]; then $(PM2) kill >/dev/null 2>&1; fi; \
fi; echo "Stopped."
endef

// PM2: the refresher and the proxy. Start both with: pm2 start ecosystem.config.js
const fs = require("node:fs");
const path = require("node:path");

const venv = path.join(__dirname, ".venv", "bin", "python");
const home = path.resolve(__dirname, process.env.CORTEX_HOME || ".");

// PM2 makes log files that everybody can read; in this folder nobody else gets at them.
const logs = path.join(home, "logs");
fs.mkdirSync(logs, { recursive: true });
fs.chmodSync(logs, 0o700);

// What the processes get from the shell. PM2 keeps an app's environment in dump.pm2, plain text that others can read,
// so this is a list of what may pass. Secrets (PRIVATE_KEY_PASSPHRASE, LITELLM_MASTER_KEY) belong in .env.
const passed = [
  "CORTEX_HOME", "SNOWFLAKE_ACCOUNT", "SNOWFLAKE_USER", "SNOWFLAKE_HOST", "SNOWFLAKE_PRIVATE_KEY_PATH",
  "SNOWFLAKE_WAREHOUSE", "SNOWFLAKE_HOME", "SNOWFLAKE_DEFAULT_CONNECTION_NAME", "PROXY_PORT", "REFRESH_MINUTES",
  "CLAUDE_ROUTE",
  "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR",
  "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy",
  "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
];
const env = Object.fromEntries(passed.filter((name) => process.env[name]).map((name) => [name, process.env[name]]));

const app = (name, script, more) => ({
  name,
  script: path.join(__dirname, script),
  cwd: __dirname,
  interpreter: fs.existsSync(venv) ? venv : "python3",
  // Every name contains the empty string: nothing of the shell's environment passes by itself. (`true` does nothing.)
  filter_env: [""],
  env: { ...env, PYTHONUNBUFFERED: "1" },
  out_file: path.join(logs, `${name}.log`),
  error_file: path.join(logs, `${name}.log`),
  merge_logs: true,
  time: true,
  // Both say when they do their work; importing LiteLLM takes up to half a minute on a busy machine.
  wait_ready: true,
  listen_timeout: 120_000,
  // 78 is a mistake in the settings: a restart cannot fix it. (Never 0 here: PM2 records a killed process as 0.)
  stop_exit_codes: [78],
  // Enough for the minute in which packages are replaced. (With restart_delay PM2 would show what it has stopped as
  // "waiting restart" forever.)
  max_restarts: 200,
  vizion: false,
  ...more,
});

module.exports = {
  apps: [
    app("token-refresher", "auto_refresh.py", { kill_timeout: 5_000 }),
    // Open answers get 30 seconds to finish (DRAIN_SECONDS in claude_proxy.py), then PM2 kills.
    app("claude-proxy", "claude_proxy.py", { kill_timeout: 35_000 }),
  ],
};

// PM2: the refresher and the proxy. Start both with: pm2 start ecosystem.config.js
const { execFileSync } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const scripts = { "token-refresher": "auto_refresh.py", "claude-proxy": "claude_proxy.py" };

// What a file or a program says; "" if there is no such thing.
const read = (file) => {
  try {
    return fs.readFileSync(file, "utf8").trim();
  } catch {
    return "";
  }
};
const ps = (pid) => {
  try {
    return execFileSync("ps", ["-ww", "-o", "args=", "-p", pid], { encoding: "utf8", stdio: "pipe" });
  } catch {
    return "";
  }
};

// The folder of the script that a process runs. Folders may contain spaces, so each part from a "/" on is tried.
const folderOf = (pid, script) => {
  // Without /proc (macOS) `ps` says it. It may spoil letters such as an umlaut.
  const line = fs.existsSync("/proc/self") ? read(`/proc/${pid}/cmdline`).replaceAll("\0", " ") : ps(pid);
  const end = line.lastIndexOf(`/${script}`);
  const starts = [...line.matchAll(/(?<=^| )\//g)].map((found) => found.index).filter((start) => start < end);
  return starts.map((start) => line.slice(start, end)).find((folder) => fs.existsSync(path.join(folder, script)));
};

// Another clone's processes have the same names, so PM2 would restart them in place of ours. The question is answered
// without PM2, which keeps the pid of each process in a file.
const refuseOtherCopy = () => {
  const pids = path.join(process.env.PM2_HOME || path.join(os.homedir(), ".pm2"), "pids");
  for (const file of fs.existsSync(pids) ? fs.readdirSync(pids) : []) {
    const script = scripts[file.replace(/-\d+\.pid$/, "")];
    const pid = script && read(path.join(pids, file));
    const folder = pid && folderOf(pid, script);
    if (folder && fs.realpathSync(folder) !== fs.realpathSync(__dirname)) {
      const command = `make -C '${folder.replaceAll("'", "'\\''")}' stop`;
      console.error(`another copy of this bundle runs, in ${folder}. Nothing was changed.`);
      console.error(`Use that one; or stop it first: ${command}`);
      process.exit(1);
    }
  }
};
refuseOtherCopy();

const venv = path.join(__dirname, ".venv", "bin", "python");
const home = path.resolve(__dirname, process.env.CORTEX_HOME || ".");

// PM2 makes log files that everybody can read, so only the owner may open their folder.
const logs = path.join(home, "logs");
fs.mkdirSync(logs, { recursive: true, mode: 0o700 });
fs.chmodSync(logs, 0o700);

// The variables that the processes get from the shell. PM2 saves a process's environment in dump.pm2, a text file that
// others can read, so only this list is passed. Secrets belong in .env: PRIVATE_KEY_PASSPHRASE, LITELLM_MASTER_KEY,
// SNOWFLAKE_PAT.
const passed = [
  "CORTEX_HOME", "SNOWFLAKE_ACCOUNT", "SNOWFLAKE_USER", "SNOWFLAKE_HOST", "SNOWFLAKE_PRIVATE_KEY_PATH",
  "SNOWFLAKE_PAT_FILE", "SNOWFLAKE_WAREHOUSE", "SNOWFLAKE_HOME", "SNOWFLAKE_DEFAULT_CONNECTION_NAME",
  "PROXY_PORT", "REFRESH_MINUTES", "CLAUDE_ROUTE", "CLAUDE_START_MODEL", "CLAUDE_START_EFFORT", "CLAUDE_CONFIG_DIR",
  "PRICE_FACTOR", "LEDGER", "BUDGET_USD_PER_DAY", "LOG_REQUESTS",
  "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR",
  "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy",
  "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
];
const env = Object.fromEntries(passed.filter((name) => process.env[name]).map((name) => [name, process.env[name]]));

const app = (name, more) => ({
  name,
  script: scripts[name], // relative to cwd: PM2 would give a path with a space to `bash -c`
  cwd: __dirname,
  interpreter: fs.existsSync(venv) ? venv : "python3",
  // PM2 removes each shell variable whose name contains "", and that is every variable. (`true` has no effect here.)
  filter_env: [""],
  env: { ...env, PYTHONUNBUFFERED: "1" },
  out_file: path.join(logs, `${name}.log`),
  error_file: path.join(logs, `${name}.log`),
  merge_logs: true,
  time: true,
  // Both processes report when they are ready. Importing LiteLLM takes up to half a minute on a busy machine.
  wait_ready: true,
  listen_timeout: 120_000,
  // A restart cannot fix a mistake in the settings, status 78. (0 must not be in this list: PM2 records it for a killed
  // process.)
  stop_exit_codes: [78],
  // 200 restarts last longer than an upgrade of the packages, which takes a minute. (With restart_delay, PM2 would show
  // a stopped process as "waiting restart" forever.)
  max_restarts: 200,
  vizion: false, // PM2 would look for Git metadata
  ...more,
});

module.exports = {
  apps: [
    app("token-refresher", { kill_timeout: 5_000 }),
    // Open answers get 30 seconds to finish (DRAIN_SECONDS in bundle/proxy/server.py); 5 seconds later PM2 kills it.
    app("claude-proxy", { kill_timeout: 35_000 }),
  ],
};

// PM2 for `make demo`: the two processes of ecosystem.config.js, and the stand-in in place of Snowflake.
const path = require("node:path");
const { apps } = require("../ecosystem.config.js");

const home = process.env.CORTEX_HOME;
const port = new URL(process.env.SNOWFLAKE_HOST).port;

const demo = (app) => ({
  ...app,
  name: `demo-${app.name}`,
  out_file: path.join(home, "logs", `demo-${app.name}.log`),
  error_file: path.join(home, "logs", `demo-${app.name}.log`),
});

module.exports = {
  apps: [
    {
      ...demo({ ...apps[0], name: "cortex" }),
      script: "tests/cortex_stub.py",
      args: [
        "--demo", "--port", port,
        "--account", process.env.SNOWFLAKE_ACCOUNT, "--user", process.env.SNOWFLAKE_USER,
        "--public-key", path.join(home, "snowflake_key.pub"),
      ],
      wait_ready: false,
    },
    ...apps.map(demo),
  ],
};

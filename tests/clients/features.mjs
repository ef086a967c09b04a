// Runs the checks of the TypeScript SDK, all in one process, and prints their outcomes as JSON: {"name/route": "yes"}.
// A failure begins with "FAILED: ". The environment variable CLIENTS says what to run, and where: url, key, stub, wanted, and for
// agent.mjs claude, home, environ.
import { File } from "node:buffer";

import Anthropic from "@anthropic-ai/sdk";

import * as agent from "./agent.mjs";
import * as answers from "./answers.mjs";
import { Asked } from "./asked.mjs";
import * as inputs from "./inputs.mjs";
import * as service from "./service.mjs";

globalThis.File ??= File; // Node 18 has it here only, and the SDK wants it to upload files
const CHECKS = { ...answers, ...inputs, ...service, ...agent };
const AT_ONCE = 12, SECONDS = 60;

const { url, key, stub, wanted } = JSON.parse(process.env.CLIENTS);
const client = new Anthropic({ apiKey: key, baseURL: url, maxRetries: 0 });
const results = {};

async function run(name, route) {
  const late = new Promise((_, reject) => setTimeout(reject, SECONDS * 1000, new Error(`over ${SECONDS} s`)).unref());
  try {
    return await Promise.race([CHECKS[name](new Asked(name, route, client, stub)), late]);
  } catch (error) {
    return `FAILED: ${error.name}: ${error.message}`;
  }
}

async function work() {
  for (let pair = wanted.shift(); pair; pair = wanted.shift()) results[pair.join("/")] = await run(...pair);
}

await Promise.all(Array.from({ length: AT_ONCE }, work));
process.stdout.write(JSON.stringify(results), () => process.exit(0));

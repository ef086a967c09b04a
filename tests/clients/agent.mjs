// A short session of the TypeScript Agent SDK through the proxy, as in agent.py.
import assert from "node:assert/strict";

import { createSdkMcpServer, query, tool } from "@anthropic-ai/claude-agent-sdk";
import { z } from "zod/v4";

import { holds, YES } from "./asked.mjs";

const { claude, home, environ } = JSON.parse(process.env.CLIENTS);

export async function agent_sdk(a) {
  const given = [];
  const add = tool("add", "Adds two numbers.", { a: z.number(), b: z.number() }, async (numbers) => {
    given.push(numbers);
    return { content: [{ type: "text", text: `the sum is ${numbers.a + numbers.b}` }] };
  });
  const options = {
    pathToClaudeCodeExecutable: claude, // the one of package-lock.json, instead of one inside the SDK
    model: a.model("claude-sonnet-4-6"),
    mcpServers: { sums: createSdkMcpServer({ name: "sums", tools: [add] }) },
    allowedTools: ["mcp__sums__add"],
    settingSources: [],
    cwd: home,
    env: environ,
  };
  const prompt = `${a.mark} [[tools: mcp__sums__add {"a": 2, "b": 3}]] [[text: five]]`;
  let last;
  for await (const message of query({ prompt, options })) last = message;
  assert.deepEqual([last.type, last.is_error, last.result], ["result", false, "five"]);
  assert.deepEqual(given, [{ a: 2, b: 3 }]);
  const body = await a.received();
  holds(body, "the sum is 5");
  assert(JSON.stringify(body.tools).includes("mcp__sums__add"));
  return YES;
}

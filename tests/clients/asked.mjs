// What each check of the TypeScript SDK gets: the same as asked.py, in JavaScript. The stand-in runs in the process of
// the tests, and is asked over HTTP.
import assert from "node:assert/strict";

export const YES = "yes", AS_TEXT = "as text", IN_PART = "in part", NOT = "not supported";
export const TOOL = {
  name: "weather",
  description: "Tells the weather of a town.",
  input_schema: { type: "object", properties: { town: { type: "string" } }, required: ["town"] },
};
export const OTHER_TOOL = { ...TOOL, name: "traffic" };

export const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
export const textOf = (message) => message.content.map((block) => block.text ?? "").join("");
export const callsOf = (message) => message.content.filter((block) => block.type === "tool_use");
export const said = (body) => JSON.stringify(body.messages);
// Where a text is looked for in what the model gets.
export const holds = (body, ...words) => {
  for (const each of words) assert(said(body).includes(each), `${each} did not reach Cortex: ${said(body)}`);
};

export class Asked {
  constructor(name, route, client, stub) {
    Object.assign(this, { name, route, client, stub, mark: `[${name}/typescript/${route}]`, isChat: route !== "messages" });
  }

  model(claude = "claude-haiku-4-5", gpt = "openai-gpt-4.1") {
    return { chat: claude, messages: `messages-${claude}`, gpt }[this.route];
  }

  user(words = "", ...blocks) {
    return { role: "user", content: [...blocks, { type: "text", text: `${this.mark} ${words}` }] };
  }

  body(words = "", more = {}, ...blocks) {
    return { model: this.model(), max_tokens: 500, messages: [this.user(words, ...blocks)], ...more };
  }

  ask(words, more, ...blocks) {
    return this.client.messages.create(this.body(words, more, ...blocks));
  }

  async records() {
    const answer = await fetch(`${this.stub}/_stub/requests?with=${encodeURIComponent(this.mark)}`);
    return (await answer.json()).requests;
  }

  async received() {
    return (await this.records()).filter((record) => record.status === 200).at(-1).body;
  }

  async waitFor(seen, seconds = 10) {
    for (const end = Date.now() + seconds * 1000; !(await this.records()).some(seen); await pause(0.05))
      assert(Date.now() < end, `not seen at the stand-in within ${seconds} s`);
  }
}

// The error of a call, which must be of this class.
export async function errorOf(call, kind) {
  try {
    await call;
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  throw new Error("answered");
}

// Check that an error is final and says these words.
export function refused(error, ...words) {
  assert.equal(error.type, "invalid_request_error");
  assert.equal(error.headers.get("x-should-retry"), "false");
  for (const each of words) assert(error.message.includes(each), error.message);
}

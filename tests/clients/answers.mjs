// Checks of the TypeScript SDK, with the names of those in answers.py.
import assert from "node:assert/strict";

import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod/v4";

import { callsOf, holds, IN_PART, NOT, OTHER_TOOL, said, textOf, TOOL, YES } from "./asked.mjs";

const ADAPTIVE = "claude-sonnet-4-6"; // the first Claude that thinks adaptively, and takes no prefill
const STRICT = "claude-opus-4-7"; // the first Claude with a fixed temperature
const BUDGET = { type: "enabled", budget_tokens: 2000 };
const PREFILL = { role: "assistant", content: "{" };

export async function message(a) {
  const answer = await a.ask("[[text: hello]]");
  assert.deepEqual([answer.type, answer.role, answer.stop_reason], ["message", "assistant", "end_turn"]);
  assert.equal(textOf(answer), "hello");
  assert(answer.model);
  assert(answer.id.startsWith("msg_"), answer.id);
  return YES;
}

export async function usage(a) {
  const { usage: used } = await a.ask("[[text: hello]]");
  assert(used.input_tokens > 0);
  assert(used.output_tokens > 0);
  assert.equal(typeof used.cache_creation_input_tokens, "number", "no cache_creation_input_tokens");
  assert.equal(typeof used.cache_read_input_tokens, "number", "no cache_read_input_tokens");
  return YES;
}

export async function system_prompt(a) {
  for (const system of ["be short", [{ type: "text", text: "be short" }, { type: "text", text: "be kind" }]]) {
    await a.ask("", { system });
    const body = await a.received();
    const told = JSON.stringify(a.isChat ? body.messages[0] : body.system);
    assert(told.includes("be short"));
    assert.equal(told.includes("be kind"), Array.isArray(system));
    assert(!a.isChat || body.messages[0].role === "system");
  }
  return YES;
}

export async function stream(a) {
  const kinds = [];
  let pieces = 0;
  const events = a.client.messages.stream(a.body("[[text: one two three four five six seven eight]]"));
  events.on("streamEvent", (event) => kinds.push(event.type)).on("text", () => (pieces += 1));
  const final = await events.finalMessage();
  assert.equal(textOf(final), "one two three four five six seven eight");
  assert(pieces > 1, `${pieces}`);
  assert.deepEqual([kinds.at(0), kinds.at(-1)], ["message_start", "message_stop"]);
  assert.equal(final.stop_reason, "end_turn");
  assert(final.id.startsWith("msg_"), final.id);
  return YES;
}

export async function stream_usage(a) {
  let first;
  for await (const event of await a.ask("[[text: hello]]", { stream: true })) {
    first ??= event.message.usage;
    if (event.type === "message_delta") assert(event.usage.output_tokens > 0);
  }
  assert(first.input_tokens > 0, "message_start says 0 input tokens");
  return YES;
}

export async function stream_tool_call(a) {
  const input = { town: "a town whose name is long enough for many pieces" };
  const deltas = [];
  const asked = a.body(`[[tools: weather ${JSON.stringify(input)}]]`, { tools: [TOOL] });
  const events = a.client.messages.stream(asked).on("inputJson", (piece) => deltas.push(piece));
  const final = await events.finalMessage();
  const [call] = callsOf(final);
  assert.deepEqual([call.name, call.input], ["weather", input]);
  assert.deepEqual(JSON.parse(deltas.join("")), input);
  assert.equal(final.stop_reason, "tool_use");
  return YES;
}

export async function parallel_tool_calls(a) {
  const towns = ["A", "B", "C"];
  const script = towns.map((town) => `weather {"town": "${town}"}`).join(" ; ");
  const asked = a.body(`[[tools: ${script}]] [[text: all three]]`, { tools: [TOOL] });
  const answer = await a.client.messages.create(asked);
  const calls = callsOf(answer);
  assert.deepEqual(calls.map((call) => call.input.town), towns);
  const results = calls.map(({ id, input }) => ({ type: "tool_result", tool_use_id: id, content: `sun in ${input.town}` }));
  const history = [...asked.messages, { role: "assistant", content: answer.content }, { role: "user", content: results }];
  assert.equal(textOf(await a.client.messages.create({ ...asked, messages: history })), "all three");
  holds(await a.received(), ...towns.map((town) => `sun in ${town}`));
  return YES;
}

export async function tool_choice(a) {
  const named = { type: "function", function: { name: "weather" } };
  for (const [type, expected] of Object.entries({ auto: "auto", any: "required", tool: named, none: "none" })) {
    const choice = { type, ...(type === "tool" && { name: "weather" }) };
    await a.ask("[[text: ok]]", { tools: [TOOL, OTHER_TOOL], tool_choice: choice });
    assert.deepEqual((await a.received()).tool_choice, a.isChat ? expected : choice);
  }
  return YES;
}

export async function tool_schema(a) {
  const input_schema = { type: "object", properties: { anything: true, town: { type: "string" } } };
  const beta = { betas: ["context-management-2025-06-27"], context_management: { edits: [] } };
  for (const more of [{}, beta]) {
    const asked = a.body('[[tools: weather {"town": "A"}]]', { tools: [{ ...TOOL, input_schema }], ...more });
    assert.deepEqual(callsOf(await a.client.beta.messages.create(asked))[0].input, { town: "A" });
  }
  return YES;
}

export async function tool_runner(a) {
  const ran = [];
  const weather = betaZodTool({
    name: "weather",
    description: "Tells the weather of a town.",
    inputSchema: z.object({ town: z.string() }),
    run: ({ town }) => (ran.push(town), `sun in ${town}`),
  });
  const script = '[[tools: weather {"town": "A"}]] [[tools: weather {"town": "B"}]] [[text: done]]';
  const last = await a.client.beta.messages.toolRunner(a.body(script, { tools: [weather] }));
  assert.deepEqual(ran, ["A", "B"]);
  assert.equal(textOf(last), "done");
  holds(await a.received(), "sun in A", "sun in B");
  return YES;
}

export async function structured_output(a) {
  const format = zodOutputFormat(z.object({ name: z.string() }));
  const answer = await a.client.messages.parse(a.body('[[text: {"name": "A"}]]', { output_config: { format } }));
  assert.deepEqual(answer.parsed_output, { name: "A" });
  const body = await a.received();
  const wanted = a.isChat ? body.response_format : body.output_config?.format;
  assert.equal(wanted?.type, "json_schema", `no schema reached Cortex: ${Object.keys(body)}`);
  assert(JSON.stringify(wanted).includes('"name"'));
  return YES;
}

export async function thinking(a) {
  for (const [model, wanted] of [["claude-haiku-4-5", BUDGET], [ADAPTIVE, { type: "adaptive" }]]) {
    const more = { thinking: wanted, max_tokens: 9000, model: a.model(model) };
    const answer = await a.ask("[[thinking: deep]] [[text: so]]", more);
    assert.equal(textOf(answer), "so");
    const sent = await a.received();
    if (a.route === "gpt") {
      assert.deepEqual(answer.content.map((block) => block.type), ["text"]);
      assert(!("reasoning" in sent || "thinking" in sent));
      continue;
    }
    const [first] = answer.content;
    assert.deepEqual([first.type, first.thinking, !!first.signature], ["thinking", "deep", true]);
    if (!sent.reasoning) assert.deepEqual(sent.thinking, wanted);
  }
  return a.route === "gpt" ? NOT : YES;
}

const THINK = '[[thinking: deep]] [[tools: weather {"town": "A"}]] [[text: done]]';

async function nextTurn(a, asked, answer) {
  const result = { type: "tool_result", tool_use_id: callsOf(answer)[0].id, content: "sun" };
  const history = [{ role: "assistant", content: answer.content }, { role: "user", content: [result] }];
  const last = await a.client.messages.create({ ...asked, messages: [...asked.messages, ...history] });
  assert.equal(textOf(last), "done");
  const sent = await a.received();
  holds(sent, "sun");
  return said(sent).includes("deep") && said(sent).includes("signature") ? YES : NOT;
}

export async function thinking_sent_back(a) {
  const asked = a.body(THINK, { tools: [TOOL], thinking: BUDGET, max_tokens: 9000 });
  return nextTurn(a, asked, await a.client.messages.create(asked));
}

export async function thinking_of_a_stream_sent_back(a) {
  const asked = a.body(THINK, { tools: [TOOL], thinking: BUDGET, max_tokens: 9000 });
  const answer = await a.client.messages.stream(asked).finalMessage();
  assert(a.route === "gpt" || answer.content[0].type === "thinking");
  return nextTurn(a, asked, answer);
}

export async function effort(a) {
  const field = { chat: "reasoning", messages: "output_config", gpt: "reasoning_effort" }[a.route];
  const reached = [];
  for (const more of [{ thinking: { type: "adaptive" } }, {}]) {
    const model = a.model(ADAPTIVE, "openai-gpt-5.1");
    await a.ask("", { output_config: { effort: "low" }, max_tokens: 9000, model, ...more });
    const got = (await a.received())[field];
    reached.push((got?.effort ?? got) === "low");
  }
  assert(reached[0]);
  return reached[1] ? YES : IN_PART;
}

export async function stop_sequences(a) {
  const answer = await a.ask("[[text: one two three]]", { stop_sequences: ["two"] });
  assert.deepEqual((await a.received())[a.isChat ? "stop" : "stop_sequences"], ["two"]);
  if (textOf(answer) === "one two three") {
    assert.equal(answer.stop_reason, "end_turn");
    return NOT;
  }
  assert.equal(textOf(answer), "one ");
  return answer.stop_reason === "stop_sequence" ? YES : IN_PART;
}

export async function max_tokens(a) {
  const asked = a.body(`[[text: ${"word ".repeat(100)}]]`, { max_tokens: 5 });
  const answer = await a.client.messages.create(asked);
  assert.equal(answer.stop_reason, "max_tokens");
  assert(answer.usage.output_tokens <= 5);
  assert.equal((await a.client.messages.stream(asked).finalMessage()).stop_reason, "max_tokens");
  return YES;
}

export async function sampling(a) {
  const asked = { temperature: 0.2, top_p: 0.9, top_k: 5 };
  await a.ask("", asked);
  const sent = await a.received();
  assert.deepEqual([sent.temperature, sent.top_p, sent.top_k ?? 5], [0.2, 0.9, 5]);
  return sent.top_k ? YES : IN_PART;
}

export async function sampling_of_newer_models(a) {
  await a.ask("", { temperature: 0.2, model: a.model(STRICT) });
  return (await a.received()).temperature === 0.2 ? YES : NOT;
}

async function prefilled(a, model) {
  const asked = a.body("[[text: a]] [[text: b]]", { model });
  await a.client.messages.create({ ...asked, messages: [...asked.messages, PREFILL] });
  const { messages } = await a.received();
  const begun = messages.filter((message) => message.role === "assistant");
  assert.equal(begun.length, 1);
  assert(JSON.stringify(begun[0].content).includes("{"));
  return messages.at(-1) === begun[0] ? YES : NOT;
}

export const prefill = (a) => prefilled(a, a.model());

export const prefill_of_newer_models = (a) => prefilled(a, a.model(ADAPTIVE));

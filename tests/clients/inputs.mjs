// Checks of the TypeScript SDK, with the names of those in inputs.py.
import assert from "node:assert/strict";

import { BadRequestError } from "@anthropic-ai/sdk";

import { AS_TEXT, callsOf, errorOf, holds, IN_PART, NOT, OTHER_TOOL, refused, said, textOf, TOOL, YES } from "./asked.mjs";

const PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
const IMAGE = { type: "image", source: { type: "base64", media_type: "image/png", data: PIXEL } };
const PDF = Buffer.from("%PDF-1.4 a page").toString("base64");
const document = (source, more) => ({ type: "document", source, ...more });
const PLAIN = { type: "text", media_type: "text/plain", data: "the harvest was good" };
const PARTS = { type: "content", content: [{ type: "text", text: "the winter was mild" }] };
const FOUND = {
  type: "search_result",
  source: "https://example.com/towns",
  title: "Towns",
  content: [{ type: "text", text: "the town is old" }],
  citations: { enabled: true },
};

// A call and its result, as the end of a history.
const results = (content, more) => [
  { role: "assistant", content: [{ type: "tool_use", id: "toolu_1", name: "weather", input: { town: "A" } }] },
  { role: "user", content: [{ type: "tool_result", tool_use_id: "toolu_1", content, ...more }] },
];

// What the stand-in receives of a request that ends with this history.
async function after(a, history) {
  const asked = a.body("[[text: done]]", { tools: [TOOL] });
  const answer = await a.client.messages.create({ ...asked, messages: [...asked.messages, ...history] });
  assert.equal(textOf(answer), "done");
  return a.received();
}

const holdsImage = (body) => said(body).includes(PIXEL) && /"image_url"|"source"/.test(said(body));

export async function image(a) {
  await a.ask("", {}, IMAGE);
  assert(holdsImage(await a.received()));
  return YES;
}

export async function image_by_url(a) {
  await a.ask("", {}, { type: "image", source: { type: "url", url: "https://example.com/a.png" } });
  holds(await a.received(), "left out");
  return NOT;
}

export async function text_document(a) {
  for (const [source, words] of [[PLAIN, "the harvest was good"], [PARTS, "the winter was mild"]]) {
    await a.ask("", {}, document(source, { title: "Report", context: "of last year", citations: { enabled: true } }));
    holds(await a.received(), words, "Report");
  }
  return AS_TEXT;
}

export async function pdf_document(a) {
  const asked = a.body("", {}, document({ type: "base64", media_type: "application/pdf", data: PDF }));
  await a.client.messages.create(asked, { maxRetries: 2 });
  const body = await a.received();
  if (said(body).includes(PDF)) return YES;
  holds(body, "left out");
  return NOT;
}

export async function search_result(a) {
  await a.ask("", {}, FOUND);
  holds(await a.received(), "the town is old", "https://example.com/towns");
  return AS_TEXT;
}

export async function tool_result_error(a) {
  const good = await after(a, results([{ type: "text", text: "x" }]));
  const bad = await after(a, results([{ type: "text", text: "x" }], { is_error: true }));
  if (!a.isChat) {
    assert.equal(bad.messages.at(-1).content[0].is_error, true);
    return YES;
  }
  assert.notEqual(said(good), said(bad), "the model is not told that the call failed");
  assert.match(said(bad), /error|fail/i);
  return AS_TEXT;
}

export async function tool_result_image(a) {
  const body = await after(a, results([{ type: "text", text: "a picture" }, IMAGE]));
  holds(body, "a picture");
  assert(holdsImage(body));
  return YES;
}

export async function tool_result_document(a) {
  const texts = new Map([[document(PLAIN), "the harvest was good"], [document(PARTS), "the winter was mild"]]);
  for (const [block, words] of texts.set(FOUND, "the town is old")) holds(await after(a, results([block])), words);
  return AS_TEXT;
}

export async function results_of_server_tools(a) {
  const page = { type: "web_fetch_result", url: "https://example.com", content: document(PLAIN) };
  const run = { type: "code_execution_result", stdout: "forty-two", stderr: "", return_code: 0, content: [] };
  const server_tool = (id, name, input) => ({ type: "server_tool_use", id, name, input });
  const blocks = [
    { type: "mcp_tool_use", id: "mcptoolu_1", name: "look", server_name: "towns", input: { town: "A" } },
    { type: "mcp_tool_result", tool_use_id: "mcptoolu_1", content: [{ type: "text", text: "it is old" }] },
    server_tool("srvtoolu_1", "web_fetch", { url: "https://example.com" }),
    { type: "web_fetch_tool_result", tool_use_id: "srvtoolu_1", content: page },
    server_tool("srvtoolu_2", "code_execution", { code: "print(42)" }),
    { type: "code_execution_tool_result", tool_use_id: "srvtoolu_2", content: run },
    { type: "text", text: "I have looked." },
  ];
  const asked = a.body("[[text: looked]] [[text: done]]");
  const history = [{ role: "assistant", content: blocks }, { role: "user", content: "and now?" }];
  assert(textOf(await a.client.messages.create({ ...asked, messages: [...asked.messages, ...history] })));
  holds(await a.received(), "it is old", "the harvest was good", "forty-two", "I have looked.");
  return AS_TEXT;
}

export async function cache_marks(a) {
  const text = `${a.mark} ${"rule ".repeat(2000)}`;
  const asked = a.body("", { system: [{ type: "text", text, cache_control: { type: "ephemeral" } }] });
  const [first, second] = [await a.client.messages.create(asked), await a.client.messages.create(asked)];
  if (a.route === "gpt") {
    assert(!JSON.stringify(await a.received()).includes("cache_control"));
    return NOT;
  }
  const charged = (await a.records()).map((record) => record.usage);
  assert(charged[0].cache_write > 2000 && charged[1].cache_read > 2000, JSON.stringify(charged));
  assert.equal(second.usage.cache_read_input_tokens, charged[1].cache_read);
  return first.usage.cache_creation_input_tokens === charged[0].cache_write ? YES : IN_PART;
}

export async function cache_mark_of_the_request(a) {
  const asked = a.body("long ".repeat(2000), { cache_control: { type: "ephemeral" } });
  await a.client.messages.create(asked);
  await a.client.messages.create(asked);
  return (await a.records())[1].usage.cache_read > 2000 ? YES : NOT;
}

export async function metadata(a) {
  await a.ask("", { metadata: { user_id: "somebody" } });
  return JSON.stringify(await a.received()).includes("somebody") ? YES : NOT;
}

export async function threads(a) {
  for (const thread of [{ type: "create" }, { type: "continue", previous_message_id: "msg_1" }]) {
    const error = await errorOf(a.client.beta.messages.create(a.body("", { thread })), BadRequestError);
    refused(error);
    assert.equal(error.errorCode, "thread_unsupported_request");
  }
  assert.deepEqual(await a.records(), []);
  return NOT;
}

// Whether a beta's fields are left out of a request that is answered all the same.
async function dropped(a, beta, fields) {
  assert.equal(textOf(await a.client.beta.messages.create(a.body("[[text: ok]]", { betas: [beta], ...fields }))), "ok");
  const sent = await a.received();
  for (const field of Object.keys(fields)) assert(!(field in sent), field);
  return NOT;
}

export const context_management = (a) =>
  dropped(a, "context-management-2025-06-27", { context_management: { edits: [{ type: "clear_tool_uses_20250919" }] } });

export const mcp_servers = (a) =>
  dropped(a, "mcp-client-2025-11-20", { mcp_servers: [{ type: "url", url: "https://example.com/mcp", name: "towns" }] });

export const container = (a) => dropped(a, "code-execution-2025-08-25", { container: "container_1" });

export const service_tier = (a) => dropped(a, "context-1m-2025-08-07", { service_tier: "auto", speed: "fast" });

async function refusedTool(a, type, name) {
  refused(await errorOf(a.ask("", { tools: [{ type, name }] }), BadRequestError), type);
  assert.deepEqual(await a.records(), []);
  return NOT;
}

export const server_tool = (a) => refusedTool(a, "web_search_20250305", "web_search");

export const client_tool_of_anthropic = (a) => refusedTool(a, "bash_20250124", "bash");

export async function server_tool_beside_others(a) {
  const tools = [{ type: "web_search_20250305", name: "web_search" }, TOOL, OTHER_TOOL];
  assert.equal(callsOf(await a.ask('[[tools: weather {"town": "A"}]]', { tools }))[0].name, "weather");
  const sent = (await a.received()).tools.map((tool) => tool.name ?? tool.function.name);
  assert.deepEqual(sent, ["weather", "traffic"]);
  return NOT;
}

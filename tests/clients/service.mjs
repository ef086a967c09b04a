// Checks of the TypeScript SDK, with the names of those in service.py.
import assert from "node:assert/strict";

import Anthropic, { toFile } from "@anthropic-ai/sdk";

import { errorOf, holds, IN_PART, NOT, pause, refused, textOf, YES } from "./asked.mjs";

export async function bad_request(a) {
  const hologram = { role: "user", content: [{ type: "hologram", words: a.mark }] };
  const wrong = [
    ...["five", 0].map((value) => ["max_tokens", value]),
    ...["hi", [5], [], [{ content: `${a.mark} no role` }], [hologram]].map((value) => ["messages", value]),
    ...[["tools", "no"], ["temperature", "hot"], ["stream", "yes"], ["tool_choice", "any"], ["thinking", true]],
  ];
  const passed = [];
  for (const [field, value] of wrong) {
    try {
      await a.client.post("/v1/messages", { body: a.body("", { [field]: value }) });
      passed.push(`${field}=${JSON.stringify(value)}: answered`);
    } catch (error) {
      const isRight = error.status === 400 && error.type === "invalid_request_error" && error.message.includes(field);
      if (!isRight || error.headers.get("x-should-retry") !== "false") passed.push(`${field}: ${error.message}`);
    }
  }
  assert.deepEqual(passed, []);
  assert.deepEqual(await a.records(), []);
  return YES;
}

export async function wrong_key(a) {
  const client = a.client.withOptions({ apiKey: "sk-ant-not-the-key" });
  const error = await errorOf(client.messages.create(a.body()), Anthropic.AuthenticationError);
  assert.equal(error.type, "authentication_error");
  assert(error.message.includes("key"));
  assert.deepEqual(await a.records(), []);
  return YES;
}

export async function both_headers_of_a_key(a) {
  const { apiKey, baseURL } = a.client;
  const client = new Anthropic({ apiKey: null, authToken: apiKey, baseURL, maxRetries: 0 });
  assert.equal(textOf(await client.messages.create(a.body("[[text: bearer]]"))), "bearer");
  assert.equal(textOf(await a.ask("[[text: key]]")), "key");
  return YES;
}

export async function permission(a) {
  const error = await errorOf(a.ask("[[error: no_role]]"), Anthropic.PermissionDeniedError);
  assert.equal(error.type, "permission_error");
  assert(error.message.includes("GRANT DATABASE ROLE"));
  return YES;
}

export async function unknown_model(a) {
  refused(await errorOf(a.ask("", { model: "no-such-model" }), Anthropic.BadRequestError), "no-such-model");
  return IN_PART;
}

export async function rate_limit(a) {
  assert.equal((await errorOf(a.ask("[[error: too_many]]"), Anthropic.RateLimitError)).type, "rate_limit_error");
  return YES;
}

export async function overloaded(a) {
  const error = await errorOf(a.ask("[[error: throttled]]"), Anthropic.RateLimitError);
  assert(["rate_limit_error", "overloaded_error"].includes(error.type), error.type);
  return YES;
}

export async function server_error(a) {
  for (const fault of ["internal", "inference_timeout"]) {
    const error = await errorOf(a.ask(`[[error: ${fault}]]`), Anthropic.InternalServerError);
    assert(["api_error", "overloaded_error", "timeout_error"].includes(error.type), error.type);
  }
  return YES;
}

export async function retried(a) {
  const client = a.client.withOptions({ maxRetries: 2 });
  const statuses = async () => (await a.records()).map((record) => record.status);
  const answer = await client.messages.create(a.body("[[error: too_many]] [[text: second try]]"));
  assert.equal(textOf(answer), "second try");
  assert.deepEqual(await statuses(), [429, 200]);
  const error = await errorOf(client.messages.create(a.body("[[error: budget]]")), Anthropic.APIError);
  assert.equal(error.status, 402);
  assert.equal(error.headers.get("x-should-retry"), "false");
  assert.deepEqual(await statuses(), [429, 200, 402]);
  return YES;
}

export async function error_in_a_stream(a) {
  const events = a.client.messages.stream(a.body('[[error: cut {"after": 4}]] [[stream: 30]]'));
  const error = await errorOf(events.finalMessage(), Anthropic.APIError);
  assert(["api_error", "overloaded_error"].includes(error.type), error.type);
  return YES;
}

export async function request_ids(a) {
  const answer = await a.ask();
  assert(answer._request_id, "the answer has no request id");
  const events = a.client.messages.stream(a.body());
  await events.finalMessage();
  assert(events.request_id, "the stream has no request id");
  assert.notEqual(events.request_id, answer._request_id);
  return YES;
}

export async function request_ids_of_errors(a) {
  const calls = [
    [a.ask("[[error: too_many]]"), Anthropic.RateLimitError],
    [a.ask("", { messages: [] }), Anthropic.BadRequestError],
    [a.client.models.retrieve("no-such-model"), Anthropic.NotFoundError],
  ];
  for (const error of await Promise.all(calls.map((call) => errorOf(...call)))) assert(error.requestID, error.message);
  return YES;
}

export async function token_counting(a) {
  const count = async (content) =>
    (await a.client.messages.countTokens({ model: a.model(), messages: [{ role: "user", content }] })).input_tokens;
  const [short, long] = [await count("one"), await count("one ".repeat(500))];
  assert(short > 0 && short < long && long < 2000, `${short} ${long}`);
  return YES;
}

export async function models_list(a) {
  const listed = [];
  for await (const model of a.client.models.list()) listed.push(model);
  const found = listed.find((model) => model.id === a.model());
  assert.equal(found.type, "model");
  assert(found.display_name);
  return YES;
}

export async function models_retrieve(a) {
  assert.equal((await a.client.models.retrieve(a.model())).id, a.model());
  const error = await errorOf(a.client.models.retrieve("no-such-model"), Anthropic.NotFoundError);
  assert.equal(error.type, "not_found_error");
  return YES;
}

async function missingApi(call) {
  const error = await errorOf(call, Anthropic.NotFoundError);
  assert.equal(error.type, "not_found_error");
  assert.equal(error.headers.get("x-should-retry"), "false");
  return NOT;
}

export const batches = (a) =>
  missingApi(a.client.messages.batches.create({ requests: [{ custom_id: "1", params: a.body() }] }));

export const files = async (a) =>
  missingApi(a.client.beta.files.upload({ file: await toFile(Buffer.from("text"), "a.txt", { type: "text/plain" }) }));

export async function file_in_a_message(a) {
  const block = { type: "document", source: { type: "file", file_id: "file_1" } };
  await a.client.beta.messages.create(a.body("", { betas: ["files-api-2025-04-14"] }, block));
  holds(await a.received(), "left out");
  return NOT;
}

export async function cancelled_stream(a) {
  for await (const event of await a.ask("[[stream: 400 0.05]]", { stream: true }))
    if (event.type === "content_block_delta") break;
  await a.waitFor((record) => record.aborted);
  return YES;
}

export async function cancelled_request(a) {
  const stop = new AbortController();
  const asked = a.body('[[error: slow_start {"seconds": 60}]]');
  const call = errorOf(a.client.messages.create(asked, { signal: stop.signal }), Anthropic.APIUserAbortError);
  await a.waitFor(() => true);
  stop.abort();
  await call;
  await a.waitFor((record) => record.aborted);
  return YES;
}

export async function timeout(a) {
  const asked = a.body('[[error: slow_start {"seconds": 60}]]');
  await errorOf(a.client.messages.create(asked, { timeout: 1000 }), Anthropic.APIConnectionTimeoutError);
  await a.waitFor((record) => record.aborted);
  return YES;
}

export async function many_at_once(a) {
  const expected = Array.from({ length: 32 }, (_, number) => `answer ${number}`);
  const answers = await Promise.all(expected.map((text) => a.ask(`[[text: ${text}]]`)));
  assert.deepEqual(answers.map(textOf), expected);
  return YES;
}

export async function long_stream(a) {
  const text = await a.client.messages.stream(a.body("[[stream: 400 0.005]]", { max_tokens: 8000 })).finalText();
  assert.equal(text, Array.from({ length: 400 }, (_, number) => `w${number}`).join(" "));
  return YES;
}

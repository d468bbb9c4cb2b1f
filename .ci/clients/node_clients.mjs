// Calls a server with clients for Node; prints one line for each call: node node_clients.mjs URL MODEL [embeddings]

import Anthropic from "@anthropic-ai/sdk";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const [url, model, kind] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const anthropic = new Anthropic({ baseURL: url, apiKey: "none" });
const sdk = createOpenAICompatible({ name: "llmserve", baseURL: `${url}/v1` });
const prompt = "What is the capital of France?";
const messages = [{ role: "user", content: prompt }];
const chat = { model, messages, max_tokens: 60 };

const place = { type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"], additionalProperties: false };
const tools = [{ type: "function", function: { name: "weather", parameters: place } }];

const calls = {
  "openai, chat": async () => (await client.chat.completions.create(chat)).choices[0].message.content,
  "openai, chat streamed": async () => {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } }))
      text += chunk.usage ? ` (${chunk.usage.completion_tokens} tokens)` : (chunk.choices[0].delta.content ?? "");
    return text;
  },
  "openai, chat with the stream helper": async () => await client.chat.completions.stream(chat).finalContent(),
  "openai, chat with a JSON schema": async () =>
    JSON.parse((await client.chat.completions.create({ ...chat, response_format: { type: "json_schema", json_schema: { name: "place", schema: place } } })).choices[0].message.content),
  "openai, chat with a tool": async () => {
    const answer = await client.chat.completions.create({ ...chat, tools, tool_choice: "required" });
    return JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments);
  },
  "openai, a stream that the client ends": async () => {
    const stream = await client.chat.completions.create({ ...chat, max_tokens: 400, stream: true });
    for await (const _ of stream) stream.controller.abort();
    return "ended";
  },
  "openai, an unknown model": async () => {
    const error = await client.chat.completions.create({ ...chat, model: "absent" }).catch((error) => error);
    if (error.status !== 404 || error.code !== "model_not_found") throw error;
    return error.message;
  },
  "openai, completions with logprobs": async () => (await client.completions.create({ model, prompt: "One, two,", max_tokens: 8, logprobs: 2 })).choices[0].text,
  "openai, responses": async () => (await client.responses.create({ model, input: prompt, max_output_tokens: 16 })).output_text,
  "openai, responses streamed": async () => (await client.responses.stream({ model, input: prompt, max_output_tokens: 16 }).finalResponse()).output_text,
  "openai, models": async () => (await client.models.list()).data.map(({ id }) => id),
  "anthropic, messages": async () => (await anthropic.messages.create({ model, messages, max_tokens: 12 })).content[0].text,
  "anthropic, messages streamed": async () => (await anthropic.messages.stream({ model, messages, max_tokens: 12 }).finalMessage()).content[0].text,
  "anthropic, count_tokens": async () => (await anthropic.messages.countTokens({ model, messages })).input_tokens,
  "ai-sdk, text": async () => (await generateText({ model: sdk(model), prompt, maxOutputTokens: 8 })).text,
  "ai-sdk, text streamed": async () => {
    let text = "";
    for await (const part of streamText({ model: sdk(model), prompt, maxOutputTokens: 8 }).textStream) text += part;
    return text;
  },
};

const vectors = {
  "openai, embeddings": async () => (await client.embeddings.create({ model, input: [prompt, "Hello"] })).data.map(({ embedding }) => embedding.length),
};

for (const [name, call] of Object.entries(kind ? vectors : calls)) {
  try {
    console.log(`ok | ${name} | ${JSON.stringify(await call()).slice(0, 90)}`);
  } catch (error) {
    console.log(`failed | ${name} | ${error.constructor.name}: ${error.message.slice(0, 300)}`);
  }
}

// The Vercel AI SDK: each provider and API with a text, a stream, a tool that runs, and an object.
import {createAnthropic} from "@ai-sdk/anthropic";
import {createOpenAI} from "@ai-sdk/openai";
import {createOpenAICompatible} from "@ai-sdk/openai-compatible";
import {generateObject, generateText, stepCountIs, streamText, tool} from "ai";
import {z} from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [url, apiKey] = process.argv.slice(2);
const baseURL = `${url}/v1`;
const openai = createOpenAI({baseURL, apiKey});
const models = {
  "openai responses": openai.responses("sim"),
  "openai chat": openai.chat("sim"),
  "openai completion": openai.completion("sim"),
  "openai-compatible chat": createOpenAICompatible({name: "headrace", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true})("sim"),
  anthropic: createAnthropic({baseURL, apiKey})("sim"),
};
const level = tool({
  description: "The level of a river.",
  inputSchema: z.object({river: z.string()}),
  execute: async ({river}) => `${river}: 3 m`,
});
const prompt = "How high is the water?";
const seen = {};
for (const [name, model] of Object.entries(models)) {
  const plain = await generateText({model, prompt, maxOutputTokens: 200, maxRetries: 0});
  const result = {text: plain.text, finish: plain.finishReason, usage: plain.usage.outputTokens};
  let failure = null;
  const stream = streamText({model, prompt, maxRetries: 0, onError: ({error}) => { failure = String(error); }});
  let text = "";
  for await (const part of stream.textStream) text += part;
  result.streamed = {text, finish: await stream.finishReason, usage: (await stream.usage).outputTokens, failure};
  if (name !== "openai completion") {
    const called = await generateText({model, prompt, tools: {level}, stopWhen: stepCountIs(3), maxRetries: 0});
    result.steps = called.steps.map((step) => ({
      finish: step.finishReason, results: step.toolResults.map((item) => item.output), text: step.text}));
    const streamed = streamText({model, prompt, tools: {level}, stopWhen: stepCountIs(3), maxRetries: 0});
    const parts = [];
    for await (const part of streamed.fullStream) if (parts.at(-1) !== part.type) parts.push(part.type);
    result.parts = parts;
    result.object = (await generateObject({model, prompt, schema: z.object({wheels: z.number().int()}), maxRetries: 0})).object;
  }
  seen[name] = result;
}
try {
  await generateText({model: openai.chat("nobody"), prompt, maxRetries: 0});
} catch (error) {
  seen.error = {status: error.statusCode, message: error.message};
}
console.log(JSON.stringify(seen));

// ai: generateText and streamText, on openai-compatible's chat and on openai's chat and responses.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { AND_THEN, KEY, MODEL, SCHEMAS, TASK, USES, tell, url, way } from "./weather.mjs";

const [provider, verb] = way.split(".");
const at = { baseURL: `${url}/v1`, apiKey: KEY };
const MODELS = {
  compatible: () => createOpenAICompatible({ name: "slime", ...at })(MODEL),
  chat: () => createOpenAI(at).chat(MODEL),
  responses: () => createOpenAI(at).responses(MODEL),
};
const tools = Object.fromEntries(
  Object.entries(SCHEMAS).map(([name, schema]) => [
    name,
    tool({ inputSchema: jsonSchema(schema), execute: async (input) => USES[name](input) }),
  ]),
);

async function solve(messages) {
  const asked = { model: MODELS[provider](), messages, tools, stopWhen: stepCountIs(9) };
  const result = verb === "generate" ? await generateText(asked) : streamText(asked);
  const answer = await result.text;
  messages.push(...(await result.response).messages);
  return answer;
}

const messages = [{ role: "user", content: TASK }];
const first = await solve(messages);
messages.push({ role: "user", content: AND_THEN });
tell(first, await solve(messages));

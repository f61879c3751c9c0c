// openai: chat completions, asked whole, streamed through `.stream()`, and by `runTools`.
import OpenAI from "openai";
import { AND_THEN, KEY, MODEL, SCHEMAS, TASK, USES, tell, url, way } from "./weather.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: KEY });
const tools = Object.entries(SCHEMAS).map(([name, parameters]) => ({
  type: "function",
  function: { name, parameters },
}));
const runnable = tools.map((tool) => ({
  type: "function",
  function: { ...tool.function, parse: JSON.parse, function: USES[tool.function.name] },
}));

const ONE_TURN = {
  whole: async (asked) => (await client.chat.completions.create(asked)).choices[0].message,
  stream: async (asked) => client.chat.completions.stream(asked).finalMessage(),
};

async function loop(messages) {
  for (;;) {
    const message = await ONE_TURN[way]({ model: MODEL, messages, tools });
    messages.push(message);
    if (!message.tool_calls?.length) return message.content;
    for (const { id, function: used } of message.tool_calls) {
      const content = USES[used.name](JSON.parse(used.arguments));
      messages.push({ role: "tool", tool_call_id: id, content });
    }
  }
}

async function runTools(messages) {
  const stream = way === "runTools-stream";
  const runner = client.chat.completions.runTools({ model: MODEL, messages, tools: runnable, stream });
  const answer = await runner.finalContent();
  messages.splice(0, messages.length, ...runner.messages);
  return answer;
}

const solve = way in ONE_TURN ? loop : runTools;
const messages = [{ role: "user", content: TASK }];
const first = await solve(messages);
messages.push({ role: "user", content: AND_THEN });
tell(first, await solve(messages));

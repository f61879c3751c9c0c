// openai: responses, whole, streamed, and continued by `previous_response_id`.
import OpenAI from "openai";
import { AND_THEN, KEY, MODEL, SCHEMAS, TASK, USES, tell, url, way } from "./weather.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: KEY });
const tools = Object.entries(SCHEMAS).map(([name, parameters]) => ({
  type: "function",
  name,
  parameters,
  strict: false,
}));

const WAYS = {
  whole: (asked) => client.responses.create(asked),
  stream: (asked) => client.responses.stream(asked).finalResponse(),
  previous: (asked) => client.responses.create(asked),
};

let previous;

// Asks and uses tools until there is an answer; `input` grows, or holds only what is new.
async function solve(input) {
  for (;;) {
    const asked = { model: MODEL, input, tools, store: way === "previous" };
    if (previous) asked.previous_response_id = previous;
    const response = await WAYS[way](asked);
    if (way === "previous") {
      previous = response.id;
      input.length = 0;
    } else {
      input.push(...response.output);
    }
    const calls = response.output.filter((item) => item.type === "function_call");
    if (!calls.length) return response.output_text;
    for (const { name, call_id, arguments: given } of calls) {
      input.push({ type: "function_call_output", call_id, output: USES[name](JSON.parse(given)) });
    }
  }
}

const input = [{ role: "user", content: TASK }];
const first = await solve(input);
input.push({ role: "user", content: AND_THEN });
tell(first, await solve(input));

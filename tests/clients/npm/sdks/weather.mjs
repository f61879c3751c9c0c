// The task that every SDK solves, its tools, and how a program tells what it found out.
// A program is run as `PROGRAM URL WAY`: where the router is, and which of its ways it shall go.

export const MODEL = "qwen3";
export const KEY = "none"; // the router checks no keys; SDKs want one
export const TASK = "Weather task: how warm are Paris and Tōkyō 🗼, added up?";
export const AND_THEN = "Thanks 🙂! And\n\n  in words?";

const WEATHER = { Paris: "21 °C 🌤", "Tōkyō 🗼": '9 °C;  "rain" ☔\n' };

export const USES = {
  get_weather: ({ city }) => WEATHER[city],
  add: ({ a, b }) => `${a + b}`,
};

export const SCHEMAS = {
  get_weather: {
    type: "object",
    properties: { city: { type: "string" }, days: { type: "integer", default: 1 } },
    required: ["city"],
  },
  add: {
    type: "object",
    properties: { a: { type: "integer" }, b: { type: "integer" } },
    required: ["a", "b"],
  },
};

export const [url, way] = process.argv.slice(2);

export const tell = (...answers) => process.stdout.write(JSON.stringify(answers));

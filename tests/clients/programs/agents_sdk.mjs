// OpenAI's Agents SDK for JavaScript, by its defaults: a tool loop, a second turn, a stream, a typed answer.
import { Agent, run, setTracingDisabled, tool } from "@openai/agents";
import { z } from "zod";

setTracingDisabled(true); // It would send traces to OpenAI.
const model = process.env.MODEL;
const asked = [];
const weather = tool({
  name: "get_weather", description: "The weather of a city.", parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => { asked.push(city); return "sunny"; },
});
const agent = new Agent({ name: "Weather", instructions: "Help.", model, tools: [weather] });
const first = await run(agent, "TOOL: the weather?");
const second = await run(agent, [...first.history, { role: "user", content: "And now?" }]);
const stream = await run(agent, "TOOL: the weather?", { stream: true });
for await (const _ of stream);
await stream.completed;
const typed = await run(new Agent({ name: "Place", model, outputType: z.object({ city: z.string() }) }), "Where?");
console.log(JSON.stringify({
  first: first.finalOutput, second: second.finalOutput, stream: stream.finalOutput, typed: typed.finalOutput.city, asked,
}));

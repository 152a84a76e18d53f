// Vercel's AI SDK, by its defaults: text, a tool loop whole and streamed, a second turn, a typed answer.
import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const openai = createOpenAI({ baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY });
const model = openai(process.env.MODEL);
const asked = [];
const tools = {
  get_weather: tool({
    description: "The weather of a city.", inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => { asked.push(city); return "sunny"; },
  }),
};
const stopWhen = stepCountIs(4);
const messages = [{ role: "user", content: "TOOL: the weather?" }];
const first = await generateText({ model, messages, tools, stopWhen });
messages.push(...first.response.messages, { role: "user", content: "And now?" });
const second = await generateText({ model, messages, tools, stopWhen });
const stream = streamText({ model, prompt: "TOOL: the weather?", tools, stopWhen });
const errors = [];
for await (const part of stream.fullStream) if (part.type === "error") errors.push(String(part.error));
const typed = await generateObject({ model, prompt: "Where?", schema: z.object({ city: z.string() }) });
console.log(JSON.stringify({
  first: first.text, second: second.text, stream: await stream.text, typed: typed.object.city, asked, errors,
}));

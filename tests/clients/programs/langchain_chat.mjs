// LangChain.js: chat and Responses, a tool loop, `batch`, a typed answer; `generate` with several prompts and `n`.
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAI } from "@langchain/openai";
import { z } from "zod";

const { MODEL, TINY, OPENAI_BASE_URL: baseURL } = process.env;
const configuration = { baseURL };
const weather = tool(async ({ city }) => `sunny in ${city}`, {
  name: "get_weather", description: "The weather of a city.", schema: z.object({ city: z.string() }),
});

async function loop(model) {
  const bound = model.bindTools([weather]);
  const turns = [new HumanMessage("TOOL: the weather?")];
  const called = await bound.invoke(turns);
  const [call] = called.tool_calls;
  turns.push(called, new ToolMessage({ content: await weather.invoke(call.args), tool_call_id: call.id }));
  return [call.args, (await bound.invoke(turns)).text];
}

const chat = new ChatOpenAI({ model: MODEL, configuration });
let streamed = "";
for await (const chunk of await chat.stream("Hi")) streamed += chunk.text;
const several = await new ChatOpenAI({ model: TINY, n: 2, maxTokens: 4, configuration })
  .generate([[new HumanMessage("Hi")], [new HumanMessage("Ho")]]);
const texts = await new OpenAI({ model: TINY, n: 2, maxTokens: 4, configuration }).generate(["Once", "Twice", "More"]);
console.log(JSON.stringify({
  chat: await loop(chat),
  responses: await loop(new ChatOpenAI({ model: MODEL, useResponsesApi: true, configuration })),
  stream: streamed,
  batch: (await chat.batch(["Hi", "Ho", "Hum"])).map((answer) => answer.text),
  typed: (await chat.withStructuredOutput(z.object({ city: z.string() }), { method: "jsonSchema" }).invoke("Where?")).city,
  chat_n: several.generations.map((row) => row.length),
  texts_n: texts.generations.map((row) => row.length),
}));

"""An OpenAI-compatible HTTP server on llama.cpp that serves many requests in one decode loop.

Modules, from HTTP inwards. An arrow reads "may import":

    __main__ → process → server → exchange, answers, prompts, serving → loaded → engine, embedder → model, sampling
    pure: errors, schema, text, tools, slots, queue, gbnf, template, memory, metrics
    files: source, fetch, gguf, machine

Only batch, context, embedder, engine, machine, model and sampling call the llama.cpp library.

The package imports nothing from the rest of the project. Other components reach it over HTTP only.
"""

__version__ = "0.1.0"

"""An OpenAI-compatible HTTP server on llama.cpp that serves many requests in one decode loop.

Rooms, from the wire inwards; an arrow reads "may import":

    __main__ → server → prompts, answers, serving → loaded → engine, embedder → model, sampling → (llama_cpp)
    pure, importable without llama_cpp: errors, schema, text, tools, slots, queue, grammar, gguf, memory, metrics

The process stands alone: it knows nothing of the rest of the project and is spoken to over HTTP only.
"""

__version__ = "0.1.0"

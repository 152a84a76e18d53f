"""The trainer of goblin-tiny: a grammar for data, a small llama, and a GGUF file at the end.

Only `model` and `train` need PyTorch, only `evaluate` needs llama.cpp; everything else is pure.
"""

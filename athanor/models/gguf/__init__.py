"""GGUF, the file format of llama.cpp: reading its metadata and tensors, and the models in it."""

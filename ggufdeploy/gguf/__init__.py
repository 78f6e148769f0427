"""The GGUF file format: header, tensor types, model facts, ghosts. No llama.cpp, no network."""

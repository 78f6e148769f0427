"""llama.cpp in a child process, with continuous batching."""

"""Pure decisions: which quantization, KV type and placement fit, how fast, and why."""

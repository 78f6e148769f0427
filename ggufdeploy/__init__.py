"""ggufdeploy: pick, place, fetch and serve the GGUF quantization that fits this machine."""

__version__ = "0.1.0"

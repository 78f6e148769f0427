"""The Hugging Face Hub: references, catalogue, remote headers, downloads, cache."""

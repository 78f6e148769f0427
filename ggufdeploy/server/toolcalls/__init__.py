"""From a model's text to an assistant's message: content, reasoning and tool calls, one file per family of formats."""

"""The composition root: reference -> files -> machine -> plan -> engine -> server."""

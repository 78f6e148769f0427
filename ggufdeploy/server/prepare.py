"""From a typed body to engine requests: what chat and text completions have in common."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import msgspec

from ggufdeploy.engine.request import GenerateRequest, Prompt
from ggufdeploy.errors import BadRequest
from ggufdeploy.server.schemas import MAX_SEQUENCES, GenerationBody
from ggufdeploy.server.state import ServerState
from ggufdeploy.server.streaming import Head

_RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED in llama.h: asks for a random seed


def make_head(state: ServerState, prefix: str) -> Head:
    """Return a fresh identity for one answer: "chatcmpl-..." or "cmpl-..."."""
    return Head(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), state.config.model_id, state.shown.fingerprint)


def engine_requests(
    state: ServerState, body: GenerationBody, head: Head, prompts: Sequence[Prompt], max_tokens: int | None
) -> tuple[GenerateRequest, ...]:
    """Return n requests per prompt, side by side. Raises BadRequest when they are too many.

    With a seed, each choice of one prompt gets the next seed: n equal answers would be of no use.
    """
    n = body.n or 1
    if len(prompts) * n > MAX_SEQUENCES:
        message = f"{len(prompts)} prompts with n = {n} make {len(prompts) * n} texts; at most {MAX_SEQUENCES} at once."
        raise BadRequest(message, param="n" if n > 1 else "prompt", code="invalid_value")
    sampling = body.sampling(state.config.sampling)
    stop = body.stop_texts()
    logprobs = body.wanted_logprobs()
    requests: list[GenerateRequest] = []
    for prompt in prompts:
        for choice in range(n):
            seed = None if sampling.seed is None else (sampling.seed + choice) % _RANDOM_SEED
            requests.append(
                GenerateRequest(
                    id=f"{head.id}-{len(requests)}",
                    prompt=prompt,
                    sampling=msgspec.structs.replace(sampling, seed=seed),
                    max_tokens=max_tokens or state.config.max_tokens,
                    stop=stop,
                    stop_token_ids=tuple(body.stop_token_ids or ()),
                    min_tokens=body.min_tokens or 0,
                    ignore_eos=bool(body.ignore_eos),
                    logprobs=logprobs,
                )
            )
    return tuple(requests)

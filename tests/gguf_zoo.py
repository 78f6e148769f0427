"""One small model per kind of cache and trait that llama.cpp knows, and twelve real shapes.

The small ones load and generate; the real ones are written as ghosts.
"""

from __future__ import annotations

from tests.gguf_blueprints import (
    Blueprint,
    Size,
    command_r,
    deepseek2,
    falcon_h1,
    from_shape,
    gemma3,
    gemma3n,
    gemma4,
    glm4moe,
    gpt_oss,
    granite_hybrid,
    lfm2,
    llama,
    mamba,
    mamba2,
    openelm,
    phi3,
    qwen2moe,
    qwen3moe,
    qwen3next,
    qwen35,
    rwkv7,
)
from tests.gguf_shapes import (
    MIXTRAL_8X22B,
    TINY_GEMMA,
    TINY_LLAMA,
    TINY_MIXTRAL,
    TINY_TIED,
    ModelShape,
)


def _small(**changes: int) -> Size:
    values = {"layers": 4, "e": 64, "ff": 128, "heads": 4, "kv": 2, "d": 16} | changes
    return Size(**values)


SMALL: tuple[Blueprint, ...] = (
    llama("zoo-mha", _small(kv=4), "multi-head attention"),
    from_shape(TINY_LLAMA, "grouped-query attention"),
    llama("zoo-mqa", _small(kv=1), "multi-query attention"),
    llama("zoo-wide", _small(e=128, d=64, heads=4, kv=2), "heads wide enough for a quantized cache"),
    from_shape(TINY_TIED, "tied embeddings"),
    from_shape(TINY_MIXTRAL, "mixture of experts"),
    from_shape(TINY_GEMMA, "sliding window, five of six blocks"),
    gemma4("zoo-gemma4", _small(layers=9), wide=32, window=128, shared=3,
           trait="sliding window with heads of its own, shared KV, rope factors"),
    gemma3n("zoo-gemma3n", _small(layers=22), window=128, per_layer=256, rank=64,
            trait="shared KV from block 20 on, per-layer embeddings"),
    gpt_oss("zoo-gpt-oss", _small(), 8, 2, 128, "alternating window, experts with biases, sinks"),
    deepseek2("zoo-mla", _small(), lora=(32, 32), nope=16, rope=8, v=16, expert_ff=32, n=8, used=2, dense_lead=1,
              trait="multi-head latent attention, shared expert"),
    deepseek2("zoo-dsa", _small(), lora=(32, 32), nope=16, rope=8, v=16, expert_ff=32, n=8, used=2, dense_lead=1,
              indexer=(2, 64), trait="latent attention with a sparse-attention indexer"),
    qwen3next("zoo-qwen3next", _small(layers=8), expert_ff=32, n=8, used=2, state=16, k_heads=2, v_heads=4, rope=8,
              trait="hybrid: delta net and attention, experts"),
    granite_hybrid("zoo-granite-hybrid", _small(), state=16, ssm_heads=8, groups=1, every=4,
                   trait="hybrid: Mamba-2 and attention"),
    lfm2("zoo-lfm2", _small(), (False, True, False, True), "hybrid: short convolution and attention"),
    falcon_h1("zoo-falcon-h1", _small(), inner=128, state=16, ssm_heads=8,
              trait="hybrid: attention and Mamba-2 in one block"),
    mamba("zoo-mamba", _small(), 16, 8, "recurrent: Mamba"),
    mamba2("zoo-mamba2", _small(), state=16, ssm_heads=8, groups=1, trait="recurrent: Mamba-2"),
    rwkv7("zoo-rwkv7", _small(), head=16, rank=8, trait="recurrent: RWKV-7"),
    qwen2moe("zoo-qwen2moe", _small(), 32, 64, 8, 2, "experts and a shared expert"),
    qwen3moe("zoo-qwen3moe", _small(), 32, 16, 4, "many small experts"),
    glm4moe("zoo-glm4moe", _small(layers=5), 32, 8, 2, "NextN block, which is skipped"),
    qwen35("zoo-qwen35", _small(layers=9), state=16, k_heads=2, v_heads=4, trait="hybrid with an MTP block"),
    openelm("zoo-openelm", _small(), (4, 4, 8, 8), (1, 2, 2, 4), "heads and widths of each block's own"),
    command_r("zoo-command-r", _small(), "parallel attention and feed-forward"),
    phi3("zoo-fused-qkv", _small(kv=4), "fused Q, K and V"),
)  # fmt: skip

# Written from memory of these files; tests/gguf/test_zoo.py compares the parameter counts with the published ones.
_CONFIG = "config.json of "

REAL: tuple[Blueprint, ...] = (
    llama("Llama-3.3-70B", Size(80, 8192, 28672, 64, 8, 128, 128256, 131072), "dense, grouped-query attention",
          source=_CONFIG + "meta-llama/Llama-3.3-70B-Instruct", quantization="Q4_K_M"),
    from_shape(ModelShape("Mixtral-8x7B", 32, 4096, 14336, 32, 8, 32000, 32768, n_experts=8, n_experts_used=2),
               "mixture of experts", _CONFIG + "mistralai/Mixtral-8x7B-Instruct-v0.1", "Q4_K_M"),
    from_shape(MIXTRAL_8X22B, "mixture of experts", _CONFIG + "mistralai/Mixtral-8x22B-Instruct-v0.1", "Q4_K_M"),
    qwen3moe("Qwen3-30B-A3B", Size(48, 2048, 6144, 32, 4, 128, 151936, 262144), 768, 128, 8, "many small experts",
             source=_CONFIG + "Qwen/Qwen3-30B-A3B-Instruct-2507", quantization="Q4_K_M"),
    qwen3moe("Qwen3-235B-A22B", Size(94, 4096, 12288, 64, 4, 128, 151936, 262144), 1536, 128, 8, "many small experts",
             source=_CONFIG + "Qwen/Qwen3-235B-A22B-Instruct-2507", quantization="Q4_K_M"),
    gemma3("Gemma-3-27B", Size(62, 5376, 21504, 32, 16, 128, 262144, 131072), 1024, "sliding window, tied embeddings",
           source=_CONFIG + "google/gemma-3-27b-it, text part", quantization="Q4_K_M"),
    gpt_oss("gpt-oss-120b", Size(36, 2880, 2880, 64, 8, 64, 201088, 131072), 128, 4, 128,
            "alternating window, experts with biases, sinks", source=_CONFIG + "openai/gpt-oss-120b",
            quantization="MXFP4_MOE"),
    deepseek2("DeepSeek-V3", Size(61, 7168, 18432, 128, 1, 192, 129280, 163840), lora=(1536, 512), nope=128, rope=64,
              v=128, expert_ff=2048, n=256, used=8, dense_lead=3, trait="multi-head latent attention",
              source=_CONFIG + "deepseek-ai/DeepSeek-V3, without its MTP block", quantization="Q4_K_M"),
    qwen3next("Qwen3-Next-80B-A3B", Size(48, 2048, 5120, 16, 2, 256, 151936, 262144), expert_ff=512, n=512, used=10,
              state=128, k_heads=16, v_heads=32, rope=64, trait="hybrid: delta net and attention",
              source=_CONFIG + "Qwen/Qwen3-Next-80B-A3B-Instruct, without its MTP block", quantization="Q4_K_M"),
    mamba("Mamba-2.8B", Size(64, 2560, 0, 0, 0, 0, 50280, 1048576), 16, 160, "recurrent",
          source=_CONFIG + "state-spaces/mamba-2.8b-hf", quantization="Q4_K_M"),
    phi3("Phi-4", Size(40, 5120, 17920, 40, 10, 128, 100352, 16384), "fused Q, K and V",
         source=_CONFIG + "microsoft/phi-4", quantization="Q4_K_M"),
    command_r("Command-R-plus", Size(64, 12288, 33792, 96, 8, 128, 256000, 131072), "parallel block, tied embeddings",
              source=_CONFIG + "CohereLabs/c4ai-command-r-plus-08-2024", quantization="Q4_K_M"),
)  # fmt: skip

LARGE: tuple[Blueprint, ...] = (
    llama("large-llama", Size(32, 4096, 14336, 32, 8, 128, 128256), "dense"),
    gemma4("large-gemma4", Size(60, 5376, 21504, 32, 16, 256, 262144), wide=512, window=1024, shared=0,
           trait="sliding window with heads of its own"),
    gemma3n("large-gemma3n", Size(35, 2048, 16384, 8, 2, 256, 262144), window=512, per_layer=256, rank=64,
            trait="shared KV, per-layer embeddings"),
    deepseek2("large-mla", Size(47, 2048, 10240, 20, 1, 256, 154880), lora=(768, 512), nope=192, rope=64, v=256,
              expert_ff=1536, n=64, used=4, dense_lead=1, trait="latent attention"),
    granite_hybrid("large-granite", Size(40, 2048, 8192, 32, 8, 64, 100352), state=128, ssm_heads=64, groups=1,
                   every=10, trait="hybrid: Mamba-2 and attention"),
    lfm2("large-lfm2", Size(30, 2048, 10752, 32, 8, 64, 65536), tuple(i % 4 == 3 for i in range(30)),
         "hybrid: short convolution and attention"),
    falcon_h1("large-falcon-h1", Size(44, 3072, 12288, 12, 2, 128, 130048), inner=3072, state=256, ssm_heads=24,
              trait="hybrid: attention and Mamba-2 in one block"),
    mamba2("large-mamba2", Size(64, 2560, 0, 0, 0, 0, 50288), state=128, ssm_heads=80, groups=1, trait="recurrent"),
    rwkv7("large-rwkv7", Size(32, 2560, 10240, 0, 0, 0, 65536), head=64, rank=64, trait="recurrent"),
    qwen2moe("large-qwen2moe", Size(28, 3584, 18944, 28, 4, 128, 151936), 2560, 20480, 64, 8, "shared expert"),
    glm4moe("large-glm4moe", Size(47, 4096, 10944, 96, 8, 128, 151552), 1408, 128, 8, "NextN block"),
    qwen35("large-qwen35", Size(65, 5120, 17408, 24, 4, 256, 248320), state=128, k_heads=16, v_heads=48,
           trait="hybrid with an MTP block"),
)  # fmt: skip
"""Made up, in sizes of today: for the graphs that none of the real shapes has."""

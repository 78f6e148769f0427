import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufdeploy.hub.quantization import (
    canonical_quantization,
    looks_like_quantization,
    name_before_quantization,
    parse_quantization,
    why_unloadable,
)

NAMES = {
    "Mixtral-8x22B-Instruct-v0.1.Q6-00001-of-00004.gguf": "Q6_K",
    "Mixtral-8x22B-Instruct-v0.1.fp16-00001-of-00007.gguf": "F16",
    "Mixtral-8x22B-Instruct-v0.1.i1-IQ3_XXS.gguf": "IQ3_XXS",
    "Mixtral-8x22B-Instruct-v0.1.Q4_K_M-00001-of-00002.gguf": "Q4_K_M",
    "qwen2.5-7b-instruct-q4_k_m.gguf": "Q4_K_M",
    "gpt-oss-120b-mxfp4-00001-of-00003.gguf": "MXFP4",
    "gpt-oss-20b-MXFP4_MOE.gguf": "MXFP4_MOE",
    "UD-Q4_K_XL/DeepSeek-R1-UD-Q4_K_XL-00001-of-00009.gguf": "UD-Q4_K_XL",
    "DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-00001-of-00003.gguf": "UD-IQ1_S",
    "BF16/model-00001-of-00002.gguf": "BF16",
    "model_bf16_Q4_K_M.gguf": "Q4_K_M",
    "Q8_0/model-Q4_0.gguf": "Q4_0",
    "gemma-3-4b-it-q4_0.gguf": "Q4_0",
    "Phi-3-mini-4k-instruct-q4.gguf": "Q4",
    "Llama-3.2-1B-Instruct-f16.gguf": "F16",
    "model-f32.gguf": "F32",
    "gemma-2-9b-it-Q6_K_L.gguf": "Q6_K_L",
    "gemma-2-9b-it-Q3_K_XL.gguf": "Q3_K_XL",
    "model-Q4_K_P.gguf": "Q4_K_P",
    "model-IQ4_NL.gguf": "IQ4_NL",
    "model-Q4_0_4_8.gguf": "Q4_0_4_8",
    "model-TQ1_0.gguf": "TQ1_0",
    "model-q4-k-m.gguf": "Q4_K_M",
    "Qwen3.6-27B-MTP-Q5_K_S.gguf": "Q5_K_S",
    "SmolLM2-135M-Instruct.Q4_1.gguf": "Q4_1",
    "model.gguf": None,
    "ggml-model-i2_s.gguf": "I2_S",
    "qwen2.5-1.5b-q4km.gguf": "Q4_K_M",
    "ggml-yi-34b-f16-q_3_k.gguf": "Q3_K_M",
    "ggml-model-q8-0.gguf": "Q8_0",
    "llama-7b.Q4_K.gguf": "Q4_K_M",
    "gemma-2-9b-it-Q6_K-Q8.gguf": "Q6_K",
    "gemma-2-9b-it-Q4_K_M-fp16.gguf": "Q4_K_M",
    "gemma-3-12b-it-qat-q4_0-unquantized.f16.gguf": "F16",
    "DeepSeek-V3.1-smol-IQ4_KSS-00001-of-00007.gguf": "IQ4_KSS",
    "DeepSeek-R1-0528-IQ2_K_R4-00001-of-00005.gguf": "IQ2_K_R4",
    "Llama-3.3-70B-Instruct.Q6_K.gguf-00001-of-00006.gguf": "Q6_K",
    "phi-2-orange-v2.Q5_K_M.shard-00001-of-00025.gguf": "Q5_K_M",
    "Q3-8B-Kintsugi.gguf": None,
    "Qwen2-Q4-0.5B.gguf": None,
    "llava-phi-3-mini-int4.gguf": None,
    "faq4_0.gguf": None,
    "v0.1-8x22B-2F16x.gguf": None,
}


@pytest.mark.parametrize(("path", "expected"), NAMES.items(), ids=NAMES)
def test_file_names_in_the_wild_say_their_quantization(path, expected):
    assert parse_quantization(path) == expected


def test_what_llama_cpp_cannot_load_is_known_by_its_name():
    for name in ("Q4_0_4_8", "IQ4_KSS", "IQ2_K_R4", "Q8_K_R8", "IQ5_K", "I2_S"):
        assert why_unloadable(name), name
    for name in ("Q4_0", "IQ4_NL", "IQ1_S", "UD-Q4_K_XL", "MXFP4_MOE", "TQ1_0", "Q8_0_L", "F16", "unknown"):
        assert why_unloadable(name) is None, name


def test_the_model_s_own_name_is_what_stands_before_the_quantization():
    assert name_before_quantization("gemma-2-9b-it-Q4_K_M-fp16.gguf") == "gemma-2-9b-it-"
    assert name_before_quantization("model-00001-of-00002.gguf") == "model"
    assert name_before_quantization("Q4_K_M.gguf") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [("q4_k_m", "Q4_K_M"), ("Q6", "Q6_K"), ("fp16", "F16"), ("ud-q4_k_xl", "UD-Q4_K_XL"), ("i1-IQ2_M", "IQ2_M"),
     ("mxfp4", "MXFP4"), ("Q4_K_X", None), ("latest", None), ("", None)],
)  # fmt: skip
def test_a_quantization_written_by_hand_becomes_canonical(text, expected):
    assert canonical_quantization(text) == expected


def test_a_slip_in_a_quantization_is_told_from_a_size():
    assert all(looks_like_quantization(text) for text in ("Q4_K_X", "q9", "IQ3", "UD-Q4", "bf16", "mxfp5"))
    assert not any(looks_like_quantization(text) for text in ("8x22b", "135m", "latest", "instruct", "f1"))


@given(st.sampled_from([name for name in NAMES.values() if name]), st.sampled_from("-._/"), st.booleans())
def test_a_canonical_name_survives_being_put_into_a_file_name(name, separator, lower):
    text = name.lower() if lower else name
    expected = canonical_quantization(name)
    assert parse_quantization(f"Some-Model-7B{separator}{text}.gguf") == expected

"""The zoo's small models run in llama.cpp, and its real shapes have the published number of parameters."""

import pytest

from ggufdeploy.gguf.model import model_info
from ggufdeploy.gguf.reader import read_header_file
from tests.gguf.llama_child import ask
from tests.gguf_writer import write_model
from tests.gguf_zoo import REAL, SMALL

PARAMETERS = {
    "Llama-3.3-70B": 70_553_706_496,
    "Mixtral-8x7B": 46_702_792_704,
    "Mixtral-8x22B-Instruct-v0.1": 140_630_071_296,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Qwen3-235B-A22B": 235_093_634_560,
    "Gemma-3-27B": 27_009_002_240,
    "gpt-oss-120b": 116_829_156_672,
    "DeepSeek-V3": 671_026_419_200,
    "Qwen3-Next-80B-A3B": 79_674_391_296,
    "Mamba-2.8B": 2_768_345_600,
    "Phi-4": 14_659_507_200,
    "Command-R-plus": 103_810_674_688,
}
"""Source: the Hub's count of safetensors parameters; Gemma without its vision tower, DeepSeek V3 and Qwen3-Next without
their MTP block, as their model cards and GGUF files count."""


@pytest.mark.engine
@pytest.mark.parametrize("quantization", ["F16", "Q4_0"])
@pytest.mark.parametrize("blueprint", SMALL, ids=lambda b: b.name)
def test_a_small_model_of_every_kind_decodes(tmp_path, blueprint, quantization):
    answer = ask("generate", path=str(write_model(tmp_path / "m.gguf", blueprint, quantization)))
    assert answer["status"] == 0
    assert answer["finite"]
    assert answer["spread"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("blueprint", REAL, ids=lambda b: b.name)
def test_a_real_shape_has_the_published_number_of_parameters(tmp_path, blueprint):
    path = write_model(tmp_path / "m.gguf", blueprint, blueprint.quantization)
    assert model_info([read_header_file(path)]).n_params == PARAMETERS[blueprint.name]
    assert path.stat().st_blocks * 512 < 50 << 20

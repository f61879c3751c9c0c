"""Which checkpoints take pictures and sound: the shapes of config.json that models have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slime_router.checkpoint.checkpoint import load_tokenizer
from slime_router.checkpoint.model_config import is_multimodal
from tests.tiny import build_tiny_checkpoint


@pytest.mark.parametrize(
    ("config", "processors", "expected"),
    [
        ({}, {}, False),
        ({"model_type": "qwen3", "vocab_size": 9}, {}, False),
        ({"vision_config": {"depth": 1}}, {}, True),  # Qwen-VL, LLaVA, Gemma 3, InternVL
        ({"vision_config": None, "audio_config": {}}, {}, False),
        ({"audio_config": {"n": 1}}, {}, True),  # Qwen2-Audio
        ({"thinker_config": {"audio_config": {"n": 1}}}, {}, True),  # Qwen-Omni
        ({"thinker_config": {"text_config": {"n": 1}}}, {}, False),
        ({"visual": {"layers": 1}}, {}, True),  # the first Qwen-VL
        ({}, {"image_processor_type": "X"}, True),
        ({}, {"feature_extractor_type": "X"}, True),
        ({}, {"processor_class": "X"}, False),
    ],
)
def test_a_model_sees_where_its_files_have_a_part_for_it(config, processors, expected):
    assert is_multimodal(config, processors) is expected


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("config.json", {}, False),
        ("config.json", {"vision_config": {"depth": 1}}, True),
        ("preprocessor_config.json", {"image_processor_type": "X"}, True),
        ("processor_config.json", {"image_processor": {"size": 1}}, True),
    ],
)
def test_a_checkpoint_says_it_by_itself(tmp_path: Path, file, change, expected):
    path = build_tiny_checkpoint(tmp_path) / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **change}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.is_multimodal is expected
    tokenizer.close()

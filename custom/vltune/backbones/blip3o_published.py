"""The published BLIP3o-4B and -8B as configurations, to count and to plan with; no weights.

Known: the language models (Qwen2.5-VL-3B and -7B, their config.json); from the code released with
arXiv 2505.09568: features 1792 wide, a diffusion transformer 1792 wide with 24 blocks of 28 heads,
64 queries, 4 x 4 patches pooled to one, images of 448 pixels. Assumed, after Lumina-Next's own
rules (arXiv 2406.18583): `ffn_width` (two thirds of 4 x width, up to a multiple of 256) and
`modulation_width`. The tower is EVA02-CLIP-E/14+ by timm's name. Not built: the decoder, a fine-
tuned SDXL.
"""

from typing import Any

from vltune.backbones.blip3o_config import Blip3oSettings, FlowSettings, TowerSettings

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

EVA_CLIP_E = TowerSettings(
    kind="timm",
    settings={"name": "eva02_enormous_patch14_clip_224", "img_size": 448},
    image_size=448,
    mean=_CLIP_MEAN,
    std=_CLIP_STD,
    num_tokens=64,
    width=1792,
    pool=4,
)
FLOW = FlowSettings(width=1792, depth=24, num_heads=28, ffn_width=4864, modulation_width=1024)
QWEN_3B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "tie_word_embeddings": True,
}
QWEN_7B: dict[str, Any] = {
    **QWEN_3B,
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
ASSUMED = (
    "ffn_width and modulation_width of the diffusion transformer; decoder (SDXL) not counted; "
    "weights unverified"
)
"""What of the published models is not known for sure here."""


def _published(language: dict[str, Any]) -> Blip3oSettings:
    return Blip3oSettings(
        vision=EVA_CLIP_E,
        language=language,
        num_queries=64,
        flow=FLOW,
        decoder=None,
        max_prompt_tokens=512,
        max_answer_tokens=512,
    )


PUBLISHED = {"BLIP3o-4B": _published(QWEN_3B), "BLIP3o-8B": _published(QWEN_7B)}

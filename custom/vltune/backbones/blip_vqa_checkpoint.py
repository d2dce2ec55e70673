"""Find and check a BLIP for questions, for transformers' own class; no code of it is ever run."""

from dataclasses import dataclass
from typing import Any

from vltune.backbones.checkpoint import BackboneConfig, BackboneError
from vltune.backbones.transformers_checkpoint import (
    Family,
    folder_or_id,
    load_native,
    read_image_processor,
    read_json,
)

BLIP_VQA = Family(
    name="BLIP for questions",
    model_type="blip",
    converted="Salesforce/blip-vqa-base or Salesforce/blip-vqa-capfilt-large",
    converter="src/transformers/models/blip/convert_blip_original_pytorch_to_hf.py",
)
ARCHITECTURE = "BlipForQuestionAnswering"
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class BlipVqaParts:
    """A loaded checkpoint.

    Attributes:
        model: transformers' BlipForQuestionAnswering, fp32, as loaded.
        tokenizer: A fast tokenizer.
        image_processor: Contents of the preprocessor's configuration.
        side: Height and width of its images in pixels.
        interpolation: How images are resized.
    """

    model: Any
    tokenizer: Any
    image_processor: dict[str, Any]
    side: int
    interpolation: str


def load_parts(config: BackboneConfig) -> BlipVqaParts:
    """Load model, tokenizer and preprocessing of a folder or hub id.

    Raises:
        BackboneError: See `blip_vqa.load_blip_vqa`.
    """
    source = folder_or_id(config, BLIP_VQA)
    _refuse_others(read_json(source, "config.json", BLIP_VQA), source)
    processor = read_image_processor(source, BLIP_VQA)
    side, interpolation = _sizes(processor, source)
    model, tokenizer = load_native(_build, source, BLIP_VQA)
    if side != int(model.config.vision_config.image_size):
        raise BackboneError(
            f"{source}: images are resized to {side} pixels, the vision tower takes "
            f"{model.config.vision_config.image_size}"
        )
    _check_tokens(model, tokenizer, source)
    mask_cross_attention(model)
    return BlipVqaParts(model, tokenizer, processor, side, interpolation)


def mask_cross_attention(model: Any) -> None:
    """Make the decoder heed the mask of its questions.

    transformers 5.23 builds that mask and then loses it on the way to the attention
    (`BlipTextAttention.forward` hands it on under another name), so that answers depend on how much
    a batch is padded. Without padding nothing changes.
    """
    for layer in model.text_decoder.bert.encoder.layer:
        layer.crossattention.self.register_forward_pre_hook(_hand_on_mask, with_kwargs=True)


def _hand_on_mask(
    module: Any, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if options.get("encoder_attention_mask") is None:
        options = {**options, "encoder_attention_mask": options.get("attention_mask")}
    return inputs, options


def _build(*arguments: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """`from_pretrained`, with what older versions of transformers stored without need left out."""
    from transformers import BlipForQuestionAnswering

    model, report = BlipForQuestionAnswering.from_pretrained(*arguments, **options)
    # Positions 0, 1, 2, ... were once a stored buffer of the text towers.
    unexpected = [k for k in report["unexpected_keys"] if not k.endswith(".position_ids")]
    return model, {**report, "unexpected_keys": unexpected}


def _refuse_others(settings: dict[str, Any], source: str) -> None:
    names = settings.get("architectures") or [ARCHITECTURE]
    if settings.get("model_type") != BLIP_VQA.model_type or ARCHITECTURE not in names:
        raise BackboneError(
            f"{source}/config.json: model_type is {settings.get('model_type')!r} and architectures "
            f"{names}, expected 'blip' and {ARCHITECTURE}. Checkpoints that answer questions: "
            f"{BLIP_VQA.converted}."
        )


def _sizes(processor: dict[str, Any], source: str) -> tuple[int, str]:
    """Side in pixels and interpolation; a step that BLIP has not is refused."""
    size, resample = processor.get("size", {}), processor.get("resample")
    problems = {
        "size needs equal height and width": not size
        or not {"height", "width"} <= set(size)
        or size["height"] != size["width"],
        "do_center_crop is on": bool(processor.get("do_center_crop")),
        f"resample {resample!r} is not known": resample not in _RESAMPLING,
        "image_mean and image_std are needed": not {"image_mean", "image_std"} <= set(processor),
    }
    problem = "; ".join(text for text, is_so in problems.items() if is_so)
    if problem:
        raise BackboneError(
            f"{source}: preprocessor: {problem}; a default would silently feed the tower wrong "
            "pixels"
        )
    return int(size["height"]), _RESAMPLING[int(str(resample))]


def _check_tokens(model: Any, tokenizer: Any, source: str) -> None:
    """The tokenizer must frame a text, and know the ids with which the decoder starts and ends."""
    text = model.config.text_config
    ids = tokenizer("a")["input_ids"]
    is_framed = len(ids) >= 3 and ids[-1] == text.sep_token_id
    fits = len(tokenizer) <= text.vocab_size and 0 <= text.bos_token_id < text.vocab_size
    if not is_framed or not fits or tokenizer.pad_token_id != text.pad_token_id:
        raise BackboneError(
            f"{source}: the tokenizer does not fit the model: {len(tokenizer)} tokens for a "
            f"vocabulary of {text.vocab_size} with start {text.bos_token_id}, pad "
            f"{tokenizer.pad_token_id} for {text.pad_token_id}, and 'a' becomes {ids} where end "
            f"{text.sep_token_id} was expected"
        )

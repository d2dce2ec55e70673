"""A site's questions and captions with everything frozen already computed, and prompts to draw."""

import logging
from dataclasses import dataclass

from vltune.algorithms.encoded_drawings import EncodedDrawings, TargetCache
from vltune.algorithms.encoded_records import (
    EncodedRecords,
    TokenCache,
    count_too_long,
    fitting,
    fitting_prompts,
)
from vltune.algorithms.lora_job import LoraJob
from vltune.algorithms.unified_data import UnifiedPart, load_unified_data
from vltune.backbones.unified import UnifiedBackbone
from vltune.backbones.vision_language import VisionLanguageBackbone
from vltune.config import ConfigError
from vltune.geneval import Judge, check_judge
from vltune.geneval_prompts import GenevalPrompt
from vltune.participant import ShouldStop
from vltune.site_settings import UnifiedSiteConfig
from vltune.training import TrainingStopped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """One part of the data with its frozen tokens and targets."""

    understanding: EncodedRecords | None
    drawing: EncodedDrawings | None
    prompts: tuple[GenevalPrompt, ...] = ()

    @property
    def num_understanding(self) -> int:
        """Questions."""
        return 0 if self.understanding is None else len(self.understanding)

    def __len__(self) -> int:
        return self.num_understanding + (0 if self.drawing is None else len(self.drawing))


@dataclass(frozen=True)
class UnifiedSplits:
    """All parts of a site's data."""

    train: Encoded
    validation: Encoded
    test: Encoded | None


def encode_splits(
    job: LoraJob,
    site: UnifiedSiteConfig,
    judge: Judge | None,
    backbone: VisionLanguageBackbone,
    should_stop: ShouldStop,
) -> UnifiedSplits:
    """Read a site's data and encode what its caches do not hold; arguments as `UnifiedTask`.

    Raises:
        ConfigError: The data need a backbone that draws, or a judge.
        RecordError: The data are wrong.
        TrainingStopped: `should_stop` returned True.
    """
    tokens = TokenCache(site.cache_dir, backbone)
    targets = (
        TargetCache(site.cache_dir, backbone) if isinstance(backbone, UnifiedBackbone) else None
    )

    def already_read(digest: bytes) -> bool:
        if should_stop():
            raise TrainingStopped("stopped while reading images")
        return tokens.holds(digest) or (targets is not None and targets.holds(digest))

    data = load_unified_data(site, already_read=already_read)

    def encode(part: UnifiedPart) -> Encoded:
        asked, drawn = part.samples.understanding, part.samples.drawing
        questions = captions = None
        if drawn is not None and targets is None:
            raise ConfigError(
                f"backbone {backbone.name} cannot draw, but this site has captions to draw "
                "from. Take janus or blip3o, or remove `captions`."
            )
        if asked is not None:
            kept = fitting(
                asked,
                backbone,
                max_share=site.max_skipped_share,
                max_answer_tokens=job.max_answer_tokens,
            )
            questions = tokens.encode(kept, batch_size=job.batch_size, should_stop=should_stop)
        if drawn is not None and targets is not None:
            kept = fitting_prompts(drawn, backbone, max_share=site.max_skipped_share)
            captions = targets.encode(kept, batch_size=job.batch_size, should_stop=should_stop)
        if part.prompts:
            check_prompts(part.prompts, judge, backbone, can_draw=targets is not None)
        return Encoded(questions, captions, part.prompts)

    return UnifiedSplits(
        encode(UnifiedPart(data.train)),
        encode(data.validation),
        None if data.test is None else encode(data.test),
    )


def check_prompts(
    prompts: tuple[GenevalPrompt, ...],
    judge: Judge | None,
    backbone: VisionLanguageBackbone,
    *,
    can_draw: bool,
) -> None:
    """Refuse prompts that cannot be drawn and judged.

    Raises:
        ConfigError: The backbone cannot draw, there is no judge or it knows too few classes, or a
            prompt is too long.
    """
    if not can_draw:
        raise ConfigError(
            f"backbone {backbone.name} cannot draw, but this site has `prompts`. Take "
            "janus or blip3o, or remove them."
        )
    if judge is None:
        raise ConfigError("this site has `prompts`, but the job has no `judge`. Add one.")
    try:
        check_judge(judge, prompts)
    except ValueError as error:
        log.error("%s", error)
        raise ConfigError(
            "the judge does not know all classes of this site's `prompts`; the site's own log "
            "names them. Leave those prompts out, or take another judge."
        ) from error
    num_long, longest = count_too_long([prompt.prompt for prompt in prompts], backbone)
    if num_long:
        raise ConfigError(
            f"{num_long} of {len(prompts)} `prompts` are too long: the model takes "
            f"{backbone.max_prompt_tokens} tokens, the longest has {longest}. Shorten them."
        )

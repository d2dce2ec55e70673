"""The data of a site that answers, draws, or does both, in parts that share no image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vltune.data.drawings import load_drawings
from vltune.data.image_text import check_disjoint_contents, divide
from vltune.data.unified import UnifiedSamples
from vltune.data.vqa import load_vqa
from vltune.geneval_prompts import GenevalPrompt, read_prompts
from vltune.site_config import UnifiedSiteConfig
from vltune.site_data import UnifiedSplit


@dataclass(frozen=True)
class UnifiedPart:
    """What a site measures on.

    Attributes:
        samples: Records of both tasks; both None where the part has prompts alone.
        prompts: To be drawn and judged; empty where the site has none.
    """

    samples: UnifiedSamples
    prompts: tuple[GenevalPrompt, ...] = ()


@dataclass(frozen=True)
class UnifiedData:
    """All parts of a site's data; an image, by content, is in one of them only.

    Attributes:
        train: To train on.
        validation: To measure the received model on.
        test: Measured once at the end, or None.
    """

    train: UnifiedSamples
    validation: UnifiedPart
    test: UnifiedPart | None = None


def load_unified_data(
    site: UnifiedSiteConfig, *, already_read: Callable[[bytes], bool] | None = None
) -> UnifiedData:
    """Read all parts.

    Args:
        site: The site's file.
        already_read: Says of an image's content (SHA-256) whether it was decoded before, such as
            `FeatureCache.holds_content`; may raise to end a long check.

    Raises:
        RecordError: A file is wrong, or two parts have an image in common, in whichever task.
        PromptError: A file of prompts is wrong.
        ParquetError: A Parquet file cannot be read.
        ImageError: An image is missing or unreadable and the site says `stop`, or too many are.
    """
    policy: dict[str, Any] = {
        "on_bad_image": site.on_bad_image,
        "max_skipped_share": site.max_skipped_share,
        "already_read": already_read,
    }

    def read(split: UnifiedSplit) -> UnifiedSamples:
        return UnifiedSamples(
            None if split.vqa is None else load_vqa(split.vqa, **policy),
            None if split.captions is None else load_drawings(split.captions.files, **policy),
        )

    wanted = {"validation": site.validation, "test": site.test}
    named = {name: split for name, split in wanted.items() if split is not None}
    shares = {name: split.share for name, split in named.items() if split.share is not None}
    parts = _divide(read(site.train), shares, site.split_seed)
    parts |= {name: read(split) for name, split in named.items() if split.share is None}
    check_disjoint_contents({name: part.digests for name, part in parts.items()})
    measured = {
        name: UnifiedPart(parts[name], () if split.prompts is None else read_prompts(split.prompts))
        for name, split in named.items()
    }
    return UnifiedData(parts["train"], measured["validation"], measured.get("test"))


def _divide(
    samples: UnifiedSamples, shares: dict[str, float], seed: int
) -> dict[str, UnifiedSamples]:
    """Divide both tasks by one hash: an image of both is on the same side in both."""
    if not shares:
        return {"train": samples}
    tasks = [
        None if task is None else divide(task, shares, seed)
        for task in (samples.understanding, samples.drawing)
    ]
    return {
        name: UnifiedSamples(*(None if task is None else task[name] for task in tasks))
        for name in ("train", *shares)
    }

"""A site's prompts and answers, read as its file says, in parts that share no image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vltune.data.captions import load_captions
from vltune.data.image_text import ImageTextSamples, check_disjoint, divide
from vltune.data.preference import load_preference
from vltune.data.vqa import load_vqa
from vltune.site_config import QuestionSiteConfig
from vltune.site_data import AnswerSplit, VqaSplit

READERS = {"preference": load_preference, "captions": load_captions}


@dataclass(frozen=True)
class AnswerData:
    """All parts of a site's data; an image, by content, is in one of them only.

    Attributes:
        train: To train on.
        validation: To measure the received model on.
        test: Measured once at the end, or None.
    """

    train: ImageTextSamples
    validation: ImageTextSamples
    test: ImageTextSamples | None = None


def load_answer_data(
    site: QuestionSiteConfig, *, already_read: Callable[[bytes], bool] | None = None
) -> AnswerData:
    """Read all parts.

    Args:
        site: The site's file.
        already_read: Says of an image's content (SHA-256) whether it was decoded before, such as
            `FeatureCache.holds_content`; may raise to end a long check.

    Raises:
        RecordError: A file is wrong, or two parts have an image in common.
        ParquetError: A Parquet file cannot be read.
        ImageError: An image is missing or unreadable and the site says `stop`, or too many are.
    """
    policy: dict[str, Any] = {
        "on_bad_image": site.on_bad_image,
        "max_skipped_share": site.max_skipped_share,
        "already_read": already_read,
    }

    def read(split: AnswerSplit | VqaSplit) -> ImageTextSamples:
        if isinstance(split, VqaSplit):
            return load_vqa(split.files(), **policy)
        return READERS[site.data](split.files, **policy)

    wanted = {"validation": site.validation, "test": site.test}
    named = {name: split for name, split in wanted.items() if split is not None}
    shares = {name: split.share for name, split in named.items() if split.share is not None}
    train = read(site.train)
    parts = divide(train, shares, site.split_seed) if shares else {"train": train}
    parts |= {name: read(split) for name, split in named.items() if split.share is None}
    check_disjoint(parts)
    return AnswerData(parts["train"], parts["validation"], parts.get("test"))

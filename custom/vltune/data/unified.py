"""One part of the data of a site that answers, draws, or does both."""

from dataclasses import dataclass

from vltune.data.image_text import ImageTextSamples


@dataclass(frozen=True)
class UnifiedSamples:
    """Records of both tasks; an image may be in both.

    Attributes:
        understanding: Questions with answers, None where the site has none.
        drawing: Images whose prompt is their caption, without answers; None where it has none.
    """

    understanding: ImageTextSamples | None
    drawing: ImageTextSamples | None

    @property
    def digests(self) -> frozenset[bytes]:
        """Contents of all images."""
        parts = (self.understanding, self.drawing)
        return frozenset(digest for part in parts if part is not None for digest in part.digests)

"""Whether a classifier fits the images that it measures: its classes are those of the data, or they do not count."""

from collections.abc import Sequence

from torch import Tensor

from latentia.evaluation.features.base import FeatureExtractor, Predictions


class FeaturesOnly:
    """An extractor without its classes: a classifier of something else than what the images show.

    Args:
        extractor: the classifier.
    """

    class_names: list[str] | None = None

    def __init__(self, extractor: FeatureExtractor):
        self.extractor, self.name, self.sha256 = extractor, f"{extractor.name} (borrowed)", extractor.sha256
        self.image_shape, self.preprocessing = extractor.image_shape, extractor.preprocessing

    def __call__(self, images: Tensor) -> Predictions:
        """Features, and no logits."""
        return Predictions(self.extractor(images)[0], None)


def fitting_extractor(
    extractor: FeatureExtractor, label_names: Sequence[str] | None
) -> tuple[FeatureExtractor, str | None]:
    """The extractor as it may be used for data of these classes, and a warning if its own classes are others.

    Args:
        extractor: any. One whose classes have no names, such as Inception's, is taken as it is.
        label_names: of the data; None without classes.

    Returns:
        The extractor and None; or its features alone and the warning.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> found, warning = fitting_extractor(load_extractor("digits"), ["cat", "dog"])
        >>> found.class_names, warning[:18]
        (None, 'BORROWED EXTRACTOR')
    """
    names = extractor.class_names
    if names is None or (label_names is not None and [*names] == [*label_names]):
        return extractor, None
    warning = (
        f"BORROWED EXTRACTOR: {extractor.name} was trained to tell {', '.join(names[:3])}, ... apart, not the classes "
        "of these images. Distances say little, and metrics of classes are left out; take the extractor own, or a "
        "vision model"
    )
    return FeaturesOnly(extractor), warning

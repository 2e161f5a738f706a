"""Numbers that change in the course of training, as functions of how far it is."""


def linear_decay(position: int, images: int, start: float, end: float = 0.0) -> float:
    """From `start` at image 0 linearly to `end` at image `images`, and there it stays.

    Args:
        position: images seen so far, such as `rng.position`.
        images: when `end` is reached.
        start, end: the values. Default end 0.

    Example:
        >>> [linear_decay(position, 1000, 0.1) for position in (0, 500, 2000)]
        [0.1, 0.05, 0.0]
    """
    return start + (end - start) * min(position / max(images, 1), 1.0)

"""Perceptual colour difference: sRGB to CIELAB, and CIEDE2000; and the colours that texts name. In float64."""

import re
from collections.abc import Sequence

import torch

from latentia.errors import UsageError
from latentia.evaluation.pairs import _check, _per_image

COLOR_WORDS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
_WHITE = 97.0  # lightness of what counts as background

# Linear sRGB (IEC 61966-2-1) to CIE XYZ, both for the daylight D65; each row adds up to that coordinate of white.
_TO_XYZ = torch.tensor(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ],
    dtype=torch.float64,
)


def srgb_to_lab(images: torch.Tensor) -> torch.Tensor:
    """CIELAB of sRGB images under D65 and the 2 degree observer.

    Args:
        images: (N, C, H, W) in [-1, 1]; three channels are R, G, B, a single one is grey (R = G = B).

    Returns:
        (N, 3, H, W), float64: L* in [0, 100], a* (green to red) and b* (blue to yellow), about [-110, 100].

    Raises:
        UsageError: 2 or more than 3 channels, or another type or range. DataError: NaN.

    References:
        IEC 61966-2-1:1999 (sRGB); CIE 15:2004 (CIELAB).

    Example:
        >>> red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
        >>> srgb_to_lab(red).flatten()
        tensor([53.2408, 80.0925, 67.2032], dtype=torch.float64)
    """
    _check("images", images)
    return _lab(images)


def ciede2000(lab_a: torch.Tensor, lab_b: torch.Tensor) -> torch.Tensor:
    """Colour difference CIEDE2000 of CIELAB colours, with k_L = k_C = k_H = 1; about 1 is just noticeable.

    Args:
        lab_a, lab_b: (N, 3, ...), L*, a*, b*.

    Returns:
        (N, ...), float64, >= 0. Symmetric; not a metric (no triangle inequality), and made for small differences.

    Raises:
        UsageError: the shapes differ or are not (N, 3, ...).

    References:
        "The CIEDE2000 Color-Difference Formula: Implementation Notes, Supplementary Test Data, and Mathematical
        Observations", Sharma, Wu and Dalal 2005, Color Research and Application 30(1), equations 2 to 22.

    Example:
        >>> ciede2000(torch.tensor([[50.0, 2.6772, -79.7751]]), torch.tensor([[50.0, 0.0, -82.7485]]))
        tensor([2.0425], dtype=torch.float64)
    """
    if lab_a.shape != lab_b.shape or lab_a.ndim < 2 or lab_a.shape[1] != 3:
        raise UsageError(
            "`lab_a` and `lab_b` must have the same shape (N, 3, ...). "
            f"Got {tuple(lab_a.shape)} and {tuple(lab_b.shape)}."
        )
    (l1, a1, b1), (l2, a2, b2) = lab_a.double().unbind(1), lab_b.double().unbind(1)
    # Greys are bluish in CIELAB: a* is stretched where the chroma is low (equations 2 to 7).
    mean_chroma = (a1.hypot(b1) + a2.hypot(b2)) / 2
    stretch = 1.5 - 0.5 * _saturation(mean_chroma)
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = a1.hypot(b1), a2.hypot(b2)
    h1, h2 = (torch.rad2deg(torch.atan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))

    # Hues are taken the short way round; that of a grey has no weight below, whatever it is (equations 8 to 14).
    turn = h2 - h1
    far = turn.abs() > 180
    delta_h = turn - 360 * turn.sign() * far
    mean_h = (h1 + h2) / 2 + far * torch.where(h1 + h2 < 360, 180, -180)
    delta_l, delta_c = l2 - l1, c2 - c1
    delta_hue = 2 * (c1 * c2).sqrt() * torch.deg2rad(delta_h / 2).sin()
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2

    def cosine(factor: int, shift: int) -> torch.Tensor:
        return torch.deg2rad(factor * mean_h + shift).cos()

    # Weights of lightness, chroma and hue, and the rotation in the blues (equations 15 to 22).
    t = 1 - 0.17 * cosine(1, -30) + 0.24 * cosine(2, 0) + 0.32 * cosine(3, 6) - 0.20 * cosine(4, -63)
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / (20 + (mean_l - 50) ** 2).sqrt()
    s_c = 1 + 0.045 * mean_c
    s_h = 1 + 0.015 * mean_c * t
    angle = 60 * (-(((mean_h - 275) / 25) ** 2)).exp()
    rotation = -torch.deg2rad(angle).sin() * 2 * _saturation(mean_c)
    lightness, chroma, hue = delta_l / s_l, delta_c / s_c, delta_hue / s_h
    # Rounding may leave a tiny negative sum for equal colours.
    return (lightness**2 + chroma**2 + hue**2 + rotation * chroma * hue).clamp(min=0).sqrt()


def color_difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean CIEDE2000 over the pixels of each pair of sRGB images: lower is nearer, 0 for equal images.

    Args:
        a, b: (N, C, H, W) in [-1, 1], C = 3 (R, G, B) or 1 (grey).

    Returns:
        (N,), float64, 0 to about 100 (black against white); about 1 is just noticeable on even areas.

    Raises:
        UsageError: 2 or more than 3 channels, another type or range, or shapes that differ. DataError: NaN.

    Example:
        >>> black, white = -torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
        >>> color_difference(black, white).round(decimals=6)
        tensor([100.], dtype=torch.float64)
    """
    return _per_image(lambda x, y: ciede2000(_lab(x), _lab(y)).flatten(1).mean(1), a, b)


def color_word(text: str) -> str | None:
    """The colour that a text names: the one of `COLOR_WORDS` that is in it; None if there is none, or several.

    Example:
        >>> color_word("large red circle"), color_word("coloured pencils"), color_word("black and white cat")
        ('red', None, None)
    """
    found = {word for word in re.findall("[a-z]+", text.lower()) if word in COLOR_WORDS}
    return found.pop() if len(found) == 1 else None


def mean_color(images: torch.Tensor) -> torch.Tensor:
    """CIELAB of the mean colour of each image, pixels of a white background (L* > 97) left out, if others are left.

    Args:
        images: (N, 3, H, W) in [-1, 1].

    Returns:
        (N, 3), float64: the mean of L*, a*, b*.

    Example:
        >>> half = torch.ones(1, 3, 2, 2)
        >>> half[:, 1:, 0] = -1  # a red row over a white one
        >>> mean_color(half).round()
        tensor([[53., 80., 67.]], dtype=torch.float64)
    """
    lab = srgb_to_lab(images).flatten(2)  # (N, 3, pixels)
    seen = (lab[:, :1] <= _WHITE).double()
    seen = torch.where(seen.sum(2, keepdim=True) > 0, seen, 1.0)
    return (lab * seen).sum(2) / seen.sum(2)


def palette(images: torch.Tensor, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Mean colour of each colour word: the mean of `mean_color` over the images whose texts name it.

    Args:
        images: real ones, (N, 3, H, W) in [-1, 1].
        texts: their N captions.

    Returns:
        word -> (3,), CIELAB, for the words that some text names.

    Example:
        >>> palette(-torch.ones(2, 3, 4, 4), ["black cat", "a cat"])["black"].round().abs()
        tensor([0., 0., 0.], dtype=torch.float64)
    """
    _check_texts(images, texts)
    named = [color_word(text) for text in texts]
    colors = {word: [i for i, other in enumerate(named) if other == word] for word in COLOR_WORDS}
    return {word: mean_color(images[torch.tensor(rows)]).mean(0) for word, rows in colors.items() if rows}


def color_word_accuracy(images: torch.Tensor, texts: Sequence[str], colors: dict[str, torch.Tensor]) -> float:
    """Share of images whose mean colour is nearest to that of the word in their text; 1 / len(colors) by chance.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        texts: the prompts of the images; each names one of `colors`.
        colors: of `palette`. Nearest is by Euclidean distance in CIELAB.

    Raises:
        UsageError: a text that names no colour of the palette, or another number of texts than of images.

    Example:
        >>> colors = {"black": torch.zeros(3), "white": torch.tensor([100.0, 0.0, 0.0])}
        >>> color_word_accuracy(-torch.ones(2, 3, 4, 4), ["black cat", "white cat"], colors)
        0.5
    """
    _check_texts(images, texts)
    asked = [color_word(text) for text in texts]
    if unknown := [text for text, word in zip(texts, asked) if word not in colors]:
        raise UsageError(f"texts must each name one of {', '.join(colors)}; got {unknown[0]!r}.")
    words = [*colors]
    places = torch.stack([colors[word].cpu().double() for word in words])
    near = torch.cdist(mean_color(images).cpu(), places).argmin(1)
    return sum(words[i] == word for i, word in zip(near.tolist(), asked)) / len(texts)


def _check_texts(images: torch.Tensor, texts: Sequence[str]) -> None:
    if len(images) != len(texts) or not len(texts):
        raise UsageError(f"texts must be one for each of {len(images)} images, and at least one; got {len(texts)}.")


def _saturation(chroma: torch.Tensor) -> torch.Tensor:
    """`sqrt(C^7 / (C^7 + 25^7))`, from 0 for grey to 1."""
    seventh = chroma**7
    return (seventh / (seventh + 25.0**7)).sqrt()


def _lab(images: torch.Tensor) -> torch.Tensor:
    if images.shape[1] not in (1, 3):
        raise UsageError(f"Colours need images with 3 channels (R, G, B) or 1 (grey). Got {images.shape[1]}.")
    encoded = ((images.double() + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)
    linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    matrix = _TO_XYZ.to(images.device)
    x, y, z = torch.einsum("dc,nchw->dnhw", matrix / matrix.sum(1, keepdim=True), linear)  # white is (1, 1, 1)
    f_x, f_y, f_z = (
        torch.where(t > (6 / 29) ** 3, t.clamp(min=1e-9) ** (1 / 3), t * (29 / 6) ** 2 / 3 + 4 / 29) for t in (x, y, z)
    )
    return torch.stack([116 * f_y - 16, 500 * (f_x - f_y), 200 * (f_y - f_z)], 1)

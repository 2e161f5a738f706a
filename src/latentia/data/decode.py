"""One image file to uint8 pixels, without torchvision and without trust in the file.

The format is read from the content of a file, never from its name. Only the formats of `FORMATS` are opened, an image
of over `MAX_PIXELS` is refused before its pixels are decoded, and a file that ends early is an error.
"""

import io
import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from latentia.errors import DataError, UsageError
from latentia.files.reading import check_file, read_bytes

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "AVIF", "HEIF")
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif",
)  # fmt: skip
MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter GiB of RGB), where Pillow only warns
MAX_BYTES = 2**30  # of a file
MAX_SCANS = 100  # of a JPEG; a progressive one has about 10, and each of them goes over all of its pixels

# First bytes of what turns up under an image's name and is not opened here; only for the message.
_SIGNATURES = {
    b"%!PS": "PostScript (EPS)",
    b"\xc5\xd0\xd3\xc6": "PostScript (EPS)",
    b"%PDF": "PDF",
    b"8BPS": "a Photoshop document",
    b"<": "HTML or XML text",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)",
}
# Brands of the box at the start of a file of the ISO family (ISO/IEC 23008-12), and what opens them.
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis"), "HEIF")
_BRANDS |= {b"mif1": "HEIF", b"msf1": "HEIF"}
_NEEDS = {"AVIF": "Pillow 11.3 or newer", "HEIF": "the package pillow-heif (pip install pillow-heif)"}
_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_PLAIN = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "RGB": "RGB", "RGBA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB"}
_PLAIN |= {"P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB"}
_WITH_KEY = {"1": "LA", "L": "LA", "RGB": "RGBA", "P": "RGBA"}  # a colour or palette entry is named as transparent
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that can be opened here: AVIF and HEIF depend on Pillow's version and on pillow-heif."""
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def format_of(head: bytes) -> str | None:
    """The format of an image by the first 16 bytes of its file or more; None if they are of no image.

    Example:
        >>> format_of(b"GIF89a" + bytes(10))
        'GIF'
    """
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "BMP"
    starts = {_PNG: "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
    return next((name for start, name in starts.items() if head.startswith(start)), None)


class BadImage(DataError):
    """This one image cannot be used; `on_bad_image="skip"` leaves it out."""


def check_pillow() -> None:
    """UsageError if some library set Pillow to fill truncated files with grey, for the whole process."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, so damaged files would pass as images with grey stripes. "
            "Set it to False before load_images (some library you import has switched it on)."
        )


def open_image(payload: Any) -> Image.Image:
    """The decoded image in mode L, LA, RGB or RGBA, upright, 8 bits.

    Of an animation the first frame counts. EXIF orientation is applied. 16-bit grey v becomes round(v / 257), so that
    65535 is white; float grey must lie in [0, 1]; CMYK goes through Pillow's plain conversion, without colour profile.

    Args:
        payload: a path, the bytes of a file, {"bytes": ...}, a PIL image, or a uint8 array (H, W) or (H, W, 1|3|4).

    Raises:
        BadImage: the reason, without the name of the file, which the caller knows.

    Example:
        >>> import numpy as np
        >>> open_image(np.full((2, 3), 255, np.uint8)).size
        (3, 2)
    """
    return _plain(_opened(payload)[0])


def _opened(payload: Any) -> tuple[Image.Image, bool]:
    """The decoded image as Pillow gives it, and whether its file holds several."""
    if isinstance(payload, dict):
        payload = payload.get("bytes")
    if isinstance(payload, np.ndarray):
        return _from_array(payload), False
    if isinstance(payload, Image.Image):
        return payload, False
    if isinstance(payload, str | Path):
        try:
            payload = read_bytes(payload, MAX_BYTES, error=DataError)
        except DataError as error:
            raise BadImage(f"cannot be read ({str(error).rstrip('.')})") from None
    if isinstance(payload, bytes | bytearray | memoryview):
        return _from_bytes(bytes(payload))
    if payload is None:
        raise BadImage("holds no image bytes (a null, or only a path, which is not followed)")
    raise BadImage(f"is a {type(payload).__name__}, not an image")


def _from_bytes(data: bytes) -> tuple[Image.Image, bool]:
    if not data:
        raise BadImage("is empty (0 bytes)")
    known, found = readable_formats(), format_of(data)
    if found in _NEEDS and found not in known:
        raise BadImage(f"is {found}, which needs {_NEEDS[found]}")
    several = found == "PNG" and b"acTL" in data[: data.find(b"IDAT")]  # of an animation
    if found == "PNG":
        data = _without_notes(data)
    if found == "JPEG" and _count_scans(data) > MAX_SCANS:
        raise BadImage(f"is a JPEG of more than {MAX_SCANS} scans, which take long to decode; save it anew")
    try:
        image = Image.open(io.BytesIO(data), formats=known)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"is {image.width} x {image.height}, more than {MAX_PIXELS} pixels")
        if image.format == "PNG":  # load() leaves the checksums of a PNG alone, verify() needs a second open
            image.verify()
            image = Image.open(io.BytesIO(data), formats=known)
        several = several or (image.format != "MPO" and getattr(image, "is_animated", False))  # MPO: a photo's depth
        image.load()
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage(f"is larger than {MAX_PIXELS} pixels") from None
    except Exception as error:  # a hostile file can make a decoder raise anything
        for signature, name in _SIGNATURES.items():
            if data.lstrip()[:64].startswith(signature):
                raise BadImage(f"is {name}, not one of {', '.join(FORMATS)}") from None
        if isinstance(error, Image.UnidentifiedImageError):
            raise BadImage(f"is not one of {', '.join(FORMATS)}, or damaged in its first bytes") from None
        raise BadImage(f"is damaged ({error})") from None
    return image, several


def _count_scans(data: bytes) -> int:
    """The number of scans (SOS markers) of a JPEG, up to its end or the first that is one too many.

    ITU-T T.81, B.1.1: in a scan, a byte 0xFF that is no marker is followed by 0x00 or by a restart marker.
    """
    scans, at = 0, 2
    while scans <= MAX_SCANS and (marker := _MARKER.search(data, at)):
        kind, at = marker[0][-1], marker.end()
        if kind == 0xD9:  # EOI
            break
        scans += kind == 0xDA  # SOS
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _without_notes(data: bytes) -> bytes:
    """A PNG without the chunks that stand beside its pixels: texts, profiles, times, later frames.

    Pillow refuses a file for a text or profile of over 1 MB. Only intact chunks are left out; what says how the pixels
    are shown stays: transparency, and the orientation in EXIF or XMP.
    """
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + size
        body = data[at + 8 : end - 4]
        shown = kind in (b"tRNS", b"eXIf") or body.startswith((b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"))
        sound = end <= len(data) and data[end - 4 : end] == struct.pack(">I", zlib.crc32(kind + body))
        if not kind[:1].islower() or shown or not sound:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise BadImage(f"is a {array.dtype} array of shape {array.shape}, not uint8 (H, W) or (H, W, 1|3|4)")
    if array.size == 0:
        raise BadImage(f"is an empty array of shape {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def _plain(image: Image.Image) -> Image.Image:
    if any(key in image.info for key in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")):
        with suppress(Exception):  # what cannot be parsed names no orientation; the pixels are sound
            image = ImageOps.exif_transpose(image)
    try:
        if image.mode.startswith("I") or image.mode == "F":
            return Image.fromarray(_to_8_bits(np.asarray(image), image.mode))
        known = _WITH_KEY if "transparency" in image.info and image.mode in _WITH_KEY else _PLAIN
        if image.mode not in known:
            raise BadImage(f"has the colour mode {image.mode}, which is not supported")
        return image if image.mode == known[image.mode] else image.convert(known[image.mode])
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(f"is damaged ({error})") from None


def _to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    top = 1 if mode == "F" else 65535
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
        raise BadImage(f"has mode {mode} and values outside [0, {top}]")
    return np.floor(values.astype(np.float64) * (255 / top) + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Fit:
    """How a decoded image becomes pixels of the data set.

    Args:
        channels: 1, 3 or 4. Without an alpha channel (1, 3) transparent parts show white.
        size: (H, W), or None to keep the image's own size.
        crop: True cuts the centre (H, W); False only brings the image to where (H, W) just fits in, for a later crop.
    """

    channels: int
    size: tuple[int, int] | None = None
    crop: bool = True

    def __call__(self, image: Image.Image) -> np.ndarray:
        """A plain image (`open_image`) to uint8 (C, H, W).

        Resizing is Pillow's bicubic, which widens its filter when it shrinks (antialias). It is the filter of clean-FID
        (Parmar et al. 2022, arXiv 2104.11222), so training images and the real half of an FID meet the same one.

        Example:
            >>> import numpy as np
            >>> Fit(channels=3, size=(4, 4))(open_image(np.zeros((8, 16), np.uint8))).shape
            (3, 4, 4)
        """
        if self.channels != 4 and image.mode in ("LA", "RGBA"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        if image.mode != _MODES[self.channels]:
            image = image.convert(_MODES[self.channels])
        if self.size is not None:
            image = self._resize(image, *self.size)
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))

    def _resize(self, image: Image.Image, height: int, width: int) -> Image.Image:
        scale = max(height / image.height, width / image.width)
        if self.crop:  # only the part that stays is computed
            cut_width, cut_height = min(width / scale, image.width), min(height / scale, image.height)
            left, top = (image.width - cut_width) / 2, (image.height - cut_height) / 2
            box = (left, top, left + cut_width, top + cut_height)
        else:
            box = (0, 0, image.width, image.height)
            width, height = max(width, round(image.width * scale)), max(height, round(image.height * scale))
            if width * height > MAX_PIXELS:
                raise BadImage(f"would be {width} x {height} with its shorter side at the resolution: too long")
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


class Decoded(NamedTuple):
    """Pixels of an image, uint8 (C, H, W); whether its file holds more images, of which this is the first; and the
    largest value of an image of 16 bits, None for others."""

    pixels: np.ndarray
    several: bool
    peak: int | None = None


def decode(payload: Any, fit: Fit, grey_only: bool) -> Decoded | Exception:
    """The pixels of a payload, or the error it made. `grey_only`: a colour image is an error."""
    try:
        found, several = _opened(payload)
        image = _plain(found)
        if grey_only and image.mode in ("RGB", "RGBA"):
            raise DataError(
                "is in colour, but the first image of the data set is grey. Give channels=3 to keep the colours, "
                "or channels=1 to turn all images grey"
            )
        peak = int(np.asarray(found).max()) if found.mode.startswith("I") else None
        return Decoded(fit(image), several, peak)
    except DataError as error:
        return error


def decode_all(payloads: list[Any], fit: Fit, grey_only: bool) -> list[Decoded | Exception]:
    """`decode` of each payload, for a worker."""
    return [decode(payload, fit, grey_only) for payload in payloads]


def decoded_bytes(payload: Any, size: tuple[int, int] | None) -> int | None:
    """About the bytes that a payload takes before and after it is decoded; None if its header cannot be read.

    Args:
        payload: as for `open_image`.
        size: (H, W) of the pixels afterwards; None for the image's own.
    """
    if isinstance(payload, dict):
        payload = payload.get("bytes")
    given = len(payload) if isinstance(payload, bytes | bytearray | memoryview) else 0
    if size is not None:
        return given + 4 * size[0] * size[1]
    if isinstance(payload, np.ndarray):
        return payload.nbytes
    if isinstance(payload, Image.Image):
        return 4 * payload.width * payload.height
    try:
        file = io.BytesIO(payload) if given else check_file(payload)
        with Image.open(file, formats=readable_formats()) as image:
            return given + 4 * image.width * image.height
    except Exception:  # whatever a decoder raises; who decodes it says it in words
        return None

"""The orientation tag of a JPEG, found without decoding the file."""

import struct

_ORIENTATION_TAG = 0x0112
_SHORT = 3


def jpeg_orientation(data: bytes) -> int:
    """Returns the EXIF orientation (1 to 8) of a JPEG; 1, upright, where there is no valid one.

    Walks the marker segments up to the APP1 segment with EXIF data (JEITA CP-3451, section 4.5).
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding before a marker
            position += 1
            continue
        if marker == 0xDA or 0xD0 <= marker <= 0xD9:  # the picture itself, or no segment
            return 1
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            return _tiff_orientation(segment[6:])
        position += 2 + length
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    """Reads the orientation from the first directory of a TIFF block."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for number in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * number)
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else 1
    except struct.error:  # offsets that lead outside the block
        return 1
    return 1

"""Images, audio and videos: only text is trained on, and whatever else a dialogue holds is refused."""

from collections.abc import Mapping

from mtsft.errors import InputError

MEDIA = ("image", "images", "audio", "audios", "video", "videos")


def refuse_media(record: Mapping, subject: str) -> None:
    """Raises InputError for images, audio and videos beside the text; subject: what its error begins with."""
    for key in MEDIA:
        if record.get(key):
            raise InputError(f"{subject} has '{key}', and only text is trained on; remove the dialogue")


def is_media(kind_of_part: str) -> bool:
    """Whether a part of this type is no text."""
    return kind_of_part == "file" or any(word in kind_of_part for word in ("image", "audio", "video"))

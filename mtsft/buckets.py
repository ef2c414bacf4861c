"""Files and folders in buckets: gs:// through gcsfs, s3:// through s3fs, as `fsspec` and `etils.epath` find them.

Endpoints and credentials are those that the libraries look for themselves, in the environment and in the files of
gcloud and aws. An object is there whole or not at all; a folder is only a beginning of names, so that whoever writes
one writes last the file without which it is nothing (see `upload`).
"""

import functools
import hashlib
import logging
import os
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtsft.errors import InputError, one_line

_URL = re.compile(r"([A-Za-z][\w+.-]*)://")
_EXTRAS = {"gs": "gcs", "s3": "s3"}  # of setup.cfg, by the scheme of a name
_ANSWER = 30.0  # seconds that a bucket has for its first answer
_PART = 8 << 20  # bytes of a range that are asked for at a time, side by side
_VERSION = ("size", "ETag", "etag", "generation", "md5Hash", "LastModified", "updated")  # of an object, as they say it
_LIBRARIES = ("gcsfs.", "s3fs.", "fsspec.", "botocore.", "aiobotocore.", "aiohttp.", "google.auth.", "google.cloud.")
_OF_CODE = (TypeError, AttributeError, NameError, AssertionError)  # which a network does not raise
_OF_TENSORSTORE = re.compile(r"(?:reading|writing|opening|deleting) \"?(?:gs|s3)://", re.IGNORECASE)


def is_bucket(path: str | Path) -> bool:
    """Whether a path has a scheme, as those in buckets have (gs://...)."""
    return _URL.match(str(path)) is not None


def bucket_path(path: str | Path) -> Path:
    """A path in a bucket, of etils.epath; the file or folder need not be there, but the bucket must answer.

    Raises:
        InputError: there is no such bucket, it may not be read, does not answer, or needs what is not installed.
    """
    scheme, name = _URL.match(str(path)).group(1), str(path).partition("://")[2]
    if scheme not in _EXTRAS:
        raise InputError(f"{path}: {scheme}:// is of no kind that is read; use gs://, s3:// or a local path")
    bucket, _, prefix = name.partition("/")
    if not bucket:
        raise InputError(f"{path}: names no bucket; write {scheme}://BUCKET/FOLDER")
    try:
        _ask(scheme, bucket, prefix)
    except ImportError as error:
        raise InputError(f"{path}: needs what is not installed: pip install 'mtsft[{_EXTRAS[scheme]}]'") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no bucket {bucket}; make it, or correct the name") from error
    except Exception as error:  # of many kinds, as the service and the network have them
        raise InputError(f"{path}: cannot be read ({_said(error)}); see to the network and the credentials") from error
    from etils import epath  # a tenth of a second, for those alone who need it

    return epath.Path(str(path))


def size_of(path: Path) -> int:
    """The bytes of a file, in a bucket or not. Raises OSError where it cannot be told."""
    if not is_bucket(path):
        return path.stat().st_size
    with _os_errors():
        return _filesystem(path).info(str(path))["size"]


def read_range(path: Path, start: int, stop: int) -> bytes:
    """Bytes start .. stop - 1 of a file in a bucket, in parts that are fetched side by side; fewer where it ends.

    Raises OSError where they cannot be read.
    """
    with _os_errors():
        starts = [*range(start, stop, _PART)]
        stops = [min(at + _PART, stop) for at in starts]
        return b"".join(_filesystem(path).cat_ranges([str(path)] * len(starts), starts, stops, on_error="raise"))


def create(path: Path, data: bytes) -> bool:
    """Writes a file of a bucket unless it is there; returns whether it did. Raises OSError where neither can be."""
    with _os_errors():
        try:
            _filesystem(path).pipe_file(str(path), data, mode="create")
        except FileExistsError:
            return False
    return True


def write(path: Path, data: bytes) -> None:
    """Writes a file of a bucket, whole. Raises OSError where that fails."""
    with _os_errors():
        _filesystem(path).pipe_file(str(path), data)


def matching(pattern: str) -> list[Path]:
    """What a glob pattern names in a bucket, sorted. Raises OSError where it cannot be listed."""
    from etils import epath

    with _os_errors():
        scheme = pattern.partition("://")[0]
        return [epath.Path(f"{scheme}://{name}") for name in sorted(_filesystem(pattern).glob(pattern))]


def local_copy(path: Path, cache: Path) -> Path:
    """A file of a bucket as one in `cache`/buckets, fetched unless this very version of it is there.

    Raises OSError where it cannot be fetched.
    """
    with _os_errors():
        info = _filesystem(path).info(str(path))
        version = [info.get(key) for key in _VERSION]
    digest = hashlib.sha256(repr((str(path), version)).encode()).hexdigest()[:16]
    copy = cache / "buckets" / digest / str(path).replace("://", "/")
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
        try:
            with _os_errors():
                _filesystem(path).get_file(str(path), str(part))
            if part.stat().st_size != info["size"]:
                raise OSError(f"it changed while it was fetched from {path}")
            part.replace(copy)
        finally:
            part.unlink(missing_ok=True)
    return copy


def download(folder: Path, target: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Fetches the files of a folder in a bucket.

    Args:
        folder: in the bucket.
        target: the local folder.
        wanted: from the name of a file in the folder to whether it is fetched.

    Raises:
        OSError: one cannot be fetched.
    """
    for name in names_in(folder):
        if wanted(name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with _os_errors():
                _filesystem(folder).get_file(f"{folder}/{name}", str(target / name))


def upload(folder: Path, target: Path, last: Sequence[str] = ()) -> None:
    """Writes the files of a local folder into one of a bucket.

    Args:
        folder: the local folder.
        target: in the bucket.
        last: names of the files without which the folder is nothing, such as config.json; they are written after all
            others, in this order, so that a folder that was cut off is not taken for a whole one.

    Raises:
        OSError: one cannot be written.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    for name in [*(name for name in names if name not in last), *(name for name in last if name in names)]:
        with _os_errors():
            _filesystem(target).put_file(str(folder / name), f"{target}/{name}")


def remove(folder: Path, first: Sequence[str] = ()) -> None:
    """Deletes all files of a folder in a bucket, those named `first` before all others. Raises OSError."""
    names = sorted(names_in(folder), key=lambda name: name not in first)
    for some in ([name for name in names if name in first], [name for name in names if name not in first]):
        if some:
            with _os_errors():
                _filesystem(folder).rm([f"{folder}/{name}" for name in some])


def names_in(folder: Path) -> list[str]:
    """The names of all files in a folder of a bucket and in those within it, from the folder on. Raises OSError."""
    with _os_errors():
        beginning = str(folder).partition("://")[2].rstrip("/") + "/"
        names = _filesystem(folder).find(str(folder))
        return sorted(
            name.removeprefix(beginning) for name in names if name.startswith(beginning) and name != beginning
        )


def is_failure(error: BaseException) -> bool:
    """Whether an error is of a bucket or of the network to it, and not of our own code."""
    while error is not None and not isinstance(error, _OF_CODE):
        modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)}
        if any(f"{name}.".startswith(_LIBRARIES) for name in modules) or _OF_TENSORSTORE.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@functools.cache
def _of_scheme(scheme: str) -> Any:
    """The file system of a scheme. Raises ImportError where its library is not installed."""
    import fsspec

    # Other hosts write into the same folders: what was listed once is not what is there now.
    for protocol in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs what it raises
    return fsspec.filesystem(scheme)


def _filesystem(path: str | Path) -> Any:
    return _of_scheme(str(path).partition("://")[0])


def _ask(scheme: str, bucket: str, prefix: str) -> None:
    """Asks for one name in a bucket. Raises whatever the service, its library and the network have."""
    from fsspec.asyn import sync

    filesystem = _of_scheme(scheme)
    if scheme == "gs":
        call = functools.partial(filesystem._call, "GET", "b/{}/o", bucket, maxResults=1, prefix=prefix, json_out=True)
    else:
        call = functools.partial(filesystem._call_s3, "list_objects_v2", Bucket=bucket, MaxKeys=1, Prefix=prefix)
    sync(filesystem.loop, call, timeout=_ANSWER)


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raises OSError in place of what the libraries raise."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise OSError(_said(error)) from error


def _said(error: BaseException) -> str:
    return one_line(str(error).strip() or f"no answer in {_ANSWER:.0f} s", 200)

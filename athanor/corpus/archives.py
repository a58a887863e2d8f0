"""Members of an archive, read into memory within bounds.

Nothing is extracted to disk and nothing is executed. A member that is larger than allowed, whose header lies about its
size, or that is damaged gives a DataError.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from athanor.base.errors import DataError

LARGEST_MEMBER = 64 << 20

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)


def read_member(archive: Path, member: str, limit: int = LARGEST_MEMBER) -> bytes:
    """The content of one member. limit: bytes it may have when unpacked. Raises DataError."""
    try:
        with zipfile.ZipFile(archive) as file:
            information = file.getinfo(member)
            if information.file_size > limit:
                raise DataError(
                    f"{member} in {archive} claims {information.file_size} bytes; at most {limit} are read."
                )
            with file.open(information) as stream:
                content = stream.read(limit + 1)  # the header may lie, the stream is bounded all the same
    except KeyError:
        raise DataError(f"{archive} has no member {member}.", "It is another version than the one expected.") from None
    except _DAMAGE as error:
        raise DataError(
            f"{member} in {archive} cannot be read ({error}).", "Remove the file, so that it is fetched again."
        ) from error
    if len(content) != information.file_size:
        raise DataError(f"{member} in {archive} has another size than its header says.", "Do not use this archive.")
    return content


def member_names(archive: Path, prefix: str = "", suffix: str = "") -> list[str]:
    """Sorted names of the members that start with `prefix` and end with `suffix`. Raises DataError."""
    try:
        with zipfile.ZipFile(archive) as file:
            return sorted(name for name in file.namelist() if name.startswith(prefix) and name.endswith(suffix))
    except _DAMAGE as error:
        raise DataError(f"{archive} is not an archive that can be read ({error}).") from error

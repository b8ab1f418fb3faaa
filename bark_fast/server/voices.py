"""The voices that clients may name: the checkpoint's, a folder's, and OpenAI's names for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bark_fast.errors import InputError
from bark_fast.server.encode import check_format
from bark_fast.text import check_unicode
from bark_fast.types import Voice
from bark_fast.voices import VoiceLibrary, VoiceLike, open_voices

OPENAI_VOICES = (
    "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage",
    "shimmer", "verse",
)  # fmt: skip


class ServerVoices:
    """The voices of a server, by name; no name is ever taken for a file.

    Args:
        library: the checkpoint's.
        folder: holds more, an .npz file each; "ann.npz" is "ann".

    Raises:
        InputError: the folder cannot be read, a file in it is no voice of this checkpoint, or one
            has the name of another voice.
    """

    def __init__(self, library: VoiceLibrary, folder: Path | None = None) -> None:
        self._library = library
        self._folder = folder
        self._more: Mapping[str, Voice] = {}
        self.reload()

    @classmethod
    def open(cls, model: str, folder: Path | None, **source: Any) -> ServerVoices:
        """Open those of a checkpoint, before its weights; so what is wrong with it shows early.

        Args:
            model, source: as in `open_voices`.

        Raises:
            InputError: as the constructor; or the model's audio has a rate that MP3 has not.
            CheckpointError: the checkpoint's small files are wrong.
        """
        library = open_voices(model, **source)
        check_format("mp3", library.config.sample_rate_hz)
        return cls(library, folder)

    @property
    def sample_rate_hz(self) -> int:
        """Samples a second of the checkpoint's audio."""
        return self._library.config.sample_rate_hz

    def reload(self) -> None:
        """Read the folder again; if that fails the voices stay as they were.

        Raises:
            InputError: as the constructor.
        """
        if self._folder is None:
            return
        try:
            files = sorted(path for path in self._folder.iterdir() if path.suffix == ".npz")
        except OSError as error:
            raise InputError(
                f"--voices must be a folder that can be read, got {str(self._folder)!r}: "
                f"{error.strerror}"
            ) from error
        more: dict[str, Voice] = {}
        for path in files:
            check_unicode(path.stem, "the name of each file in --voices")  # clients are told it
            if path.stem in self._library.names:
                raise InputError(
                    f"{path}: must have a name that no voice of the checkpoint has, got "
                    f"{path.stem!r}"
                )
            voice = self._library.get(path, name=str(path))
            assert voice is not None  # a file is never None
            more[path.stem] = voice
        self._more = more

    @property
    def names(self) -> list[str]:
        """The names of all, the checkpoint's first."""
        return [*self._library.names, *self._more]

    @property
    def aliases(self) -> dict[str, str]:
        """OpenAI's names, each for one of the voices; a voice of that name is itself."""
        names = self.names
        return {
            alias: names[i % len(names)]
            for i, alias in enumerate(OPENAI_VOICES)
            if names and alias not in names
        }

    def get(self, name: str | None) -> VoiceLike | None:
        """Return the voice of a name, for the backend.

        Args:
            name: of a voice, or an alias; None is the first voice.

        Returns:
            None if the model shall choose, which has no voices then.

        Raises:
            InputError: there is no such voice.
        """
        names = self.names
        if name is None or (not names and name in OPENAI_VOICES):
            return names[0] if names else None
        found = self.aliases.get(name, name)
        if found in self._more:
            return self._more[found]
        if found in names:
            return found
        known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise InputError(
            f"voice must be one that GET /v1/audio/voices lists ({known or 'there are none'}), "
            f"got {name!r}"
        )

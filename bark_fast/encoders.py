"""Turn samples into the bytes of audio files, piece by piece.

WAV and PCM are written here. The compressed kinds come from libsndfile and, for AAC, from FFmpeg.
Both write to a scratch file in memory, so that no Python runs inside their calls: an interruption
there would be lost.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bark_fast.errors import InputError

FloatArray = npt.NDArray[np.float32]

SUBTYPES: Mapping[str, tuple[str, ...]] = {
    "wav": ("PCM_16", "PCM_24", "FLOAT"),
    "flac": ("PCM_16", "PCM_24"),
    "mp3": ("MPEG_LAYER_III",),
    "ogg": ("OPUS", "VORBIS"),
    "opus": ("OPUS",),
    "aac": ("AAC",),
    "pcm": ("PCM_16", "PCM_24", "FLOAT"),
    "raw": ("PCM_16", "PCM_24", "FLOAT"),
}
"""The formats, and how each can store samples; the first is its default."""

_LIBSNDFILE = {"flac": "FLAC", "mp3": "MP3", "ogg": "OGG", "opus": "OGG"}
_BYTES = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}
_AAC_RATES_HZ = (
    *(96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000),
    *(22_050, 16_000, 12_000, 11_025, 8_000, 7_350),
)
_AAC_BITS_PER_S = 64_000  # one channel of FFmpeg's encoder is good from there on
_OGG_HEADER = 27  # bytes of a page's header before the lengths of its segments
_TURNED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # bits the other way
_UNKNOWN = 0xFFFFFFFF  # a length that is not known yet, or does not fit: the rest of the file


class Encoder(ABC):
    """Encodes samples that come piece by piece.

    Attributes:
        head: after `finish`, what the beginning has to be now that the length is known; empty if it
            is right as it was.
        placeholder: so many bytes at the beginning only keep a place for `head`, and are left out
            where nothing can be written there later.
    """

    head: bytes = b""
    placeholder: int = 0

    @abstractmethod
    def feed(self, samples: FloatArray) -> None:
        """Take the next samples, float32 [T]."""

    @abstractmethod
    def read(self, start: int) -> bytes:
        """Return the bytes from `start` on that are there; none before it are asked for again."""

    @abstractmethod
    def finish(self) -> None:
        """Take note that all samples are there."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held; to be called at the end, whatever came before."""


class _PlainEncoder(Encoder):
    """Encodes uncompressed samples, with a WAV header before them or without."""

    def __init__(self, sample_rate_hz: int, subtype: str, *, header: bool) -> None:
        self._sample_rate_hz = sample_rate_hz
        self._subtype = subtype
        self._header = header
        self._n_samples = 0
        self._start = 0
        self._recent = bytearray(self._header_of(None))

    def feed(self, samples: FloatArray) -> None:
        self._recent += _quantise(samples, self._subtype)
        self._n_samples += len(samples)

    def read(self, start: int) -> bytes:
        del self._recent[: start - self._start]
        self._start = start
        return bytes(self._recent)

    def finish(self) -> None:
        if self._header:
            self._recent += b"\0" * (self._n_samples * _BYTES[self._subtype] % 2)
        self.head = self._header_of(self._n_samples)

    def close(self) -> None:
        self._recent.clear()

    def _header_of(self, n_samples: int | None) -> bytes:
        """Return the header of so many samples; None is an unknown number."""
        if not self._header:
            return b""
        width, rate = _BYTES[self._subtype], self._sample_rate_hz
        tag = 3 if self._subtype == "FLOAT" else 1
        body = struct.pack(
            "<4s4sIHHIIHH", b"WAVE", b"fmt ", 16, tag, 1, rate, rate * width, width, 8 * width
        )
        n_bytes = _UNKNOWN if n_samples is None else n_samples * width
        if tag == 3:  # which the standard wants for all that is not PCM
            body += struct.pack("<4sII", b"fact", 4, _length(n_samples))
        body += struct.pack("<4sI", b"data", _length(n_bytes))
        return struct.pack("<4sI", b"RIFF", _length(len(body) + n_bytes + n_bytes % 2)) + body


def _length(n: int | None) -> int:
    return _UNKNOWN if n is None else min(n, _UNKNOWN)


def _quantise(samples: FloatArray, subtype: str) -> bytes:
    """Return little-endian samples; integers are rounded down, as libsndfile rounds them."""
    if subtype == "FLOAT":
        return samples.astype("<f4").tobytes()
    scaled = np.rint(samples.astype(np.float64) * 2.0**31)
    whole = np.clip(scaled, -(2**31), 2**31 - 1).astype("<i4")
    width = _BYTES[subtype]
    return whole.view(np.uint8).reshape(-1, 4)[:, 4 - width :].tobytes()


class _LibsndfileEncoder(Encoder):
    """Encodes with libsndfile."""

    _CHUNK = 2**14  # libsndfile's Vorbis encoder wants the samples of one call on the stack
    _HEAD = 2**12  # more than any of these formats rewrites at the end
    _OPTIONS: Mapping[str, Mapping[str, Any]] = {
        # A constant bit rate tells players the length of a stream, which has no place for it. This
        # level is 64 kbit/s at 24 kHz.
        "mp3": {"bitrate_mode": "CONSTANT", "compression_level": 0.6},
        # The highest level with blocks of 1,152 samples, not 4,096: less is held back, for files
        # that are less than 1 % larger.
        "flac": {"compression_level": 0.25},
    }

    def __init__(self, sample_rate_hz: int, kind: str, subtype: str) -> None:
        import soundfile  # only those who save such files need it

        self._scratch = _scratch_file()
        self._n_samples = 0
        try:
            self._file = soundfile.SoundFile(
                self._scratch,
                "w",
                sample_rate_hz,
                1,
                format=_LIBSNDFILE[kind],
                subtype=subtype,
                closefd=False,
                **self._OPTIONS.get(kind, {}),
            )
        except BaseException as error:
            os.close(self._scratch)
            if isinstance(error, soundfile.LibsndfileError):
                raise InputError(
                    f"format must be one for {sample_rate_hz} Hz, got {kind!r}: "
                    f"{error.error_string}"
                ) from error
            raise
        self._mp3 = kind == "mp3"

    def feed(self, samples: FloatArray) -> None:
        if self._mp3 and not self._n_samples and len(samples):
            # The first frame tells the length, and is empty until the end. LAME gives no other one
            # for a single sample.
            self._write(samples[:1])
            samples = samples[1:]
            self.placeholder = os.fstat(self._scratch).st_size
        for i in range(0, len(samples), self._CHUNK):
            self._write(samples[i : i + self._CHUNK])

    def _write(self, samples: FloatArray) -> None:
        self._file.write(samples)
        self._n_samples += len(samples)

    def read(self, start: int) -> bytes:
        return _read_all(self._scratch, start)

    def finish(self) -> None:
        if not self._n_samples:
            # libsndfile writes no header without samples: the shortest file that others can read.
            self.feed(np.zeros(1, dtype=np.float32))
        self._file.close()
        self.head = os.pread(self._scratch, self._HEAD, 0)

    def close(self) -> None:
        self._file.close()
        if self._scratch >= 0:
            os.close(self._scratch)
            self._scratch = -1


class _OggEncoder(_LibsndfileEncoder):
    """Encodes Opus or Vorbis in Ogg with libsndfile, the same bytes for the same samples (for
    Vorbis, in the same pieces).

    libsndfile draws the number of a stream, which all its pages have. Here it comes from the sound,
    so that files that are joined have different ones.
    """

    def __init__(self, sample_rate_hz: int, kind: str, subtype: str) -> None:
        super().__init__(sample_rate_hz, kind, subtype)
        _set_page_latency(self._file, 20)  # libsndfile makes it 60 ms, instead of a second
        self._serial: int | None = None
        self._n_bytes = 0  # of pages that have their number

    def read(self, start: int) -> bytes:
        self._renumber()
        return _read_all(self._scratch, start)[: self._n_bytes - start]

    def finish(self) -> None:
        super().finish()
        self.head = b""

    def _renumber(self) -> None:
        """Give the pages that are new the stream's number, if sound is among them."""
        pages = _ogg_pages(_read_all(self._scratch, self._n_bytes))
        if self._serial is None:
            sound = next((page for page in pages if struct.unpack_from("<q", page, 6)[0] > 0), None)
            if sound is None:
                return
            self._serial = zlib.crc32(sound[_OGG_HEADER:])
        for page in pages:
            struct.pack_into("<I", page, 14, self._serial)
            struct.pack_into("<I", page, 22, 0)
            struct.pack_into("<I", page, 22, _ogg_checksum(page))
            os.pwrite(self._scratch, page, self._n_bytes)
            self._n_bytes += len(page)


def _set_page_latency(file: Any, latency_ms: float) -> None:
    """Tell libsndfile how much sound a page of Opus may hold; soundfile has no name for that."""
    from soundfile import _ffi, _snd

    command = 0x1302  # SFC_SET_OGG_PAGE_LATENCY_MS
    _snd.sf_command(file._file, command, _ffi.new("double *", latency_ms), _ffi.sizeof("double"))


def _ogg_pages(content: bytes) -> list[bytearray]:
    """Return the pages (RFC 3533) that are whole."""
    pages = []
    start = 0
    while len(content) >= (end := start + _OGG_HEADER):
        end += content[end - 1]  # segments, each with its length here
        end += sum(content[start + _OGG_HEADER : end])
        if end > len(content):
            break
        pages.append(bytearray(content[start:end]))
        start = end
    return pages


def _ogg_checksum(page: bytearray) -> int:
    """Return the checksum of RFC 3533: zlib's, begun and ended with 0, all bits turned round."""
    turned = zlib.crc32(page.translate(_TURNED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{turned:032b}"[::-1], 2)


class _AacEncoder(Encoder):
    """Encodes AAC-LC with FFmpeg, as ADTS: each frame has a header, and the file has none."""

    def __init__(self, sample_rate_hz: int) -> None:
        if sample_rate_hz not in _AAC_RATES_HZ:
            raise InputError(f"format must be one for {sample_rate_hz} Hz, got 'aac'")
        import av  # the extra `aac`

        self._frame = av.AudioFrame
        self._sample_rate_hz = sample_rate_hz
        self._n_samples = 0
        self._scratch = _scratch_file()
        try:
            # FFmpeg holds 32 KB back if it may.
            options = {"flush_packets": "1"}
            self._file = av.open(f"pipe:{self._scratch}", "w", format="adts", options=options)
            self._stream = self._file.add_stream("aac", rate=sample_rate_hz, layout="mono")
            self._stream.bit_rate = _AAC_BITS_PER_S
        except BaseException:
            os.close(self._scratch)
            raise

    def feed(self, samples: FloatArray) -> None:
        if len(samples):
            frame = self._frame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = self._sample_rate_hz
            frame.pts = self._n_samples
            self._n_samples += len(samples)
            self._file.mux(self._stream.encode(frame))

    def read(self, start: int) -> bytes:
        return _read_all(self._scratch, start)

    def finish(self) -> None:
        if not self._n_samples:
            self.feed(np.zeros(1, dtype=np.float32))  # FFmpeg writes nothing of nothing
        self._file.mux(self._stream.encode(None))
        self._file.close()

    def close(self) -> None:
        if self._scratch >= 0:
            self._file.close()
            os.close(self._scratch)
            self._scratch = -1


def _scratch_file() -> int:
    """Return the descriptor of an empty file that ends when it is closed, in memory if possible."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("bark-fast")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _read_all(descriptor: int, start: int) -> bytes:
    """Return what a file holds from `start` on."""
    pieces = []
    while piece := os.pread(descriptor, 2**20, start):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def check_encoding(kind: str, subtype: str | None, *, shown: str | None = None) -> str:
    """Return how a format's samples are stored: `subtype`, or its default for None.

    Args:
        kind: one of `SUBTYPES`.
        shown: what the format is called in messages.

    Raises:
        InputError: it has no such subtype, or this libsndfile does not have it.
    """
    subtypes = SUBTYPES[kind]
    if subtype is not None and subtype not in subtypes:
        raise InputError(
            f"subtype must be one of {', '.join(subtypes)} for {shown or kind}, got {subtype!r}"
        )
    chosen = subtype or subtypes[0]
    if kind == "aac" and importlib.util.find_spec("av") is None:
        raise InputError(
            "format must be one without a package that is missing "
            f"(aac needs PyAV: pip install 'bark-fast[aac]'), got {shown or kind!r}"
        )
    if kind in _LIBSNDFILE:
        import soundfile

        if chosen not in soundfile.available_subtypes(_LIBSNDFILE[kind]):
            raise InputError(
                f"format must be one that libsndfile {soundfile.__libsndfile_version__} writes "
                f"({kind} needs 1.1 or newer), got {kind!r}"
            )
    return chosen


def make_encoder(kind: str, subtype: str, sample_rate_hz: int) -> Encoder:
    """Return an encoder of mono audio; arguments as `check_encoding` has them.

    Raises:
        InputError: the format does not take this sample rate.
    """
    if kind in _LIBSNDFILE:
        encoder = _OggEncoder if _LIBSNDFILE[kind] == "OGG" else _LibsndfileEncoder
        return encoder(sample_rate_hz, kind, subtype)
    if kind == "aac":
        return _AacEncoder(sample_rate_hz)
    return _PlainEncoder(sample_rate_hz, subtype, header=kind == "wav")

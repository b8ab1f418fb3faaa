"""What clients send and get, in pydantic's terms, which is the OpenAPI schema too."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from bark_fast.tempo import MAX_SPEED, MIN_SPEED
from bark_fast.types import GenerationParams
from bark_fast.validation import SEED_LIMIT

# Clients that only know OpenAI's own models send these.
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-4o-mini-tts-2025-12-15")

ResponseFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]

_PARAMS = {f.name: get_type_hints(GenerationParams)[f.name] for f in fields(GenerationParams)}
_STRICT = ConfigDict(strict=True, ser_json_inf_nan="null")


class VoiceId(BaseModel):
    """A voice, in the longer of OpenAI's two ways."""

    model_config = _STRICT
    id: str


class _OpenAiRequest(BaseModel):
    """The fields of OpenAI's POST /v1/audio/speech; others are ignored."""

    model_config = _STRICT

    model: str = Field(description="a name that GET /v1/models lists, or one of OpenAI's")
    input: str = Field(
        description="what to say, sentence by sentence", json_schema_extra={"pattern": r"\S"}
    )
    voice: str | VoiceId | None = Field(
        None, description="a name that GET /v1/audio/voices lists (default: the first one)"
    )
    instructions: str | None = Field(None, description="accepted and not followed")
    response_format: ResponseFormat | None = Field(None, description='default: "mp3"')
    speed: Annotated[float, Field(ge=MIN_SPEED, le=MAX_SPEED, allow_inf_nan=False)] | None = Field(
        None, description="of speech, at the same pitch (default: 1)"
    )
    stream_format: Literal["audio", "sse"] | None = Field(
        None, description='the audio itself (default), or events ("sse")'
    )
    stream: bool | None = Field(
        None, description="send each sentence when it is there (default), or all at the end"
    )
    language: str | None = Field(
        None, description='of the text, for its abbreviations: a code such as "en" (default)'
    )


# What GenerationParams checks, for those who read the schema; by the end of a field's name.
_RANGES: dict[str, dict[str, Any]] = {
    "temperature": {"minimum": 0},
    "top_k": {"minimum": 0},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "min_eos_p": {"minimum": 0, "maximum": 1},
    "min_semantic_tokens": {"minimum": 0},
    "max_semantic_tokens": {"minimum": 1},
    "max_duration_s": {"exclusiveMinimum": 0},
    "normalize_text": {"pattern": "^[A-Za-z]+$"},
    "seed": {"minimum": 0, "exclusiveMaximum": SEED_LIMIT},  # a float in the schema, and exact
}


def _range_of(name: str) -> dict[str, Any]:
    return next(limits for end, limits in _RANGES.items() if name.endswith(end))


# Beside OpenAI's, the names of GenerationParams.
SpeechRequest: type[_OpenAiRequest] = create_model(
    "SpeechRequest",
    __base__=_OpenAiRequest,
    **{
        name: (
            kind,
            Field(
                None,
                description="as in bark_fast.GenerationParams",
                json_schema_extra=_range_of(name),
            ),
        )
        for name, kind in _PARAMS.items()
    },  # type: ignore[call-overload]
)
FIELDS = frozenset(SpeechRequest.model_fields)


@dataclass(frozen=True)
class Order:
    """What a request asks for, with nothing left open.

    Attributes:
        text, voice, params, language: as in `Bark.stream`; `voice` is a name or None.
        response_format, speed: of the audio.
        events: send server-sent events, not the audio itself.
        streamed: send each sentence when it is there.
        warnings: what is done differently from what was asked.
    """

    text: str
    voice: str | None
    params: GenerationParams
    language: str
    response_format: str
    speed: float
    events: bool
    streamed: bool
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, body: Any) -> Order:
        """Return what a `SpeechRequest` asks for.

        Raises:
            InputError: a parameter of sampling is out of its range.
        """
        voice = body.voice.id if isinstance(body.voice, VoiceId) else body.voice
        ignored = "instructions are not followed: Bark takes none" if body.instructions else None
        return cls(
            text=body.input,
            voice=voice,
            params=GenerationParams(**{name: getattr(body, name) for name in _PARAMS}),
            language=body.language or "en",
            response_format=body.response_format or "mp3",
            speed=1.0 if body.speed is None else body.speed,
            events=body.stream_format == "sse",
            streamed=body.stream is not False,
            warnings=(ignored,) if ignored else (),
        )


class Model(BaseModel):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "bark-fast"


class Models(BaseModel):
    """The models that can be asked for."""

    object: Literal["list"] = "list"
    data: list[Model]


class Named(BaseModel):
    """Something that can be asked for by its id."""

    id: str
    name: str


class AudioModels(BaseModel):
    """The models that speak, as Open WebUI asks for them."""

    models: list[Named]


class Voices(BaseModel):
    """The voices that can be asked for; aliases are OpenAI's names for some of them."""

    voices: list[Named]
    aliases: dict[str, str]


class State(BaseModel):
    """How the server is."""

    status: str

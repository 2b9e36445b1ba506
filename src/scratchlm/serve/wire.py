"""What may be asked: the bodies of requests, each value within bounds. An unknown field is an error."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

LONGEST_TEXT = 20_000  # characters
MOST_TOKENS = 1000  # new ones of a text
MOST_CONTINUED = 4000  # tokens that the page gives back, of texts that were gone on from several times
MOST_ROWS = 8  # texts that one completion writes

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Asked(_Body):
    """What asks a run."""

    run: Annotated[str, Field(max_length=10)]


class AskedText(Asked):
    """A text for a run to look at."""

    text: Text


class Change(_Body):
    """A sense of a token, wherever it stands, is multiplied. `position` is where a person saw it."""

    position: int | None = None
    token: Token
    sense: Annotated[int, Field(ge=0, lt=1 << 31)]
    scale: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]


Changes = Annotated[list[Change], Field(max_length=1000)]


class AskedGenerate(Asked):
    """A text to go on from: a prompt, and the tokens that were written after it so far."""

    prompt: Text
    continuation: Annotated[list[Token], Field(max_length=MOST_CONTINUED)] = []
    tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 100
    temperature: Temperature = 0.8
    top_k: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    seed: Seed = 0
    alternatives: Annotated[int, Field(ge=1, le=50)] = 10
    changes: Changes = []


class AskedAttention(AskedText):
    """`target`: of a run on pairs, what the model writes for the text; none: what it writes by itself."""

    target: Text | None = None


class AskedSenses(AskedText):
    """`position`: the token whose senses are shown; none: the last."""

    position: Annotated[int, Field(ge=0)] | None = None
    top: Annotated[int, Field(ge=1, le=50)] = 8


class AskedSteer(AskedText):
    """A text, and senses that are changed in it."""

    changes: Changes


class AskedTranslate(AskedText):
    """A source."""

    beam: Annotated[int, Field(ge=1, le=16)] = 4
    alternatives: Annotated[int, Field(ge=1, le=16)] = 3


class StreamOptions(_Body):
    """OpenAI's: whether a last event counts tokens."""

    include_usage: bool = False


class AskedCompletion(_Body):
    """OpenAI's request for completions."""

    model: Annotated[str, Field(max_length=1000)]
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_ROWS)]
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = 16
    temperature: Temperature | None = 1.0
    top_p: Share | None = 1.0
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = False
    n: Annotated[int, Field(ge=1, le=MOST_ROWS)] | None = 1
    user: Annotated[str, Field(max_length=1000)] | None = None


def in_words(errors: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a body, or with what stands behind the path, as pydantic found it."""
    said = []
    for error in errors[:3]:
        if error["type"] == "json_invalid":
            return "the body is no JSON"
        place = ".".join(map(str, error["loc"][1:])) or "the body"
        said.append(f"{place}: {'is an unknown field' if error['type'] == 'extra_forbidden' else error['msg']}")
    return "; ".join(said)

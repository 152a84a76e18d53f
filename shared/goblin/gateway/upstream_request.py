"""One caller's request as endpoints get it: what is sent, what reserves money for it, what counts as an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from goblin.core.endpoints import Endpoint
from goblin.core.errors import GoblinError
from goblin.gateway.domain.chat import ChatChunk, Embeddings, PassedAnswer
from goblin.gateway.domain.requests import ChatRequest, EmbeddingsRequest, InferenceRequest, PassedRequest
from goblin.gateway.fan_out import FanOut
from goblin.gateway.payments import Payer, Payment, payment_error
from goblin.gateway.policy import attachments, fan_out
from goblin.gateway.policy.continuation import AnyRequest
from goblin.gateway.ports import ChatProvider, PassingProvider

T = TypeVar("T", ChatChunk, Embeddings, PassedAnswer)


@dataclass(frozen=True, slots=True)
class Sent(Generic[T]):
    """What an endpoint sends. Nothing is sent to it before the stream is read."""

    stream: AsyncGenerator[T, None]
    fan_out: FanOut | None = None
    """Set where the stream is that of several requests."""


@dataclass(frozen=True, slots=True)
class UpstreamRequest(ABC, Generic[T]):
    """What all upstream attempts at one answer send and pay."""

    request: InferenceRequest
    providers: Mapping[str, ChatProvider]
    """By endpoint name."""
    payer: Payer

    @property
    def model(self) -> str:
        """The model as the caller names it."""
        return self.request.model

    @property
    @abstractmethod
    def whole(self) -> bool:
        """Whether to wait for the whole answer: until the caller sees some of it, another endpoint can start over."""

    def prompt_bytes(self) -> int:
        """Count what the model reads, in bytes of UTF-8; images and files as so much text."""
        return attachments.prompt_bytes(self.request)

    async def pay(self, endpoint: Endpoint) -> Payment | None:
        """Reserve the worst case of one attempt; None when no budget covers it, which `payment_error` explains."""
        return await self.payer.pay(endpoint, self.request)

    def payment_error(self) -> GoblinError | None:
        """Explain why no budget covered an attempt at any endpoint; None when that was not the reason."""
        return payment_error(self.payer.refusals)

    @abstractmethod
    def send(self, endpoint: Endpoint, limited: Any) -> Sent[T]:
        """Send a request, as the payment limited it, to an endpoint, and stream its answer."""

    @abstractmethod
    def starts_answer(self, item: T) -> bool:
        """Whether an item is the first thing that a caller would notice."""


@dataclass(frozen=True, slots=True)
class TextUpstreamRequest(UpstreamRequest[ChatChunk]):
    """A chat, or the continuation of a text."""

    request: AnyRequest

    @property
    def whole(self) -> bool:
        return not self.request.stream

    def send(self, endpoint: Endpoint, limited: Any) -> Sent[ChatChunk]:
        provider, model = self.providers[endpoint.name], endpoint.upstream_model or self.request.model

        def one(request: AnyRequest) -> AsyncGenerator[ChatChunk, None]:
            if isinstance(request, ChatRequest):
                return provider.chat(request, model=model)
            return provider.complete(request, model=model)

        parts = fan_out.split(limited, endpoint)
        if len(parts) == 1:
            return Sent(one(parts[0].request))
        several = FanOut(parts, one, parallel=endpoint.parallel, name=endpoint.name)
        return Sent(several.stream(), several)

    def starts_answer(self, item: ChatChunk) -> bool:
        return item.starts_answer


@dataclass(frozen=True, slots=True)
class EmbeddingsUpstreamRequest(UpstreamRequest[Embeddings]):
    """Texts to embed; their vectors come all at once."""

    request: EmbeddingsRequest

    @property
    def whole(self) -> bool:
        return True

    def send(self, endpoint: Endpoint, limited: Any) -> Sent[Embeddings]:
        return Sent(self._vectors(endpoint, limited))

    async def _vectors(self, endpoint: Endpoint, limited: Any) -> AsyncGenerator[Embeddings, None]:
        model = endpoint.upstream_model or self.request.model
        yield await self.providers[endpoint.name].embed(limited, model=model)

    def starts_answer(self, item: Embeddings) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class PassedUpstreamRequest(UpstreamRequest[PassedAnswer]):
    """A request that an endpoint gets as it came; its answer comes all at once."""

    request: PassedRequest

    @property
    def whole(self) -> bool:
        return True

    def send(self, endpoint: Endpoint, limited: Any) -> Sent[PassedAnswer]:
        return Sent(self._answer(endpoint, limited))

    async def _answer(self, endpoint: Endpoint, limited: Any) -> AsyncGenerator[PassedAnswer, None]:
        # The capability that the request needs is there only if the adapter can do it.
        provider = cast("PassingProvider", self.providers[endpoint.name])
        yield await provider.pass_on(limited, model=endpoint.upstream_model or self.request.model)

    def starts_answer(self, item: PassedAnswer) -> bool:
        return True

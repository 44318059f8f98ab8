"""What models return: typed named tuples with Hugging Face's names."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class FeatureMap(NamedTuple):
    """Tokens of a grid as an image of features, for detectors and segmenters."""

    map: Tensor
    """(batch, channels, rows, columns)"""
    stride: tuple[int, int]
    """Height and width, in pixels, of what one of its places stands for."""
    channels: int
    """Size of the vector at each place."""


class TransformerOutput(NamedTuple):
    """The output of a transformer; what its head does not give, or nobody asked for, is None."""

    last_hidden_state: Tensor | None = None
    """(batch, tokens, width): the last block's tokens, after the final norm."""
    pooler_output: Tensor | None = None
    """(batch, size): what a pooler head gives."""
    logits: Tensor | None = None
    """(batch, classes) of a classifier, (batch, tokens, vocabulary or classes) of a head that scores tokens."""
    prediction_logits: Tensor | None = None
    """(batch, tokens, vocabulary): the scores of a pretraining head for masked tokens."""
    seq_relationship_logits: Tensor | None = None
    """(batch, 2): its scores for whether the second text follows the first (class 0) or not."""
    start_logits: Tensor | None = None
    """(batch, tokens): a span head's scores for where an answer begins."""
    end_logits: Tensor | None = None
    """(batch, tokens): and for where it ends."""
    sentence_embedding: Tensor | None = None
    """(batch, width): what a sentence-embedding head gives."""
    image_embeds: Tensor | None = None
    """(batch, size): what a projection head makes of images, of any length."""
    text_embeds: Tensor | None = None
    """(batch, size): and of texts."""
    feature_maps: dict[str, FeatureMap] | None = None
    """The feature maps asked for, by name, those of fine grids first."""
    past_key_values: Any = None
    """The keys and values of all tokens so far (`zoo.cache.Cache`), for the next call."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The tokens before the first and after each block, before the final norm; (batch, tokens, width) each."""
    attentions: tuple[Tensor, ...] | None = None
    """The attention weights of the layers; (batch, heads, tokens, tokens) each."""
    router_logits: tuple[Tensor, ...] | None = None
    """The scores by which the layers that have experts chose them; (batch x tokens, experts) each."""
    aux_loss: Tensor | None = None
    """How unevenly experts were chosen, a scalar (`zoo.model.routing.balance_loss`); padding does not count."""
    router_loss: Tensor | None = None
    """What the routers add to the loss in training, a scalar; their configs say how much of what."""
    cross_attentions: tuple[Tensor, ...] | None = None
    """And those to the tokens of another sequence, where blocks attend to one; (batch, heads, tokens, others) each."""


class DualEncoderOutput(NamedTuple):
    """The output of a dual encoder; what needs an input that was not given is None."""

    logits_per_image: Tensor | None = None
    """(images, texts): how well each text fits each image."""
    logits_per_text: Tensor | None = None
    """(texts, images): the same, by text."""
    text_embeds: Tensor | None = None
    """(texts, size): the texts as vectors of length one."""
    image_embeds: Tensor | None = None
    """(images, size): the images as vectors of length one."""
    logit_scale: Tensor | None = None
    """What cosines are multiplied by, a scalar: the learned scale itself, not its logarithm."""
    logit_bias: Tensor | None = None
    """What is added behind that, a scalar; None where nothing is."""
    text_model_output: TransformerOutput | None = None
    """What the text tower gave; its `pooler_output` is the projected vector, of any length."""
    vision_model_output: TransformerOutput | None = None
    """What the image tower gave, alike."""


class EncoderDecoderOutput(NamedTuple):
    """The output of an encoder-decoder; what its head does not give, or nobody asked for, is None."""

    logits: Tensor | None = None
    """(batch, tokens, vocabulary): at each token of the decoder, the scores of the next one."""
    last_hidden_state: Tensor | None = None
    """(batch, tokens, width): the decoder's tokens, after its final norm."""
    past_key_values: Any = None
    """The decoder's keys and values of all tokens so far, and those of the encoder's tokens (`zoo.cache.Cache`)."""
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    """The decoder's tokens before the first and after each block, before the final norm; (batch, tokens, width) each."""
    decoder_attentions: tuple[Tensor, ...] | None = None
    """The weights of its attention to itself; (batch, heads, tokens, tokens) each."""
    cross_attentions: tuple[Tensor, ...] | None = None
    """The weights of its attention to the encoder's tokens; (batch, heads, tokens, others) each."""
    encoder_last_hidden_state: Tensor | None = None
    """(batch, others, width): the encoder's tokens, after its final norm."""
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    """The encoder's tokens before the first and after each block; (batch, others, width) each."""
    encoder_attentions: tuple[Tensor, ...] | None = None
    """The weights of its attention; (batch, heads, others, others) each."""
    encoder_router_logits: tuple[Tensor, ...] | None = None
    """The scores by which the encoder's layers that have experts chose them; (batch x others, experts) each."""
    decoder_router_logits: tuple[Tensor, ...] | None = None
    """And those of the decoder; (batch x tokens, experts) each."""
    router_loss: Tensor | None = None
    """What the routers of both add to the loss in training, a scalar."""

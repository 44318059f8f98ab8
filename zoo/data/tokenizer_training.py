"""Tokenizers that are trained on the texts at hand, by the library `tokenizers`; the same texts give the same file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from zoo.data.tokenizer import LibraryTokenizer
from zoo.errors import DataError
from zoo.extras import require


class Kind(NamedTuple):
    """What is fixed before any text is seen."""

    special: tuple[str, ...]
    """The first token ids."""
    padding: int
    """Which of them fills rows up."""


KINDS = {
    "wordpiece": Kind(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), 0),
    "bpe": Kind(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), 1),
}


def train_tokenizer(kind: str, texts: Callable[[], Iterable[str]], vocabulary: int, place: str) -> LibraryTokenizer:
    """A tokenizer for texts such as these.

    Args:
        kind: `wordpiece`, lower case and split at punctuation as BERT's, or `bpe`, pairs of bytes as RoBERTa's.
        texts: gives the texts, as often as it is called.
        vocabulary: how many token ids there are at most.
        place: what errors call the data.

    Raises:
        DataError: there are no texts, or their characters alone are more than the vocabulary.
    """
    library: Any = require("tokenizers", "train", place)
    if not any(text.strip() for text in texts()):
        raise DataError(f"{place}: tokenizer: there are no texts to train one on")
    tokenizer = (_wordpiece if kind == "wordpiece" else _bpe)(library, texts, vocabulary)
    found = tokenizer.get_vocab_size()
    if found > vocabulary:
        raise DataError(f"{place}: vocabulary: the single characters of the texts are {found} tokens, more than {vocabulary}")
    return LibraryTokenizer(tokenizer)


def _wordpiece(library: Any, texts: Callable[[], Iterable[str]], vocabulary: int) -> Any:
    special = list(KINDS["wordpiece"].special)
    normalizer, splitter = library.normalizers.BertNormalizer(lowercase=True), library.pre_tokenizers.BertPreTokenizer()
    # The library numbers characters within words in the order of a hash table, which differs from run to run, and with
    # them the choice between equally frequent pairs. As special tokens they are numbered first, in this order.
    words = (word for text in texts() for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    within = sorted({letter for word in words for letter in word[1:]})
    learner = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, splitter
    first = [*special, *(f"##{letter}" for letter in within)]
    trainer = library.trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=first, show_progress=False)
    learner.train_from_iterator(texts(), trainer)
    tokenizer = library.Tokenizer(library.models.WordPiece(learner.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(special)
    tokenizer.decoder = library.decoders.WordPiece()
    cls, sep = ("[CLS]", special.index("[CLS]")), ("[SEP]", special.index("[SEP]"))
    tokenizer.post_processor = library.processors.BertProcessing(sep, cls)
    return tokenizer


def _bpe(library: Any, texts: Callable[[], Iterable[str]], vocabulary: int) -> Any:
    special = list(KINDS["bpe"].special)
    mask = library.AddedToken(special[-1], lstrip=True, special=True)  # a word begins with the space before it
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    letters = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*special[:-1], mask], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    start, end = ("<s>", special.index("<s>")), ("</s>", special.index("</s>"))
    tokenizer.post_processor = library.processors.RobertaProcessing(end, start, trim_offsets=True, add_prefix_space=False)
    return tokenizer


__all__ = ["KINDS", "train_tokenizer"]

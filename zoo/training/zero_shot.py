"""Images and texts compared by a dual encoder: classes that are only named, and pictures that are looked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo.data.tokenizer import Tokenizer
from zoo.errors import ConfigError, InputError, unknown
from zoo.extras import require
from zoo.inspect.image import Preparation, example_of, preparation, read_image
from zoo.model.dual_encoder import unit
from zoo.training.evaluate import opened
from zoo.training.image_index import Backend, ImageIndex, fingerprint, index_folder
from zoo.training.predict import image_files
from zoo.training.prediction import Prediction, likeliest
from zoo.training.texts import longest, tokenizer_of

TEMPLATES = ("{}",)
"""What is said of a label where nobody says otherwise: the label alone."""


class Comparer:
    """A dual encoder with what it needs to read images and texts.

    Args:
        source: a run's folder, or what `zoo.load` takes.

    Raises:
        ConfigError: the model compares no images with texts, or nothing says what its tokens are.
        WeightsError: it cannot be read.
    """

    def __init__(self, source: str | Path) -> None:
        self.model, data, _ = opened(Path(source), None, None, needs_data=False)
        if self.model.config.type != "dual-encoder":
            raise ConfigError(f"{source}: this needs a model of type 'dual-encoder', and this is {self.model.config.type!r}")
        place = Path(getattr(self.model.load_report, "place", None) or source)
        home = place if place.is_dir() else place.parent
        self.tokenizer: Tokenizer = tokenizer_of(self.model.text, home, data)
        self.prepared: Preparation = preparation(home)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts as vectors of length one: (texts, size)."""
        length, end = longest(self.model.text), self.tokenizer.end
        rows = [torch.tensor(self.tokenizer.encode(text, length)) for text in texts]
        # what ends a text fills it up: of several the first counts
        ids = pad_sequence(rows, batch_first=True, padding_value=0 if end is None else end)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        device = self.model.device
        vectors: Tensor = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).text_embeds
        return vectors

    def labels(self, labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
        """Classes as vectors (labels, size): of each, the mean of the sentences that the templates make of its name.

        Raises:
            ConfigError: no labels, or a template without `{}`.
        """
        if not labels:
            raise ConfigError("labels: expected at least one name of a class")
        wrong = next((each for each in templates if each.count("{}") != 1), None)
        if wrong is not None or not templates:
            raise ConfigError(
                f"template: expected a text with one {{}} for the label, as in 'a photo of a {{}}', got {wrong!r}"
            )
        sentences = [template.replace("{}", label) for label in labels for template in templates]
        return unit(self.texts(sentences).unflatten(0, (len(labels), len(templates))).mean(1))

    def images(self, inputs: Sequence[str | Path], size: int = 64) -> Iterator[tuple[list[str], Tensor]]:
        """The names of images and their vectors of length one (images, size), so many at once.

        Args:
            inputs: image files, folders of them, or test images of data (`digits:17`).

        Raises:
            DataError, InputError: one that cannot be read.
        """
        files = image_files(inputs)
        while batch := list(islice(files, size)):
            yield [str(each) for each in batch], self.encoded(batch)

    @torch.inference_mode()
    def encoded(self, files: Sequence[str | Path]) -> Tensor:
        """The vectors of image files or test images of data, all at once: (images, size), of length one.

        Raises:
            DataError, InputError: one that cannot be read.
        """
        config = self.model.config.vision
        read = (
            read_image(each, config.embedding, self.prepared) if isinstance(each, Path) else example_of(each, config)
            for each in files
        )
        pixels = torch.cat([picture.pixels for picture in read]).to(self.model.device)
        vectors: Tensor = self.model(pixel_values=pixels).image_embeds
        return vectors

    @torch.inference_mode()
    def scores(self, texts: Tensor, images: Tensor) -> Tensor:
        """How well texts (texts, size) fit images (images, size): (texts, images)."""
        scores: Tensor = self.model.scores(texts, images)
        return scores


def classify(
    source: str | Path,
    inputs: Sequence[str | Path],
    labels: Sequence[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    top: int = 3,
) -> Iterator[Prediction]:
    """Says which of some labels fits each image best, by a model that was never told what they are.

    Args:
        source: a run's folder, or what `zoo.load` takes; a dual encoder.
        inputs: image files, folders of them, or test images of data (`digits:17`).
        labels: names of classes.
        templates: sentences with `{}` for the label; the vectors of several are averaged.
        top: how many answers for each image.

    Raises:
        ConfigError: the model is no dual encoder, or labels or templates are missing.
        DataError, InputError: an image that cannot be read.
    """
    comparer = Comparer(source)
    classes = comparer.labels(labels, templates)
    for names, vectors in comparer.images(inputs):
        for name, row in zip(names, comparer.scores(classes, vectors).t()):
            yield Prediction(name, likeliest(row, labels.__getitem__, top))


class Hit(NamedTuple):
    """An image that fits a text."""

    name: str
    """The file."""
    cosine: float
    """Of the angle between the vectors of image and text."""


def search(
    source: str | Path,
    inputs: Sequence[str | Path],
    text: str,
    *,
    top: int = 9,
    backend: Backend = "matrix",
    index: str | Path | None = None,
    keep: bool = True,
    tell: Callable[[str], None] | None = None,
) -> list[Hit]:
    """The images that fit a text best, the best first.

    The vectors of a folder's images are kept in a file beside it, and only those of new and changed files are made anew
    (see `zoo.training.image_index`); those of files that are named one by one are made each time.

    Args:
        source: a run's folder, or what `zoo.load` takes; a dual encoder.
        inputs: image files and folders of them.
        text: what is looked for.
        top: how many images.
        backend: `matrix`, or `faiss`, which finds the same.
        index: the file in which the vectors are kept, where there is one folder (default: beside each folder).
        keep: whether they are kept at all.
        tell: is told how far it is.

    Raises:
        ConfigError: the model is no dual encoder, or there is not one folder for `index`.
        DataError, InputError: an image that cannot be read.
        MissingExtraError: faiss is not installed.
        ZooError: `index` cannot be written, or is a file of another kind.
    """
    if not text.strip():
        raise InputError("search: the text is empty")
    if backend not in get_args(Backend):
        raise unknown("backend", backend, get_args(Backend))
    if backend == "faiss":
        require("faiss", "search", "--backend faiss")
    missing = next((each for each in inputs if not Path(each).exists()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such file or folder")
    folders = [Path(each) for each in inputs if Path(each).is_dir()]
    if index is not None and (len(folders) != 1 or not keep):
        what = "nothing is to be kept" if not keep else f"{len(folders)} folders are given"
        raise ConfigError(f"--index: it is the file of one folder, and {what}")
    comparer = Comparer(source)
    model = fingerprint(comparer.model, comparer.prepared) if folders and keep else ""
    names: list[str] = []
    vectors: list[Tensor] = []
    for each in inputs:
        if Path(each) in folders and keep:
            place = None if index is None else Path(index)
            found = index_folder(Path(each), comparer.encoded, model, place, tell=tell)
            names, vectors = [*names, *found.names], [*vectors, found.vectors]
            continue
        for some, rows in comparer.images([each]):
            names, vectors = [*names, *some], [*vectors, rows.float().cpu()]
    whole = ImageIndex(names, torch.cat(vectors), len(names))
    return [Hit(*hit) for hit in whole.nearest(comparer.texts([text])[0].float().cpu(), top, backend)]

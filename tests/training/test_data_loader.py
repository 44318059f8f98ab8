"""Loaders: order, random changes, skipping, several processes and broken examples, for any kind of dataset."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Literal

import numpy
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from zoo.data.base import Data, DataConfig, Examples
from zoo.data.broken import Broken
from zoo.data.order import Shuffled
from zoo.data.rows import Rows, Stream
from zoo.errors import DataError

Kind = Literal["rows", "stream", "memory"]


class Plain(Dataset[Any]):
    """A user's own dataset, which draws from all generators."""

    def __init__(self, length: int = 23, broken: tuple[int, ...] = (), nameless: bool = False) -> None:
        self.length, self.broken, self.nameless = length, broken, nameless

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.broken:
            raise Broken("" if self.nameless else f"number {index}", "it is torn")
        return {"labels": index, "drawn": torch.tensor([random.random(), float(numpy.random.rand()), float(torch.rand(()))])}


class Mine(Data):
    """A user's own data: only `split` is its own."""

    class Config(DataConfig):
        broken: int = 10

    def __init__(self, dataset: Any, **fields: Any) -> None:
        super().__init__(self.Config(**{"batch_size": 4, **fields}))
        self.dataset = dataset

    def split(self, name: str) -> Any:
        return self.dataset


class Iterable(IterableDataset[Any]):
    """A user's own iterable."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (Plain()[index] for index in range(23))


def shuffled_rows(order: int | None) -> list[dict[str, Any]]:
    rows = [{"index": index} for index in range(23)]
    if order is not None:
        random.Random(order).shuffle(rows)
    return rows


def read(row: Any) -> dict[str, Any]:
    return Plain()[row["index"]]


def a_stream() -> Stream:
    return Stream(shuffled_rows, read)


DATASETS = {"plain": Plain, "stream": a_stream, "iterable": Iterable}


def seen(batches: Any) -> list[list[int]]:
    return [batch["labels"].tolist() for batch in batches]


def met(batches: Any) -> list[int]:
    return list(chain.from_iterable(seen(batches)))


def same(first: Any, second: Any) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


@pytest.mark.parametrize("kind", DATASETS)
def test_batches_follow_from_seed_and_epoch_for_any_number_of_workers(kind: str) -> None:
    def epochs(workers: int, seed: int = 3) -> list[Any]:
        loader = Mine(DATASETS[kind](), workers=workers).loader("train", seed=seed)
        return [list(loader) for _ in range(3)]

    alone, other = epochs(0), epochs(2)
    assert all(same(first, second) for first, second in zip(alone, other, strict=True))
    assert all(sorted(met(epoch)) == list(range(23)) for epoch in alone)
    drawn = [{tuple(row.tolist()) for batch in epoch for row in batch["drawn"]} for epoch in alone]
    assert len(drawn[0] | drawn[1] | drawn[2]) == 3 * 23  # nothing is drawn twice
    if kind != "iterable":  # a user's iterable says in which order it is read
        assert len({tuple(met(epoch)) for epoch in [*alone, *epochs(0, seed=4)]}) == 6


@pytest.mark.parametrize("kind", DATASETS)
def test_an_epoch_can_be_asked_for(kind: str) -> None:
    data = Mine(DATASETS[kind]())
    loader = data.loader("train", seed=3)
    epochs = [list(loader) for _ in range(3)]
    other = data.loader("train", seed=3)
    other.sampler.set_epoch(2)  # type: ignore[attr-defined]
    assert same(other, epochs[2])
    other.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert same(other, epochs[1]) and same(other, epochs[2])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", DATASETS)
def test_an_epoch_goes_on_in_its_middle(kind: str, workers: int) -> None:
    data = Mine(DATASETS[kind](), workers=workers)
    whole = data.loader("train", seed=3)
    epochs = [list(whole) for _ in range(2)]
    loader = data.loader("train", seed=3, skip=4)
    assert same(loader, epochs[0][4:])
    assert same(loader, epochs[1])  # only the first epoch is cut
    if kind == "plain":
        assert len(loader) == len(whole) == 6
    assert list(data.loader("train", seed=3, skip=6)) == []


def test_what_is_skipped_is_not_made() -> None:
    made: list[int] = []

    def noted(row: Any) -> dict[str, Any]:
        made.append(row["index"])
        return read(row)

    for dataset in (Stream(shuffled_rows, noted), Rows([{"index": index} for index in range(23)], noted)):
        made.clear()
        batches = list(Mine(dataset).loader("train", skip=5))
        assert made == met(batches) and len(made) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [*DATASETS, "memory"])
def test_nothing_is_drawn_from_the_global_generators(kind: str, workers: int) -> None:
    dataset = Examples(labels=torch.arange(23)) if kind == "memory" else DATASETS[kind]()

    def state() -> Any:
        _, keys, *rest = numpy.random.get_state()
        return random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()

    before = state()
    data = Mine(dataset, workers=workers)
    for name in ("train", "train", "test"):
        list(data.loader(name, seed=1))  # type: ignore[arg-type]
        assert state() == before


@pytest.mark.parametrize("kind", ["plain", "stream"])
def test_two_processes_together_see_what_one_does(kind: str) -> None:
    dataset = DATASETS[kind]()
    one = Mine(dataset, batch_size=8).loader("train", seed=3)
    two = [Mine(dataset, batch_size=4).loader("train", seed=3, shard=(rank, 2)) for rank in (0, 1)]
    for _ in range(2):
        together = list(zip(*two, strict=True))  # equally many batches, so that no process waits for another
        for whole, shares in list(zip(one, together))[:2]:
            halves = torch.stack([share["labels"] for share in shares], dim=1).flatten()
            assert torch.equal(halves, whole["labels"])
        found = list(chain.from_iterable(met(shares) for shares in together))
        # 23 examples for two: one comes twice, or of a stream the last is left out
        assert len(set(found)) == (23 if kind == "plain" else 22)
        assert len(found) == (24 if kind == "plain" else 22)


def test_lightning_takes_the_order_as_it_is_and_sets_its_epoch() -> None:
    lightning = pytest.importorskip("lightning")
    epochs: list[int] = []

    class Noting(Shuffled):
        def set_epoch(self, epoch: int) -> None:
            epochs.append(epoch)
            super().set_epoch(epoch)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.met = torch.nn.Parameter(torch.zeros(())), []

        def training_step(self, batch: Any, index: int) -> Any:
            self.met.append(batch["labels"].tolist())
            return self.weight * 1.0

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = Mine(Plain()).loader("train", seed=3)
    loader.sampler.__class__ = Noting
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(max_epochs=3, accelerator="cpu", **options).fit(module, loader)
    again = Mine(Plain()).loader("train", seed=3)
    assert module.met == [labels for _ in range(3) for labels in seen(again)]
    assert epochs == [0, 1, 2]
    assert isinstance(loader.sampler, torch.utils.data.DistributedSampler)  # by which Lightning leaves it alone


def test_evaluation_is_in_order_and_always_the_same() -> None:
    for kind in DATASETS:
        loader = Mine(DATASETS[kind]()).loader("test", seed=5)
        first, second = list(loader), list(loader)
        assert met(first) == list(range(23)) and len(first) == 2
        assert same(first, second)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["train", "test"])
def test_broken_examples_are_named_counted_and_left_out(name: Any, workers: int) -> None:
    data = Mine(Plain(broken=(1, 5, 6)), workers=workers)
    with pytest.warns(UserWarning, match="data 'Mine': number [156] cannot be read and is left out: it is torn") as caught:
        batches = list(data.loader(name))
    assert len(caught) == 3
    assert sorted(met(batches)) == [index for index in range(23) if index not in (1, 5, 6)]
    assert data.tally.reasons == dict.fromkeys(["number 1", "number 5", "number 6"], "it is torn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # they were named before
        assert len(list(data.loader(name))) == len(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_examples_are_one_error(workers: int) -> None:
    data = Mine(Plain(broken=tuple(range(0, 23, 2)), nameless=True), workers=workers, broken=5)
    named = ", ".join(rf"row {index} of the test part \(it is torn\)" for index in (0, 2, 4))
    message = rf"^data 'Mine': 6 examples cannot be read, more than `broken: 5` allows: {named}, \.\.\.$"
    with pytest.raises(DataError, match=message), pytest.warns(UserWarning):
        list(data.loader("test"))
    with pytest.raises(DataError, match=r"1 example cannot be read, and `broken: 0` allows none: number 3 \(it is torn\)$"):
        list(Mine(Plain(broken=(3,)), broken=0).loader("train"))


@pytest.mark.filterwarnings("ignore:data")
def test_the_limit_counts_anew_in_each_epoch() -> None:
    loader = Mine(Plain(broken=(3, 4), nameless=True), broken=2).loader("train")
    assert [len(list(loader)) for _ in range(4)] == [6, 6, 6, 6]


@pytest.mark.filterwarnings("ignore:data")
def test_batches_are_never_empty() -> None:
    broken = (2, 3, 4, 9)
    for workers in (0, 2):
        loader = Mine(Plain(broken=broken), batch_size=1, workers=workers).loader("train", seed=1)
        labels = met(loader)
        assert len(labels) == 23 == len(loader)  # an epoch keeps its length: the next one that can be read stands in
        assert set(labels) == set(range(23)) - set(broken) and labels.count(5) == 4 and labels.count(10) == 2
    evaluation = seen(Mine(Plain(broken=tuple(range(16))), broken=16).loader("test"))
    assert evaluation == [[*range(16, 23)]]  # no example stands in where figures are measured
    for kind in ("train", "test"):
        with pytest.raises(DataError, match=f"data 'Mine': its {kind} part has no examples that can be read"):
            list(Mine(Plain(3, broken=(0, 1, 2))).loader(kind))  # type: ignore[arg-type]


def test_a_broken_row_of_a_stream_is_left_out() -> None:
    def torn(row: Any) -> dict[str, Any]:
        return Plain(broken=(7,))[row["index"]]

    for workers in (0, 2):
        with pytest.warns(UserWarning, match="number 7 cannot be read"):
            batches = list(Mine(Stream(shuffled_rows, torn), workers=workers).loader("train"))
        assert sorted(met(batches)) == [index for index in range(23) if index != 7]
    with pytest.raises(DataError, match="number 7 cannot be read: it is torn"):
        list(Stream(shuffled_rows, torn))


def test_errors_of_workers_are_one_line() -> None:
    def wrong(row: Any) -> dict[str, Any]:
        raise DataError("this is all wrong")

    for workers in (0, 2):
        with pytest.raises(DataError, match=r"^this is all wrong$"):
            list(Mine(Rows([{}] * 5, wrong), workers=workers).loader("train"))
        with pytest.raises(DataError, match=r"examples of a batch do not fit together; shapes: .*\(2,\).* and .*\(3,\)"):
            list(Mine([{"x": torch.zeros(2)}, {"x": torch.zeros(3)}], workers=workers).loader("test"))


def test_empty_parts() -> None:
    with pytest.raises(DataError, match=r"^data 'Mine': its train part is empty$"):
        Mine([]).loader("train")
    with pytest.raises(DataError, match=r"^data 'Mine': its test part is empty$"):
        list(Mine(Stream(lambda order: [], read)).loader("test"))
    with pytest.raises(DataError, match="its train part is empty"):
        Mine([]).check("train")


def test_an_endless_stream_is_read_as_far_as_it_is_used() -> None:
    def rows(order: int | None) -> Iterator[dict[str, int]]:
        return ({"index": number % 23} for number in iter(lambda: random.Random(order).randrange(23), None))

    for workers in (0, 2):
        loader = Mine(Stream(rows, read), workers=workers).loader("train")
        assert len(list(islice(loader, 5))) == 5
        with pytest.raises(TypeError, match="a stream has no length"):
            len(loader)


def test_lightnings_own_samplers_are_served() -> None:
    loader = Mine(Plain()).loader("train")
    sampler = torch.utils.data.SequentialSampler(loader.dataset)  # as with overfit_batches
    again = type(loader)(loader.dataset, batch_size=4, sampler=sampler, collate_fn=loader.collate_fn)
    assert met(again) == list(range(23))

"""Planted mistakes in Swin: each one is caught, and the module that it was planted in is named."""

import pytest
import torch
from planted import one_in_four
from test_mutations import verified
from torch import nn

import zoo
import zoo.kernel.windows as windows
from zoo.stack import merging

SHIFTED = "stack.layers.1.attention"


def attention(model, layer=1):
    return model.stack.layers[layer].attention


def recut(model, change, layer=1):
    """One layer cuts its grid otherwise."""
    part = attention(model, layer)
    plan = part.config.windows

    class Config:
        @staticmethod
        def windows(grid):
            return change(plan(grid))

    part.config = Config


def shift_the_other_way(model):
    recut(model, lambda plan: plan._replace(shift=tuple(-side for side in plan.shift)))


def no_shift(model):
    recut(model, lambda plan: plan._replace(shift=(0, 0)))


def shift_of_the_first_block(model):
    recut(model, lambda plan: plan._replace(shift=(1, 1)), 0)


def shift_along_one_axis(model):
    recut(model, lambda plan: plan._replace(shift=(plan.shift[0], 0)))


def shift_by_one_more(model):
    recut(model, lambda plan: plan._replace(shift=tuple(side + 1 for side in plan.shift)))


def shift_in_the_last_stage(model):
    recut(model, lambda plan: plan._replace(shift=(1, 1)), 7)


def other_window(model):
    recut(model, lambda plan: plan._replace(window=(plan.window[0] - 1, plan.window[1] - 1)))
    part = attention(model)
    part.position.table = nn.Parameter(part.position.table[:9])


def fill_before_the_shift_is_not_behind_it(model):
    recut(model, lambda plan: plan._replace(pad_first=False))


def fill_on_the_left(model):
    class Left(windows.Windows):
        def _filled(self, x):
            below, right = (new - old for new, old in zip(self.padded, self.grid))
            return torch.nn.functional.pad(x, (0, 0, right, 0, below, 0))

        def _cropped(self, x):
            below, right = (new - old for new, old in zip(self.padded, self.grid))
            return x[:, below:, right:]

    recut(model, lambda plan: Left(*plan), 0)


def mask_filling(model):
    """The filling is not attended to, as in other libraries it would not be."""
    part = attention(model, 0)
    scores = part._scores

    def masked(layout, plan, query, mask):
        found = scores(layout, plan, query, mask)
        real = windows.real_places(plan, query.device)
        if real is None:
            return found
        closed = ~plan.cut(real[None, None, :, None])[0, :, 0, :, 0]
        return found.masked_fill(closed[None, :, None, None], -100.0)

    part._scores = masked


def unmasked(model):
    part = attention(model)
    within = part.position.within
    part.position.within = lambda plan: within(plan._replace(shift=(0, 0)))


def weak_mask(model):
    part = attention(model)
    within = part.position.within

    def weakened(plan):
        biases, moved = within(plan._replace(shift=(0, 0))), within(plan)
        return biases + (moved - biases) / 20

    part.position.within = weakened


def mask_of_wrong_windows(model):
    part = attention(model)
    within = part.position.within
    part.position.within = lambda plan: within(plan).flip(0)


def transposed_bias(model):
    part = attention(model, 0)
    within = part.position.within
    part.position.within = lambda plan: within(plan).mT


def rows_and_columns_of_the_bias_swapped(model):
    table = attention(model, 0).position.table
    table.data = table.data.unflatten(0, (5, 5)).transpose(0, 1).flatten(0, 1).contiguous()


def heads_of_the_bias_swapped(model):
    table = attention(model, 2).position.table
    table.data = table.data.roll(1, 1)


def no_bias(model):
    nn.init.zeros_(attention(model, 3).position.table)


def bias_before_scale(model):
    part = attention(model, 0)
    part.position.table.data = part.position.table.data * part.scale


def other_scale(model):
    attention(model, 4).scale *= 1.001


def merged_in_rows(model):
    """Upper right before lower left."""
    merge = model.stack.merges[0]
    norm = merge.norm.forward
    merge.norm.forward = lambda x: norm(torch.cat([x.chunk(4, -1)[part] for part in (0, 2, 1, 3)], -1))


def merged_unnormed(model):
    model.stack.merges[1].norm.forward = lambda x: x


def eps_of_a_merge(model):
    model.stack.merges[2].norm.eps = 1e-6


def cut_odd_grids(model):
    merge = model.stack.merges[1]
    forward = merge.forward

    def cut(x, layout):
        grid = merging.merged_grid(layout.grid)
        filled = x.unflatten(1, layout.grid)[:, : grid[0] * 2 - layout.grid[0] % 2 * 2 or 1]
        ones = torch.zeros_like(x.unflatten(1, layout.grid))
        ones[:, : filled.shape[1]] = filled
        return forward(ones.flatten(1, 2), layout)

    merge.forward = cut


def eps_of_the_embedding(model):
    model.embedding.norm.eps = 1e-6


def unnormed_embedding(model):
    model.embedding.norm.forward = lambda x: x


def cut_pixels(model):
    config = model.embedding.config
    model.embedding.config = config.model_copy(update={"edges": "cut"})


def post_norm(model):
    model.stack.layers[5].order = "post"


def tanh_gelu(model):
    model.stack.layers[5].feedforward.activation = "gelu-tanh"


def max_pool(model):
    model.head.pool.forward = lambda x, layout: x.amax(1)


MUTATIONS = {
    shift_the_other_way: SHIFTED,
    no_shift: SHIFTED,
    shift_of_the_first_block: "stack.layers.0.attention",
    shift_along_one_axis: SHIFTED,
    shift_by_one_more: SHIFTED,
    shift_in_the_last_stage: "stack.layers.7.attention",
    other_window: SHIFTED,
    fill_before_the_shift_is_not_behind_it: SHIFTED,
    fill_on_the_left: "stack.layers.0.attention",
    mask_filling: "stack.layers.0.attention",
    unmasked: SHIFTED,
    weak_mask: SHIFTED,
    mask_of_wrong_windows: SHIFTED,
    transposed_bias: "stack.layers.0.attention",
    rows_and_columns_of_the_bias_swapped: "stack.layers.0.attention",
    heads_of_the_bias_swapped: "stack.layers.2.attention",
    no_bias: "stack.layers.3.attention",
    bias_before_scale: "stack.layers.0.attention",
    other_scale: "stack.layers.4.attention",
    merged_in_rows: "stack.merges.0",
    merged_unnormed: "stack.merges.1",
    eps_of_a_merge: "stack.merges.2",
    cut_odd_grids: "stack.merges.1",
    eps_of_the_embedding: "embedding",
    unnormed_embedding: "embedding",
    cut_pixels: "embedding",
    post_norm: "stack.layers.5",
    tanh_gelu: "stack.layers.5.feedforward",
    max_pool: "head",
}
ODD_SIZES = (fill_before_the_shift_is_not_behind_it, fill_on_the_left, mask_filling, cut_odd_grids, cut_pixels)


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch):
    """Three sizes and one scale of weights in float64 are enough to see a mistake, which saves time."""
    import zoo.verification.run as run

    cases = run.cases

    def first(*arguments, **options):
        return dict(list(cases(*arguments, **options).items())[:3])

    monkeypatch.setattr(run, "cases", first)
    monkeypatch.setattr(run, "SCALES", run.SCALES[:1])
    for step in ("_gradients", "_export", "_single"):
        monkeypatch.setattr(run, step, lambda *arguments: None)


CASES = [(mutation, "transformers") for mutation in MUTATIONS]
CASES += [(mutation, "timm") for mutation in MUTATIONS if mutation not in ODD_SIZES]
"""As for odd sizes, the preset becomes a model of timm's that takes one."""


@pytest.mark.parametrize(("mutation", "library"), one_in_four(CASES))
def test_a_planted_mistake_is_caught_and_named(monkeypatch, mutation, library):
    report = verified(monkeypatch, mutation, library, "swin-tiny")
    assert not report.passed
    assert report.first_divergence == MUTATIONS[mutation], str(report)


def test_nothing_is_caught_where_nothing_is_planted(monkeypatch):
    assert verified(monkeypatch, lambda model: None, "transformers", "swin-tiny").passed


@pytest.mark.parametrize("overrides", [
    {"stack.block.attention.fill": "after-shift"}, {"embedding.norm.eps": 1e-3}, {"stack.block.norm.eps": 1e-3},
])  # fmt: skip
def test_the_field_at_fault_is_suspected(monkeypatch, overrides):
    """A config read wrongly, field by field: the reference is built from the right one."""
    import zoo.verification.run as run

    load = run.load_model
    monkeypatch.setattr(run, "load_model", lambda source, changes, device, dtype: load(source, overrides, device, dtype))
    report = zoo.verify("swin-tiny", tiny=True, reference="transformers", training=False)
    (field,) = overrides
    assert any(field in suspect and "would agree" in suspect for suspect in report.comparisons[0].suspects), str(report)

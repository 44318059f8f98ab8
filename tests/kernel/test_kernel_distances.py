"""Numbers of distances given to pairs: the blocks' backward pass against lookups and against torch's own of a view."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from zoo import kernel
from zoo.kernel.distances import BLOCK, _spread

SIZES = [(1, 1), (1, 7), (7, 1), (3, 5), (BLOCK, BLOCK), (BLOCK + 1, 2), (2 * BLOCK + 5, BLOCK - 1), (70, 130)]


def looked_up(line, queries):
    keys = line.shape[1] - queries + 1
    at = queries - 1 - torch.arange(queries)[:, None] + torch.arange(keys)
    return line[:, at]


def line_of(queries, keys, dtype=torch.float64, heads=3):
    return torch.randn(heads, queries + keys - 1, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_values_and_gradients_are_those_of_lookups(queries, keys):
    line = line_of(queries, keys)
    expected, found = looked_up(line, queries), kernel.by_distance(line, queries)
    assert torch.equal(found, expected) and found.is_contiguous()
    direction = torch.randn(expected.shape, dtype=torch.float64)
    (first,), (second,) = (torch.autograd.grad(each, line, direction) for each in (expected, found))
    assert (first - second).abs().max() <= 1e-12 and type(found.grad_fn).__name__ == "ByDistanceBackward"
    with kernel.plain():
        assert torch.equal(kernel.by_distance(line, queries), expected)
        (third,) = torch.autograd.grad(kernel.by_distance(line, queries), line, direction)
    assert (first - third).abs().max() <= 1e-12


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    assert kernel.by_distance(line_of(5, 9).detach(), 5).grad_fn is None
    with torch.no_grad():
        assert torch.equal(kernel.by_distance(line_of(5, 9), 5), looked_up(line_of(5, 9), 5))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch, where directions are batched
def test_it_can_be_differentiated_twice_and_for_many_directions():
    line = line_of(4, 6)
    assert gradcheck(lambda x: kernel.by_distance(x, 4), line) and gradgradcheck(lambda x: kernel.by_distance(x, 4), line)
    found = kernel.by_distance(line, 4)
    directions = torch.randn(5, *found.shape, dtype=torch.float64)
    (many,) = torch.autograd.grad(found, line, directions, is_grads_batched=True, retain_graph=True)
    singles = [torch.autograd.grad(found, line, each, retain_graph=True)[0] for each in directions]
    assert (many - torch.stack(singles)).abs().max() <= 1e-12
    assert torch.equal(torch.func.vmap(lambda x: kernel.by_distance(x, 4))(line[None]), looked_up(line, 4)[None])
    jacobian = torch.func.jacrev(lambda x: kernel.by_distance(x, 4).sum(0))(line)
    assert jacobian.shape == (4, 6, 3, 9) and jacobian.sum() == 4 * 6 * 3


def test_sums_of_bfloat16_are_sums_of_float32():
    line = line_of(300, 300, torch.bfloat16, heads=1)
    direction = torch.full((1, 300, 300), 0.01, dtype=torch.bfloat16)
    (found,) = torch.autograd.grad(kernel.by_distance(line, 300), line, direction)
    expected = 0.01 * (300 - (torch.arange(599) - 299).abs()).float()
    assert found.dtype == torch.bfloat16 and ((found[0].float() - expected) / expected).abs().max() < 0.01


def test_the_view_is_what_stands_on_the_meta_device():
    line = torch.empty(2, 9, device="meta", requires_grad=True)
    assert kernel.by_distance(line, 4).shape == _spread(4, line).shape == (2, 4, 6)

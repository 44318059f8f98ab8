"""Configs from YAML files: what they extend, and the traps of YAML."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.config.source import parse_yaml
from zoo.errors import ConfigError, UnknownNameError, ZooError

WHOLE = """
embedding: {type: patch, image_size: 32, patch_size: 8}
stack:
  width: 24
  depth: 2
  block: {norm: layer-norm, attention: {heads: 3}, feedforward: {hidden: 40}}
"""


def write(folder: Path, **files: str) -> Path:
    """Writes files and gives the path of the last one."""
    path = folder
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
    return path


def refused(path: Any) -> str:
    """The message with which a file is refused, within two seconds of the processor."""
    begun = time.process_time()
    with pytest.raises(ZooError) as caught:
        zoo.get_config(path)
    assert time.process_time() - begun < 2
    return str(caught.value)


def test_a_file_is_a_config(tmp_path: Path) -> None:
    path = write(tmp_path, model=WHOLE)
    assert zoo.get_config(path) == zoo.get_config(str(path))
    assert zoo.get_config(path).stack.width == 24


@pytest.mark.parametrize("name", zoo.list_models())
def test_every_preset_is_a_config(name: str) -> None:
    kinds = {"dual-encoder": ("clip",), "encoder-decoder": ("bart", "opus-mt", "transformer-", "t5", "flan-t5", "switch")}
    expected = next((kind for kind, starts in kinds.items() if name.startswith(starts)), "transformer")
    assert zoo.get_config(name).type == expected


def test_extends_a_preset(tmp_path: Path) -> None:
    path = write(tmp_path, child="extends: vit-tiny\nhead: {classes: 7}\n")
    assert zoo.get_config(path) == zoo.get_config("vit-tiny", {"head.classes": 7})


def test_extends_in_a_chain(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        one="extends: vit-tiny\nhead: {classes: 7}\nstack: {depth: 3}\n",
        two="extends: one.yaml\nstack: {depth: 5}\n",
        three="extends: two.yaml\nstack: {block: {dropout: 0.5}}\n",
    )
    config = zoo.get_config(path)
    assert (config.head.classes, config.stack.depth, config.stack.block.dropout, config.stack.width) == (7, 5, 0.5, 192)


def test_a_file_beside_comes_before_a_preset(tmp_path: Path) -> None:
    (tmp_path / "vit-base").write_text("extends: vit-tiny\nhead: {classes: 3}\n")
    path = write(tmp_path, child="extends: vit-base\n")
    assert zoo.get_config(path).head.classes == 3


def test_extends_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", parent="extends: vit-tiny\n")
    path = write(tmp_path, child="extends: base/parent.yaml\nhead: {classes: 3}\n")
    assert zoo.get_config(path).head.classes == 3


def test_extends_changes_a_type_by_the_rule(tmp_path: Path) -> None:
    path = write(tmp_path, child="extends: vit-tiny\nstack: {block: {norm: rms-norm}}\n")
    assert zoo.get_config(path).stack.block.norm.model_dump() == {"type": "rms-norm", "eps": 1e-6, "precision": "same"}


@pytest.mark.parametrize("parents", [{"a": "extends: a.yaml"}, {"a": "extends: b.yaml", "b": "extends: a.yaml"}])
def test_a_cycle_is_an_error(parents: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, **parents)
    assert "extends itself" in refused(tmp_path / "a.yaml")


def test_a_cycle_by_another_spelling_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = write(tmp_path, a="extends: sub/../a.yaml\n")
    assert "extends itself" in refused(path)


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    assert "a.yaml: extends: unknown model 'vit-tny'; did you mean 'vit-tiny'" in refused(
        write(tmp_path, a="extends: vit-tny\n")
    )
    message = refused(write(tmp_path, b="extends: missing.yaml\n"))
    assert "missing.yaml: no such file" in message


@pytest.mark.parametrize("value", ["3", "[vit-tiny]", "{a: b}", "true"])
def test_extends_is_a_name(value: str, tmp_path: Path) -> None:
    assert "extends: expected the name of a preset or a file" in refused(write(tmp_path, a=f"extends: {value}\n"))


def test_an_empty_extends_means_nothing(tmp_path: Path) -> None:
    assert zoo.get_config(write(tmp_path, a=f"extends:\n{WHOLE}")).stack.width == 24


def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, model=WHOLE)
    assert "modle.yaml: no such file; did you mean 'model.yaml'?" in refused(tmp_path / "modle.yaml")
    assert "no such file" in refused(tmp_path / "sub" / "x.yaml")
    assert "no such file" in refused(str(tmp_path))


def test_a_name_that_leaves_the_folder_of_presets_is_none() -> None:
    with pytest.raises((UnknownNameError, ConfigError)):
        zoo.get_config("../models/vit-tiny")
    with pytest.raises(UnknownNameError):
        zoo.get_config("")


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.0e-5", "+1e-5", "0.00001", ".1e-4"])
def test_a_number_in_any_spelling(number: str, tmp_path: Path) -> None:
    path = write(tmp_path, a=f"extends: vit-tiny\nstack: {{final_norm: {{eps: {number}}}}}\n")
    assert zoo.get_config(path).stack.final_norm.eps == 1e-5


def test_yaml_12_values() -> None:
    text = "[1e3, 0x1f, 1_000, 12, -4, .5, no, off, yes, true, False, null, ~, 2020-01-01, 1:30, '1', 1e, e5, .]"
    found = parse_yaml(text)
    assert found[0] == 1000.0 and isinstance(found[0], float)
    assert found[3:6] == [12, -4, 0.5]
    assert found[6:11] == ["no", "off", "yes", True, False]
    assert found[11:14] == [None, None, "2020-01-01"]
    assert found[15:] == ["1", "1e", "e5", "."]


@pytest.mark.parametrize("word", ["no", "off", "yes", "on", "NO"])
def test_a_word_where_a_truth_value_is_meant_is_named(word: str, tmp_path: Path) -> None:
    """`no` is a word in YAML 1.2; where a truth value is meant it is refused or read, never turned around."""
    path = write(tmp_path, a=f"extends: vit-tiny\nstack: {{block: {{attention: {{bias: {word}}}}}}}\n")
    try:
        bias = zoo.get_config(path).stack.block.attention.bias
    except ConfigError as error:
        assert "stack.block.attention.bias" in str(error)
    else:
        assert bias is (word.lower() in ("yes", "on"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("head: {classes: 1}\nhead: {classes: 2}\n", "a.yaml:2: no valid YAML: 'head' stands twice"),
        ("extends: vit-tiny\nstack: {depth: 1, depth: 2}\n", "'depth' stands twice"),
        ("stack:\n\tdepth: 1\n", "a.yaml:2: no valid YAML"),
        ("", "a config is a mapping of fields, not NoneType"),
        ("# nothing but a comment\n", "not NoneType"),
        ("- a\n- b\n", "not list"),
        ("vit-tiny\n", "not str"),
        ("3\n", "not int"),
        ("a: [1, 2\n", "no valid YAML"),
        ("a: 1\n---\nb: 2\n", "no valid YAML"),
        ("a: *nowhere\n", "no valid YAML"),
        ("? [1, 2]\n: 3\n", "cannot name a field"),
        ("? {a: b}\n: 3\n", "a.yaml"),
        ("null: 3\n", "cannot name a field"),
        ("1.5: 3\n", "cannot name a field"),
        ("a: !!python/object/apply:os.system ['true']\n", "no valid YAML"),
        ("a: !!python/name:os.system\n", "no valid YAML"),
        ("a: !!python/object:zoo.errors.ZooError {}\n", "no valid YAML"),
        ("a: !mine 3\n", "no valid YAML"),
        ("a: !!int x\n", "a.yaml"),
        ("a: !!float x\n", "a.yaml"),
        ("a: !!timestamp x\n", "a.yaml"),
        ("a: !!binary '%'\n", "a.yaml"),
        ("a: !!set [1]\n", "a.yaml"),
        ("a: 0x_\n", "a.yaml"),
        (f"a: {'9' * 5000}\n", "a.yaml"),
        ("a: !!omap {b: 1}\n", "a.yaml"),
        ("<<: 3\n", "a.yaml"),
        ("a: &x\n  b: *x\n", "a.yaml"),
        ("a: &x [*x]\n", "a.yaml"),
        ("&x extends: *x\n", "a.yaml"),
    ],
)
def test_what_is_no_config_is_refused_with_its_place(text: str, words: str, tmp_path: Path) -> None:
    assert words in refused(write(tmp_path, a=text))


@pytest.mark.parametrize("content", [b"\x80\x04\x95binary", bytes(range(256)), b"\xff\xfea\x00", b"a: \x00\n", b"a: \x07\n"])
def test_a_binary_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert "a.yaml" in refused(path)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a.yaml"
    folder.mkdir()
    assert "a.yaml" in refused(folder)


@pytest.mark.parametrize("depth", [300, 2_000, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_huge_nesting_is_refused(depth: int, brackets: str, tmp_path: Path) -> None:
    opening = "[" if brackets == "[]" else "{a: "
    text = "head: " + opening * depth + "1" + brackets[1] * depth + "\n"
    assert "a.yaml" in refused(write(tmp_path, a=text))


@pytest.mark.parametrize("kind", ["lists", "mappings", "merges"])
def test_aliases_that_multiply_are_refused(kind: str, tmp_path: Path) -> None:
    lines = {"lists": ["a0: &a0 [x, x, x, x, x, x, x, x, x]"], "mappings": ["a0: &a0 {k: x}"], "merges": ["a0: &a0 {k: x}"]}[
        kind
    ]
    for step in range(1, 30):
        if kind == "lists":
            lines.append(f"a{step}: &a{step} [{', '.join([f'*a{step - 1}'] * 9)}]")
        elif kind == "mappings":
            lines.append(f"a{step}: &a{step} {{{', '.join(f'k{n}: *a{step - 1}' for n in range(9))}}}")
        else:
            lines.append(f"a{step}: &a{step} {{<<: [{', '.join([f'*a{step - 1}'] * 9)}], m{step}: 1}}")
    path = write(tmp_path, a="\n".join(lines) + "\nhead: *a29\n")
    message = refused(path)
    assert "a.yaml" in message and len(message) < 20_000


def test_plain_anchors_work(tmp_path: Path) -> None:
    text = "extends: vit-tiny\nstack:\n  final_norm: &norm {type: layer-norm, eps: 0.5}\n  block: {norm: *norm}\n"
    config = zoo.get_config(write(tmp_path, a=text))
    assert config.stack.block.norm == config.stack.final_norm and config.stack.block.norm.eps == 0.5


def test_a_merge_key_is_a_field_like_any_other(tmp_path: Path) -> None:
    """YAML 1.2 has no merge keys, and `extends` does their work."""
    assert "<<: unknown field of model 'transformer'" in refused(write(tmp_path, a=f"<<: {{depth: 1}}\n{WHOLE}"))


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.replace("\n", "\r\n").encode())
    assert zoo.get_config(path).stack.width == 24

"""Building and loading in fresh interpreters, after the imports."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from typing import Any

BUILD = {
    "zoo": ("import zoo, torch; zoo.build('vit-tiny', device='meta')", "zoo.build('vit-tiny')"),
    "timm": ("import timm; timm.create_model('test_vit')", "timm.create_model('vit_tiny_patch16_224')"),
    "transformers": (
        "from transformers import ViTConfig, ViTForImageClassification as V; c = ViTConfig(num_labels=1000, hidden_size=192, "
        "num_attention_heads=3, intermediate_size=768); V(ViTConfig(num_hidden_layers=1))",
        "V(c)",
    ),
}
LOAD = {
    "zoo": (
        "import zoo, torch; zoo.build('vit-tiny', device='meta'); import zoo.checkpoint.load, zoo.checkpoint.huggingface_vit",
        "zoo.load({folder!r})",
    ),
    "transformers": (
        "import transformers; from transformers import ViTForImageClassification as V; "
        "transformers.utils.logging.disable_progress_bar()",
        "V.from_pretrained({folder!r})",
    ),
}
LOAD_BERT = {
    "zoo": (
        "import zoo, torch; zoo.build('bert-tiny', device='meta'); import zoo.checkpoint.load, zoo.checkpoint.huggingface_bert",
        "zoo.load({folder!r})",
    ),
    "transformers": (
        "import transformers; from transformers import BertModel as B; transformers.utils.logging.disable_progress_bar()",
        "B.from_pretrained({folder!r})",
    ),
}
CODE = "import time\n{before}\nstart = time.perf_counter()\nmodel = {what}\nprint(time.perf_counter() - start)"


def measure(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of `zoo.build("vit-tiny")` and of loading folders of ViT-B and BERT, beside the peers'."""
    from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification

    rows = []
    with tempfile.TemporaryDirectory() as images, tempfile.TemporaryDirectory() as texts:
        ViTForImageClassification(ViTConfig(num_labels=1000)).save_pretrained(images)
        BertModel(BertConfig()).save_pretrained(texts)
        jobs = (("build vit-tiny", BUILD, images), ("load vit-base", LOAD, images), ("load bert-base", LOAD_BERT, texts))
        for title, snippets, folder in jobs:
            times: dict[str, list[float]] = {name: [] for name in snippets}
            for _ in range(rounds):
                for name, (before, what) in snippets.items():
                    times[name].append(_seconds(CODE.format(before=before, what=what.format(folder=folder))))
            medians = {name: round(statistics.median(values) * 1e3, 1) for name, values in times.items()}
            fastest = min(value for name, value in medians.items() if name != "zoo")
            rows.append(
                {"job": title, "milliseconds": medians, "faster than the faster peer": round(fastest / medians["zoo"], 2)}
            )
    return rows


def _seconds(code: str) -> float:
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])

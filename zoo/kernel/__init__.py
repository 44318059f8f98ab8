"""Where a product or an attention is computed.

Each function stands for plain torch calls, named in its docstring, and is those calls wherever a written rule
does not know better: see `tiles` (float32 on a processor's bfloat16 tiles), `attention_tiles` and `feedforward_tiles` (more on
them), `packed` (weights in inference), `few_rows` (when texts are written), `experts_few_rows` (experts in one call),
`feedforward` (memory), `attention` (the backward pass in bfloat16), `distances` (the backward pass of relative
positions), `patches` (a convolution as a product), `windows` (windows of a grid), `step` (a token of each text through a
whole block), and `switch` for how to turn all of it off.
The parts of the library call these functions and know nothing of the rules.
"""

from zoo.kernel.activation import ACTIVATIONS, activation
from zoo.kernel.attention import attention, attention_by_text
from zoo.kernel.distances import by_distance
from zoo.kernel.feedforward import gated, mlp
from zoo.kernel.linear import Linear, linear, project
from zoo.kernel.local_attention import local_attention
from zoo.kernel.local_band import GlobalTokens, chosen_tokens, first_tokens
from zoo.kernel.norm import layer_norm, rms_norm
from zoo.kernel.patches import patches
from zoo.kernel.step import Look, Places, Program, step, to_add
from zoo.kernel.switch import plain, readable, repeated
from zoo.kernel.windows import Kept, Windows, real_places, regions, window_attention, window_index, window_weights

__all__ = [
    "ACTIVATIONS",
    "GlobalTokens",
    "Kept",
    "Linear",
    "Look",
    "Places",
    "Program",
    "Windows",
    "activation",
    "attention",
    "attention_by_text",
    "by_distance",
    "chosen_tokens",
    "first_tokens",
    "gated",
    "layer_norm",
    "linear",
    "local_attention",
    "mlp",
    "patches",
    "plain",
    "project",
    "readable",
    "real_places",
    "regions",
    "repeated",
    "rms_norm",
    "step",
    "to_add",
    "window_attention",
    "window_index",
    "window_weights",
]

"""What a config is: frozen and strict, read from YAML, merged, checked, described by a JSON Schema."""

from zoo.config.base import Config as Config
from zoo.config.base import Problem as Problem
from zoo.config.base import Slot as Slot
from zoo.config.base import within as within

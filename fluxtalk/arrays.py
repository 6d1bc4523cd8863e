"""Types of numpy arrays, as every stage's signatures name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of any type and shape."""
Arrays = Mapping[str, Array]
"""Arrays by name: the inputs or the outputs of a graph."""
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

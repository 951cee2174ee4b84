"""Text in, fixed-length blocks of token ids out: sources, split, tokenizer, packing, collation.

`load_data` does all of it for training, `load_evaluation_data` for an existing model.
"""

from exsel.errors import require

require("transformers", "data")
require("datasets", "data")

from exsel.data.packing import collate, token_counts  # noqa: E402
from exsel.data.text_loading import (  # noqa: E402 - after the check that names the extra to install
    DataDescription,
    PackedData,
    load_data,
    load_evaluation_data,
)
from exsel.data.tokenization import load_tokenizer  # noqa: E402

__all__ = [
    "DataDescription",
    "PackedData",
    "collate",
    "load_data",
    "load_evaluation_data",
    "load_tokenizer",
    "token_counts",
]


def __dir__() -> list[str]:
    return __all__

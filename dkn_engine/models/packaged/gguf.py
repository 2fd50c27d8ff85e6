"""GGUF files: what is said about a model, and its weights as plain numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

INSTALL_READER = "pip install 'gguf>=0.10'"


def open_gguf(path: Path, what: str) -> GGUFReader:
    """A reader of the file.

    Raises:
        UserError: there is no package to read it; the message calls the model ``what``.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(f"{what}'s file needs a reader: {INSTALL_READER}") from error

    class Reader(GGUFReader):
        """Its file is a plain array: thousands of tokens are cut out of it, memmaps slowly."""

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = np.asarray(mapped)

    return Reader(path)


def value(reader: GGUFReader, key: str) -> Any:
    """A field that the file has, as its checksum says."""
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def dequantized(tensor: ReaderTensor) -> NDArray[np.float32]:
    """A weight as transformers lays it out, contiguous."""
    from gguf import dequantize

    weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    return np.ascontiguousarray(weight)

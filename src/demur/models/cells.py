"""Keys and values of rows that are at different places of their texts, in one growing store.

Each row's begin at column 0, whoever its neighbours are, and what lies behind a row's end weighs exactly nothing. Sums over
columns so have the same order in every batch, and a row has the same logits, bit for bit, in whichever batch it is
written (as far as the machine's matrix product computes each row alike: torch's on x86 does, from four rows on).
"""

from typing import Any

import psutil
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK = 64  # Columns are read in whole blocks: the order of a sum does not depend on how many there are
LEAST = 4  # Products of fewer rows take another path in torch, with another rounding
SHARE = 0.3  # Of the free memory, what keys and values may fill: room grows by half, and other workers want as much


def cells_for(model: Any) -> "Many | Alone":
    """What suits a model: many rows where all its layers are attention, else one at a time."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    attends = kinds <= {"full_attention", "sliding_attention"} and not getattr(model, "_is_stateful", False)
    return Many(model) if attends else Alone(model)


class Alone:
    """One row at a time, with the cache that transformers keeps for the model."""

    most = 1
    full = False

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None

    def read(self, prompts: list[list[int]]) -> torch.Tensor:
        """Begin the row; see `Many`."""
        self._cache = DynamicCache(config=self._model.config)
        return self.step(prompts[0])

    def step(self, tokens: list[int]) -> torch.Tensor:
        """Take in tokens of the row."""
        ids = torch.tensor([tokens], device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]

    def drop(self, at: int) -> None:
        """End the row."""
        self._cache = None


class Many:
    """Many rows. Room for more rows and columns is made as it is needed."""

    most = 1 << 20

    def __init__(self, model: Any) -> None:
        self._model = model
        config = model.config.get_text_config()
        heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        cell = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
        cuda = model.device.type == "cuda"
        free = torch.cuda.mem_get_info(model.device)[0] if cuda else psutil.virtual_memory().available
        self._most_cells = int(SHARE * free / cell)
        self._kinds = set(getattr(config, "layer_types", None) or [])
        self._window: int | None = getattr(config, "sliding_window", None)
        self._lengths: list[int] = []
        self._layers: list[_Layer] = []
        self._mask = torch.empty((0, 0), dtype=model.dtype, device=model.device)
        self.index = self.places = torch.empty(0, dtype=torch.long)  # Where the next tokens go: `[rows]` each
        self.columns = 0  # How many columns are read

    @property
    def full(self) -> bool:
        """Whether another column is more than memory has room for."""
        return len(self._lengths) * (max(self._lengths) + 1) > self._most_cells

    def read(self, prompts: list[list[int]]) -> torch.Tensor:
        """Take in new rows behind the others, all of the same length; returns their logits `[rows, vocabulary]`."""
        own, size, first = DynamicCache(), len(prompts[0]), len(self._lengths)
        ids = torch.tensor(prompts, device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=own, use_cache=True, logits_to_keep=1)
        if not self._layers:
            self._layers = [_Layer(self, layer) for layer in own.layers]
        self._room(max(first + len(prompts), LEAST), size + 1)
        for layer, new in zip(self._layers, own.layers, strict=True):
            layer.keys[first : first + len(prompts), :, :size] = new.keys
            layer.values[first : first + len(prompts), :, :size] = new.values
        self._mask[first : first + len(prompts)] = torch.finfo(self._mask.dtype).min
        self._mask[first : first + len(prompts), :size] = 0
        self._lengths += [size] * len(prompts)
        return out.logits[:, -1]

    def step(self, tokens: list[int]) -> torch.Tensor:
        """Take in one token of each row; returns logits `[rows, vocabulary]`."""
        idle = max(0, LEAST - len(tokens))
        longest = max(self._lengths) + 1
        self._room(len(tokens) + idle, longest)
        device = self._model.device
        self.columns = -(-longest // BLOCK) * BLOCK
        self.places = torch.tensor(self._lengths + [0] * idle, device=device)
        self.index = torch.arange(len(self.places), device=device)
        self._mask[self.index, self.places] = 0
        out = self._model(
            input_ids=torch.tensor(tokens + [0] * idle, device=device)[:, None],
            attention_mask=self._masks(),
            position_ids=self.places[:, None],
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
            logits_to_keep=1,
        )
        self._lengths = [length + 1 for length in self._lengths]
        return out.logits[: len(tokens), -1]

    def drop(self, at: int) -> None:
        """Remove a row; the last one takes its place."""
        last = len(self._lengths) - 1
        if at != last:
            size = self._lengths[last]
            for layer in self._layers:
                layer.keys[at, :, :size] = layer.keys[last, :, :size]
                layer.values[at, :, :size] = layer.values[last, :, :size]
            self._mask[at] = self._mask[last]
            self._lengths[at] = self._lengths[last]
        self._lengths.pop()

    def _masks(self) -> Any:
        """What is added to the scores, `[rows, 1, 1, columns]`; one for each kind of layer where there are two."""
        full = self._mask[: len(self.index), : self.columns]
        if self._window is None or (self._kinds and "sliding_attention" not in self._kinds):
            return full[:, None, None]
        far = torch.arange(self.columns, device=full.device)[None] <= self.places[:, None] - self._window
        near = full.masked_fill(far, torch.finfo(full.dtype).min)[:, None, None]
        return {"full_attention": full[:, None, None], "sliding_attention": near} if self._kinds else near

    def _room(self, rows: int, columns: int) -> None:
        """Make room for so many rows and columns, by half more than there was."""
        there = self._mask.shape
        if rows <= there[0] and columns <= there[1]:
            return
        rows = there[0] if rows <= there[0] else max(rows, there[0] * 3 // 2)
        columns = there[1] if columns <= there[1] else -(-max(columns, there[1] * 3 // 2) // BLOCK) * BLOCK
        self._mask = _larger(self._mask[:, None, :, None], rows, columns)[:, 0, :, 0]
        self._mask[:, there[1] :] = torch.finfo(self._mask.dtype).min
        for layer in self._layers:
            layer.keys, layer.values = _larger(layer.keys, rows, columns), _larger(layer.values, rows, columns)


def _larger(old: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """`[rows, heads, columns, width]` with room at the end of rows and columns."""
    return torch.nn.functional.pad(old, (0, 0, 0, columns - old.shape[2], 0, 0, 0, rows - old.shape[0]))


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, `[rows, heads, columns, width]`."""

    keys: Any
    values: Any

    def __init__(self, store: Many, like: Any) -> None:
        super().__init__()
        self._store = store
        self.keys, self.values = like.keys[:0], like.values[:0]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        store = self._store
        self.keys[store.index, :, store.places] = key_states[:, :, 0]
        self.values[store.index, :, store.places] = value_states[:, :, 0]
        rows = len(store.index)
        return self.keys[:rows, :, : store.columns], self.values[:rows, :, : store.columns]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the store makes room."""

    def get_seq_length(self) -> int:
        return self._store.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._store.columns, 0

    def get_max_length(self) -> int:
        return -1

"""A growing key-value cache for rows of different lengths.

Each row starts at column 0, whatever its neighbours are, and columns behind a row's end get a weight of exactly zero.
Sums over columns therefore have the same order in every batch, and a row has the same logits, bit for bit, in any batch
(as long as the machine's matrix product computes each row alike, as torch's does on x86 from four rows on).
"""

from typing import Any

import psutil
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK = 64  # Columns are read in whole blocks: the order of a sum does not depend on how many there are
LEAST = 4  # Products of fewer rows take another path in torch, with another rounding
SHARE = 0.3  # Fraction of the free memory that the cache may fill: it grows by half, and other workers need as much


def cells_for(model: Any) -> "ManyRows | OneRow":
    """The cache for a model: for many rows if all its layers are attention, else for one row at a time."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    attention_only = kinds <= {"full_attention", "sliding_attention"} and not getattr(model, "_is_stateful", False)
    return ManyRows(model) if attention_only else OneRow(model)


class OneRow:
    """One row at a time, in the cache that transformers keeps for the model."""

    most = 1
    full = False

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None

    def read(self, prompts: list[list[int]]) -> torch.Tensor:
        """Start the row; returns logits `[1, vocabulary]`."""
        self._cache = DynamicCache(config=self._model.config)
        return self.step(prompts[0])

    def step(self, tokens: list[int]) -> torch.Tensor:
        """Append tokens to the row; returns logits `[1, vocabulary]`."""
        ids = torch.tensor([tokens], device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]

    def drop(self, at: int) -> None:
        """Remove the row."""
        self._cache = None


class ManyRows:
    """Many rows. The cache grows as more rows and columns are needed."""

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
        self.index = self.places = torch.empty(0, dtype=torch.long)  # Row and column of each new token, `[rows]`
        self.columns = 0  # Number of columns that are read

    @property
    def full(self) -> bool:
        """Whether memory has no room for another column."""
        return len(self._lengths) * (max(self._lengths) + 1) > self._most_cells

    def read(self, prompts: list[list[int]]) -> torch.Tensor:
        """Add new rows with prompts of the same length; returns their logits `[rows, vocabulary]`."""
        cache, size, first = DynamicCache(), len(prompts[0]), len(self._lengths)
        ids = torch.tensor(prompts, device=self._model.device)
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        if not self._layers:
            self._layers = [_Layer(self, layer) for layer in cache.layers]
        self._grow(max(first + len(prompts), LEAST), size + 1)
        for layer, new in zip(self._layers, cache.layers, strict=True):
            layer.keys[first : first + len(prompts), :, :size] = new.keys
            layer.values[first : first + len(prompts), :, :size] = new.values
        self._mask[first : first + len(prompts)] = torch.finfo(self._mask.dtype).min
        self._mask[first : first + len(prompts), :size] = 0
        self._lengths += [size] * len(prompts)
        return out.logits[:, -1]

    def step(self, tokens: list[int]) -> torch.Tensor:
        """Append one token to each row; returns logits `[rows, vocabulary]`."""
        idle = max(0, LEAST - len(tokens))
        longest = max(self._lengths) + 1
        self._grow(len(tokens) + idle, longest)
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
        """What is added to attention scores, `[rows, 1, 1, columns]`; by kind of layer where there are two kinds."""
        full = self._mask[: len(self.index), : self.columns]
        if self._window is None or (self._kinds and "sliding_attention" not in self._kinds):
            return full[:, None, None]
        far = torch.arange(self.columns, device=full.device)[None] <= self.places[:, None] - self._window
        near = full.masked_fill(far, torch.finfo(full.dtype).min)[:, None, None]
        return {"full_attention": full[:, None, None], "sliding_attention": near} if self._kinds else near

    def _grow(self, rows: int, columns: int) -> None:
        """Make room for so many rows and columns; a dimension that grows does so by half at least."""
        old_rows, old_columns = self._mask.shape
        if rows <= old_rows and columns <= old_columns:
            return
        rows = old_rows if rows <= old_rows else max(rows, old_rows * 3 // 2)
        columns = old_columns if columns <= old_columns else -(-max(columns, old_columns * 3 // 2) // BLOCK) * BLOCK
        self._mask = _larger(self._mask[:, None, :, None], rows, columns)[:, 0, :, 0]
        self._mask[:, old_columns:] = torch.finfo(self._mask.dtype).min
        for layer in self._layers:
            layer.keys, layer.values = _larger(layer.keys, rows, columns), _larger(layer.values, rows, columns)


def _larger(old: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """`[rows, heads, columns, width]` with room at the end of rows and columns."""
    return torch.nn.functional.pad(old, (0, 0, 0, columns - old.shape[2], 0, 0, 0, rows - old.shape[0]))


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, `[rows, heads, columns, width]`."""

    keys: Any
    values: Any

    def __init__(self, store: ManyRows, like: Any) -> None:
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
        """Do nothing: the store allocates."""

    def get_seq_length(self) -> int:
        return self._store.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._store.columns, 0

    def get_max_length(self) -> int:
        return -1

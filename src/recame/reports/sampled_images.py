"""Features and pixels of a sample of a run's images."""

from __future__ import annotations

import numpy as np

from recame.contracts import Array, IntArray, Predictions
from recame.data.dataset import InspectionSet
from recame.inference.predict import predict_cached
from recame.inference.run_graph import RunGraph
from recame.models import LoadedModel
from recame.pages.drawing import side_by_side
from recame.progress import Progress, relabelled


class Look:
    """Applies the model to rows of the image cache."""

    def __init__(
        self,
        loaded: LoadedModel,
        data: InspectionSet,
        batch_size: int,
        progress: Progress,
        graph: RunGraph | None = None,
    ) -> None:
        self.loaded = loaded
        self.data = data
        self._batch_size, self._graph = batch_size, graph
        self._progress = progress

    def features(self, rows: IntArray, label: str) -> Array:
        """(n, E, D) features of the images without augmentation."""
        found = predict_cached(
            self.loaded.model,
            self.data.cache.images,
            rows,
            spec=self.data.spec,
            num_views=1,
            batch_size=self._batch_size,
            device=next(self.loaded.model.parameters()).device,
            on_progress=relabelled(self._progress, label),
            with_features=True,
            graph=self._graph,
        )[2]
        assert found is not None
        return found

    def pixels(self, rows: IntArray) -> Array:
        """(n, H, W, C) float32 pixels in [0, 1], as the model sees them."""
        images = self.data.cache.images[rows].astype(np.float32)
        images /= self.data.spec.scale
        return np.asarray(np.clip(images, 0.0, 1.0, out=images))

    def shown(self, rows: IntArray) -> Array:
        """(n, h, w, C) pixels in [0, 1] for people: tiles side by side, 16-bit images rescaled."""
        pixels, spec = self.pixels(rows), self.data.spec
        if spec.bit_depth != 8 and len(rows):
            low, high = np.quantile(pixels, (0.005, 0.995), axis=(1, 2, 3), keepdims=True)
            pixels = np.clip((pixels - low) / np.maximum(high - low, 1e-6), 0.0, 1.0)
        return side_by_side(pixels, spec.pieces, white=1.0)


def cache_rows(data: InspectionSet, split: str, predictions: Predictions) -> IntArray | None:
    """(N,) the cache row of each predicted image; -1 if it is not available."""
    part = data.table[(data.table["split"] == split).to_numpy()]
    if part.empty or "image" not in predictions.table:
        return None
    images = part["image"].astype(str)
    asked = predictions.table["image"].astype(str)
    if len(part) == len(asked) and (images.to_numpy() == asked.to_numpy()).all():
        return part["row"].to_numpy(np.int64)
    found = part.set_index(images)["row"][~images.duplicated().to_numpy()]
    return found.reindex(asked, fill_value=-1).to_numpy(np.int64)

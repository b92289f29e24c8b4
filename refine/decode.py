"""Query the latent at the chosen pixels, block by block into an array that is there already."""

import torch
from torch import Tensor

from refine.models import Network
from refine.regions import Grid

EVALUATIONS = 2**15  # of the MLP in a block: what lies between its layers stays in a processor's cache


def probabilities(network: Network, latent: Tensor, grid: Grid, guide: Tensor | None) -> Tensor:
    """Probabilities (n, m) float32 of a grid's queries.

    latent: (1, C, h, w); guide: (1, channels, n, m), the network's input at the queries, for a network that reads it.
    """
    out = torch.empty(grid.shape, dtype=torch.float32, device=latent.device)
    columns = grid.columns.to(latent.device)
    step = max(1, EVALUATIONS // (network.neighbours * len(columns)))
    for top in range(0, len(grid.rows), step):
        rows = grid.rows[top : top + step]
        first, end = rows.cells()
        here = None if guide is None else guide[:, :, top : top + step]
        logit = network.decode(latent[:, :, first:end], rows.relative(first).to(latent.device), columns, here)
        torch.sigmoid(logit[0, 0], out=out[top : top + step])
    return out

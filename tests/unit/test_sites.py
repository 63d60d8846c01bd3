"""A site's bookkeeping where its units do not divide among the structures, as SwiGLU's widths do not."""

from __future__ import annotations

import torch

from dydit_cli.model.sites import Site

UNEVEN = Site("groups", ("fc1",), "fc2", width=6, units=10, count=3)


def test_the_first_structures_have_one_unit_more() -> None:
    assert UNEVEN.bounds == (0, 4, 7, 10)
    assert UNEVEN.sizes == (4, 3, 3)


def test_active_units_and_macs_count_what_each_structure_has() -> None:
    masks = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0]])
    assert UNEVEN.active_units(masks).tolist() == [7, 6, 10, 0]
    assert UNEVEN.macs_per_token == 10 * 2 * 6
    even = Site("groups", ("fc1",), "fc2", width=6, units=9, count=3)
    assert even.active_units(masks).tolist() == [6, 6, 9, 0]


def test_a_gated_mlp_has_its_rows_twice() -> None:
    gated = Site("groups", ("w12",), "w3", width=6, units=10, count=3, repeats=2)
    assert gated.macs_per_token == 10 * 3 * 6

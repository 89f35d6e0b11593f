"""What is known of a model by its modules alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perftool.probes.modules import blocks_of, calls_seen, chains_of, describe_modules, is_large_linear
from perftool.training import match_layouts
from scenarios.channels_last import lay_out


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
        self.blocks = nn.ModuleList(block() for _ in range(3))


def test_blocks_are_the_outermost_lists_of_alike_modules_that_are_made_of_others() -> None:
    nested = nn.Sequential(nn.Sequential(block(), block()), nn.Sequential(block(), block()))
    assert blocks_of(nested) == [""]
    assert blocks_of(Blocks()) == ["blocks"]
    assert blocks_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))) == [], "nothing lies within them"
    assert blocks_of(nn.ModuleList([block()])) == [], "one is no list"


def test_chains_are_long_sequences_where_there_are_no_blocks() -> None:
    chain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    assert chains_of(chain) == [""]
    assert chains_of(nn.ModuleDict({"body": chain})) == ["body"]
    assert chains_of(chain[:3]) == []
    assert chains_of(Blocks()) == []


def test_a_description_is_of_all_models_but_names_only_of_a_single_one() -> None:
    net, other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 3), nn.ReLU()), Blocks()
    alone, both = describe_modules([net]), describe_modules([net, other], attends=True)
    assert alone["convolution_dims"] == both["convolution_dims"] == [2, 3]
    assert (alone["chains"], alone["block_lists"]) == ({"": 4}, [])
    assert (both["chains"], both["block_lists"]) == ({}, [])
    assert (alone["attends"], both["attends"]) == (False, True)


@pytest.mark.parametrize(("sizes", "is_large"), [((1024, 4096), True), ((1024, 1000), False), ((1040, 1030), False)])
def test_a_linear_layer_is_large_in_both_sizes_and_of_multiples(sizes: tuple[int, int], is_large: bool) -> None:
    with torch.device("meta"):
        assert is_large_linear(nn.Linear(*sizes)) == is_large
        assert not is_large_linear(nn.Conv2d(1024, 1024, 1))


@pytest.mark.parametrize(("dims", "kind"), [(2, nn.Conv2d), (3, nn.Conv3d)])
def test_weights_that_lie_channels_last_are_seen(dims: int, kind: type[nn.Module]) -> None:
    net = nn.Sequential(kind(3, 4, 3), nn.Flatten(), nn.Linear(4, 4))
    assert not describe_modules([net])["channels_last"]
    lay_out(net)
    assert describe_modules([net])["channels_last"]
    assert not describe_modules([nn.Sequential(kind(3, 4, 1))])["channels_last"], "such a weight tells nothing"


def test_attention_is_seen_whether_it_is_called_or_a_module_does() -> None:
    tokens = torch.ones(1, 3, 4)
    with calls_seen([]) as plain:
        nn.Linear(4, 4)(tokens)
    with calls_seen([]) as called:
        nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
    within = []
    for need_weights in (False, True):
        with calls_seen([]) as seen:
            nn.MultiheadAttention(4, 1)(tokens, tokens, tokens, need_weights=need_weights)
        within.append(seen.attention)
    assert (plain.attention, called.attention, within) == (False, True, [True, False])
    compiled = nn.Linear(4, 4)
    compiled.compile()
    with calls_seen([nn.Sequential(compiled)]) as hidden:
        nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
    assert not hidden.attention, "it would be compiled again"


@pytest.mark.parametrize("fused", [False, True])
def test_state_of_before_a_change_of_layout_follows_it(fused: bool) -> None:
    """A fused kernel reads state, gradient and parameter in one order, as they lie in memory."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 5, 5)
    results = []
    for laid in (False, True):
        torch.manual_seed(1)
        net = nn.Conv2d(3, 4, 3)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=fused)
        for step in range(4):
            if laid and step == 2:
                lay_out(net)
                match_layouts(optimizer)
            net(images).square().sum().backward()
            optimizer.step()
            if step != 1:
                optimizer.zero_grad()  # the gradient of step 1 is still there when the layout changes
        results.append(net.weight.detach().contiguous())
    plain, changed = results
    assert torch.allclose(plain, changed, rtol=1e-4, atol=1e-6)
